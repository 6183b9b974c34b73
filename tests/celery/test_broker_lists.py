"""Workers that start where kombu's start: with several brokers, a trailing `;`, Sentinels, users with few rights."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from tests.celery.fleet import Fleet
from tests.redis.test_connecting import Sentinel
from tests.servers import RedisServer, free_port

ADDS = "from shop import add; assert add.delay(1, 2).get(timeout=30) == 3"


def works(fleet: Fleet, pool: str = "solo", **options: Any) -> None:
    """Have a worker do a task."""
    fleet.environment["SHOP_OPTIONS"] = json.dumps(options)
    worker = fleet.worker("kombulite", pool, "--without-gossip", "--without-mingle")
    fleet.run("kombulite", ADDS)
    worker.kill()


def dead(url: str) -> str:
    scheme, _, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    return f"{scheme}://{login}{at}127.0.0.1:{free_port()}/{place.partition('/')[2]}"


@pytest.mark.parametrize("kind", ["redis", "amqp"])
@pytest.mark.parametrize("spelling", ["{url};", "{url};{url}", "{dead};{url}", "list"])
def test_worker_starts_with_several_brokers(make_fleet: Callable[..., Fleet], request: Any, kind, spelling):
    url = request.getfixturevalue(f"{kind}_url")
    broker = spelling.format(url=url, dead=dead(url)) if spelling != "list" else json.dumps([dead(url), url])
    works(make_fleet(kind, broker))


def test_worker_starts_with_several_sentinels(make_fleet: Callable[..., Fleet], start_server: Any):
    master = start_server(RedisServer)
    sentinels = [start_server(lambda: Sentinel(master)) for _ in range(2)]
    urls = [f"sentinel://127.0.0.1:{sentinel.port}/0" for sentinel in sentinels]
    works(make_fleet("redis", ";".join(urls)), master_name="it")


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads"])
def test_worker_of_a_user_without_the_right_to_client(make_fleet: Callable[..., Fleet], start_server: Any, pool):
    server = start_server(RedisServer)
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", "few", "on", ">pw", "+@all", "-client", "~*", "&*")
    works(make_fleet("redis", f"redis://few:pw@127.0.0.1:{server.port}/0"), pool)


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads"])
def test_worker_that_speaks_resp2(make_fleet: Callable[..., Fleet], redis_url: str, pool):
    works(make_fleet("redis", redis_url), pool, protocol=2)
