"""What producers do, and expect of whoever works for them. They are told ``pool``, ``library``, ``workers``."""

import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import pytest
import shop
from celery import chain, chord, group
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from shop import add, app, named, notes

WAIT = 30
PATIENCE = {"timeout": WAIT, "interval": 0.02}  # the latter where a result backend has to be asked again and again


def _eventually(found, wanted):
    deadline = time.monotonic() + WAIT
    while (value := found()) != wanted:
        assert time.monotonic() < deadline, f"{value} instead of {wanted}"
        time.sleep(0.05)


def delay_and_errors(facts):
    assert add.delay(2, 3).get(**PATIENCE) == 5
    with pytest.raises(ValueError, match="broken"):
        shop.fail.delay("broken").get(**PATIENCE)
    assert app.send_task("shop.add", (1, 1)).get(**PATIENCE) == 2


def many(facts):
    results = [add.delay(i, i) for i in range(200)]
    assert [result.get(**PATIENCE) for result in results] == [2 * i for i in range(200)]


def countdown_and_eta(facts):
    soon = add.apply_async((1, 2), countdown=0.5)
    then = add.apply_async((3, 4), eta=datetime.now(timezone.utc) + timedelta(seconds=0.7))
    assert (soon.get(**PATIENCE), then.get(**PATIENCE)) == (3, 7)


def expires(facts):
    with pytest.raises(TaskRevokedError):
        add.apply_async((1, 2), countdown=1, expires=0.5).get(**PATIENCE)
    assert add.apply_async((1, 2), expires=60).get(**PATIENCE) == 3


def routes(facts):
    assert shop.where.delay().get(**PATIENCE)["routing_key"] == named("other")
    assert shop.where.apply_async(queue=named("celery")).get(**PATIENCE)["routing_key"] == named("celery")
    new = f"new.{facts.library}.{facts.pool}"
    workers = getattr(facts, "workers", 1)
    app.control.add_consumer(named(new), reply=True, timeout=WAIT, limit=workers)
    assert shop.where.apply_async(queue=named(new)).get(**PATIENCE)["routing_key"] == named(new)
    app.control.cancel_consumer(named(new), reply=True, timeout=WAIT, limit=workers)


def topic_exchange(facts):
    key = named(f"topic.{facts.pool}.{facts.library}")
    notes().delete(key)
    for routing_key in ("news.sport.golf", "news.art", "news.sport"):
        shop.note.apply_async((key, routing_key), exchange=shop.news, routing_key=routing_key, ignore_result=True)
    # news.sport is for both queues; news.sport.golf and news.art for one each.
    _eventually(lambda: sorted(notes().lrange(key, 0, -1)), ["news.art", "news.sport", "news.sport", "news.sport.golf"])


def broadcast(facts):
    key = named(f"everybody.{facts.pool}.{facts.library}")
    notes().delete(key)
    shop.note.apply_async((key, "heard"), queue=named("everybody"), ignore_result=True)
    _eventually(lambda: notes().lrange(key, 0, -1), ["heard"] * getattr(facts, "workers", 1))


def serializers_compression_headers(facts):
    results = {
        (serializer, compression): add.apply_async((1, 2), serializer=serializer, compression=compression)
        for serializer in ("json", "pickle", "yaml", "python")
        for compression in (None, "zlib", "bzip2")
    }
    for how, result in results.items():
        assert result.get(**PATIENCE) == 3, how
    found = shop.request_of.apply_async(({"a": [1, "ü" * 5000]},), headers={"colour": "red"}).get(**PATIENCE)
    assert found["args"] == [{"a": [1, "ü" * 5000]}]
    assert found["headers"]["colour"] == "red"


def priorities(facts):
    assert shop.request_of.apply_async(queue=named("urgent"), priority=7).get(**PATIENCE)["priority"] == 7


def retries_with_backoff(facts):
    assert shop.flaky.delay(2).get(**PATIENCE) == 2


def groups_and_chains(facts):
    assert group(add.s(i, i) for i in range(10))().get(**PATIENCE) == [2 * i for i in range(10)]
    assert chain(add.s(1, 2), add.s(3), add.s(4))().get(**PATIENCE) == 10
    assert add.starmap([(1, 2), (3, 4)]).delay().get(**PATIENCE) == [3, 7]
    assert add.chunks([(i, i) for i in range(6)], 3).delay().get(**PATIENCE) == [[0, 2, 4], [6, 8, 10]]


def chords(facts):
    if app.conf.result_backend.startswith("rpc"):
        with pytest.raises(NotImplementedError, match="does not support chords"):
            chord(add.s(i, i) for i in range(2))(shop.total.s())
        return
    assert chord(add.s(i, i) for i in range(10))(shop.total.s()).get(**PATIENCE) == 90
    nested = chain(group(add.s(1, 1), add.s(2, 2)), shop.total.s(), add.s(1))
    assert nested().get(**PATIENCE) == 7


def remote_control(facts):
    workers = getattr(facts, "workers", 1)
    inspect = app.control.inspect(timeout=WAIT, limit=workers)
    assert len(inspect.ping()) == workers
    assert all("shop.add" in found for found in inspect.registered().values())
    assert all("pool" in found for found in inspect.stats().values())
    names = sorted(queue["name"] for queue in next(iter(inspect.active_queues().values())))
    assert {named("celery"), named("other"), named("sport")} <= set(names)
    later = add.apply_async((1, 1), countdown=60)
    _eventually(lambda: sum(len(found) for found in (inspect.scheduled() or {}).values()), 1)
    later.revoke()
    answers = app.control.rate_limit("shop.fail", "100/s", reply=True, timeout=WAIT, limit=workers)
    assert len(answers) == workers
    assert all("ok" in answer for each in answers for answer in each.values())
    one = next(iter(inspect.ping()))
    assert list(app.control.inspect(destination=[one], timeout=WAIT).ping()) == [one]


def _one_worker_answers(facts):
    """Remote control waits for answers until its time is over: no other fleet gives one."""
    assert len(app.control.inspect(timeout=3).ping()) == 1


def revoke(facts):
    task = add.apply_async((1, 1), countdown=1)
    task.revoke()
    with pytest.raises(TaskRevokedError):
        task.get(**PATIENCE)


def terminate(facts):
    task = shop.doze.delay(60)
    _eventually(lambda: task.state, "STARTED")
    task.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        task.get(**PATIENCE)
    assert add.delay(1, 1).get(**PATIENCE) == 2


def time_limits(facts):
    with pytest.raises(SoftTimeLimitExceeded):
        shop.too_slow.delay().get(**PATIENCE)
    with pytest.raises(TimeLimitExceeded):
        shop.far_too_slow.delay().get(**PATIENCE)


def worker_lost(facts):
    key = named(f"die.{facts.library}")
    notes().delete(key)
    assert shop.die_once.delay(key).get(**PATIENCE) is True
    assert int(notes().get(key)) == 2


def events(facts):
    seen, sent = set(), []

    def handle(event):
        if not sent:  # now it is known that we listen
            sent.append(add.delay(1, 1).id)
        if event.get("uuid", sent[0]) == sent[0]:
            seen.add(event["type"])

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": handle})
        deadline = time.monotonic() + WAIT
        while not {"task-received", "task-started", "task-succeeded", "worker-heartbeat"} <= seen:
            assert time.monotonic() < deadline, seen
            with suppress(TimeoutError):
                receiver.capture(limit=10, timeout=1, wakeup=not sent)


def nothing_mixes(facts):
    """All modules named kombu are of one library, in the producer, the worker, and its children."""
    found = [shop.modules_here(), shop.modules.delay().get(**PATIENCE)]
    found += app.control.inspect(timeout=WAIT, limit=1)._request("modules_of_worker").values()
    assert len(found) == 3
    for modules in found:
        assert {"kombu", "kombu.serialization"} <= modules.keys()
        assert {name.partition(".")[0] for name, _ in modules.values()} == {facts.library}
        assert {file.rpartition(f"/{facts.library}/")[1] for _, file in modules.values()} == {f"/{facts.library}/"}


def results_are_forgotten(facts):
    result = add.delay(1, 1)
    assert result.get(**PATIENCE) == 2
    assert result.state == "SUCCESS"
    result.forget()
    assert add.apply_async((1, 1), ignore_result=True).get(**PATIENCE) is None
