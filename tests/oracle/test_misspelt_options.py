"""Options that are misspelt are errors; what kombu knows, for whatever transport, is none."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import amqp
import kombu
import kombu.transport.redis
import pytest
import redis

from kombulite import Connection
from kombulite.brokers.amqp.connector import OPTIONS as AMQP_OPTIONS
from kombulite.brokers.filesystem.folders import OPTIONS as FILESYSTEM_OPTIONS
from kombulite.brokers.options import CONNECT_OPTIONS
from kombulite.brokers.redis.options import Options as RedisOptions

OWN = {
    "redis": sorted({*RedisOptions._fields, *CONNECT_OPTIONS}),
    "amqp": sorted({*AMQP_OPTIONS, *CONNECT_OPTIONS}),
    "filesystem": sorted({*FILESYSTEM_OPTIONS, *CONNECT_OPTIONS}),
}
LOOKED_UP = re.compile(r"options(?:\.get\(|\.pop\(|\[)\s*['\"](\w+)['\"]")


def names_that_kombu_knows():
    names = {
        *kombu.transport.redis.Channel.from_transport_options,
        *inspect.signature(amqp.Connection).parameters,
        *inspect.signature(redis.connection.AbstractConnection).parameters,
        *inspect.signature(redis.connection.Connection).parameters,
    }
    for source in Path(kombu.__file__).parent.rglob("*.py"):
        names.update(LOOKED_UP.findall(source.read_text()))
    return sorted(names)


@pytest.mark.parametrize("transport", OWN)
def test_what_kombu_knows_for_any_transport_is_taken(transport):
    names = names_that_kombu_knows()
    assert {"visibility_timeout", "queue_name_prefix", "kafka_common_config", "data_folder_in"} <= set(names)
    options = {name: None for name in names if name not in FILESYSTEM_OPTIONS}
    assert Connection(f"{transport}://", transport_options=options).transport


@pytest.mark.parametrize(("transport", "option"), [(kind, name) for kind in OWN for name in OWN[kind] if len(name) > 6])
def test_a_misspelt_transport_option_is_named_with_the_closest(transport, option):
    middle = len(option) // 2
    misspelt = option[:middle] + option[middle + 1 :]
    with pytest.raises(ValueError, match=f"'{misspelt}'; did you mean '{option}'"):
        Connection(f"{transport}://", transport_options={misspelt: None}).transport  # noqa: B018


@pytest.mark.parametrize("url", ["amqps://localhost:1", "rediss://localhost:1"])
@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("certfil", "certfile"),
        ("ssl_certfil", "ssl_certfile"),
        ("ca_cert", "ca_certs"),
        ("ssl_check_host", "ssl_check_hostname"),
    ],
)
def test_a_misspelt_tls_setting_is_named_with_the_closest(url, misspelt, meant):
    with pytest.raises(ValueError, match=f"'{misspelt}' in ssl; did you mean '{meant}'"):
        Connection(url, ssl={misspelt: "client.pem"}).connect()


def test_an_unknown_key_of_a_url_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"heartbaet.*heartbeat"):
        Connection("amqp://localhost/?heartbaet=10")
