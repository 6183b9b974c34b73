"""Celery from async code: tasks sent and results awaited on an event loop, with genuine kombu and in its place."""

from __future__ import annotations

import json

import pytest

#: On genuine kombu not in memory: the worker would have kombu's, the client kombulite's.
CASES = [
    ("memory", "kombulite"),
    ("redis", "kombulite"),
    ("redis", "kombu"),
    ("amqp-rpc", "kombulite"),
    ("amqp-rpc", "kombu"),
    *(pytest.param(*each, marks=pytest.mark.soak) for each in [("redis-rpc", "kombulite"), ("redis-rpc", "kombu")]),
    *(pytest.param(*each, marks=pytest.mark.soak) for each in [("amqp", "kombulite"), ("amqp", "kombu")]),
]

#: The worker is a thread of the program: ``loop_is_free`` counts the turns of the loop meanwhile.
PROLOGUE = """
import asyncio, json, warnings
from datetime import datetime, timedelta, timezone
from celery import chain, group, signals
from celery.contrib.testing.worker import start_worker
from kombulite.contrib.celery import Client, close, send
from shop import SPACE, add, app, fail, named
import shop

@app.task(ignore_result=True)
def forget():
    pass

@app.task(bind=True)
def request(self):
    return {"headers": self.request.headers, "queue": self.request.delivery_info["routing_key"], "id": self.request.id}

def run(main):
    async def whole():
        try:
            return await asyncio.wait_for(main(), 50)
        finally:
            await close()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

    warnings.simplefilter("error", ResourceWarning)
    with start_worker(app, 2, "threads", perform_ping_check=False, loglevel="ERROR", shutdown_timeout=60):
        print(json.dumps(asyncio.run(whole(), debug=True)))
"""

EVERYTHING = (
    PROLOGUE
    + """
async def main():
    seen = []
    signals.before_task_publish.connect(lambda sender, **_: seen.append(sender), weak=False)
    simple = await send(add.s(1, 2))
    late = await send(add.s(3, 4), countdown=0.2)
    eta = await send(add.s(5, 6), eta=datetime.now(timezone.utc) + timedelta(seconds=0.2))
    elsewhere = await send(request.s(), queue=named("other"), headers={"color": "red"}, task_id="mine" + SPACE)
    failing = await send(fail.s("on purpose"))
    ignored = await send(forget.s())
    linked = await send(chain(add.s(1, 1), add.s(10), add.s(100)))
    broken = await send(chain(fail.s("at once"), add.s(1)))
    others = await asyncio.gather(*(send(add.s(n, n)) for n in range(50)))
    packed = await send(add.s("x" * 5000, "y"), serializer="pickle", compression="zlib")
    try:
        await failing.get(timeout=30)
    except ValueError as error:
        raised = str(error)
    try:
        await broken.get(timeout=30)
    except ValueError as error:
        raised_in_chain = str(error)
    try:
        await send(group(add.s(1, 1), add.s(2, 2)))
    except TypeError as error:
        refused = str(error)[:20]
    for wrong in (add, "shop.add", None):
        try:
            await send(wrong)
        except TypeError as error:
            assert str(error).startswith("signature must be of"), error
        else:
            raise AssertionError(wrong)
    found = await elsewhere.get(timeout=30)
    return {
        "simple": [await simple.get(timeout=30), simple.state, simple.ready(), simple.result],
        "late": await late.get(timeout=30),
        "eta": await eta.get(timeout=30),
        "elsewhere": [found["queue"] == named("other"), found["id"] == "mine" + SPACE, found["headers"]["color"]],
        "failing": [raised, failing.state, str(await failing.get(propagate=False))],
        "ignored": [await ignored.get(), ignored.ignored],
        "chain": await linked.get(timeout=30),
        "broken": raised_in_chain,
        "others": [await each.get(timeout=30) for each in others] == [2 * n for n in range(50)],
        "packed": len(await packed.get(timeout=30)),
        "refused": refused,
        "signals": seen.count("shop.add") >= 50,
    }
run(main)
"""
)


@pytest.mark.parametrize(("fleet", "library"), CASES, indirect=["fleet"])
def test_tasks_are_sent_and_their_results_awaited(fleet, library):
    found = json.loads(fleet.run(library, EVERYTHING).splitlines()[-1])
    assert found == {
        "simple": [3, "SUCCESS", True, 3],
        "late": 7,
        "eta": 11,
        "elsewhere": [True, True, "red"],
        "failing": ["on purpose", "FAILURE", "on purpose"],
        "ignored": [None, True],
        "chain": 112,
        "broken": "at once",
        "others": True,
        "packed": 5001,
        "refused": "signature must be of",
        "signals": True,
    }


SAME_MESSAGE = (
    PROLOGUE
    + """
from kombu import Connection

def received(queue):
    with app.connection_for_read() as connection:
        message = queue(connection.default_channel).get(no_ack=True)
        properties = {name: value for name, value in message.properties.items()
                      if name in ("correlation_id", "priority", "delivery_mode", "expiration", "delivery_info")}
        headers = {**message.headers, "origin": None, "expires": None, "eta": None}
        return [message.payload, headers, properties, message.content_type, message.content_encoding]

async def main():
    queue = app.amqp.queues.select_add(named("nobody"))
    options = dict(queue=queue, task_id="t" + SPACE, priority=3, headers={"a": 1}, expires=60, countdown=5,
                   link=add.s(1), time_limit=9, shadow="other")
    signature = add.s(1, y=2)
    await asyncio.to_thread(signature.apply_async, **options)
    theirs = await asyncio.to_thread(received, queue)
    await send(signature, **options)
    ours = await asyncio.to_thread(received, queue)
    return [ours, theirs]

async def whole():
    try:
        return await main()
    finally:
        await close()

print(json.dumps(asyncio.run(whole()), default=str))
"""
)


@pytest.mark.parametrize("fleet", ["redis", "amqp"], indirect=True)
def test_the_message_is_the_one_that_celery_sends(fleet):
    ours, theirs = json.loads(fleet.run("kombu", SAME_MESSAGE).splitlines()[-1])
    assert ours == theirs


WEB = (
    PROLOGUE
    + """
import httpx2, sys
from contextlib import asynccontextmanager

async def ask(application, path):
    transport = httpx2.ASGITransport(app=application)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        answers = await asyncio.gather(*(client.get(f"{path}/{n}/{n}") for n in range(20)))
        return [(each.status_code, each.json()) for each in answers]

def fastapi_application():
    from fastapi import FastAPI

    web = FastAPI()

    @web.get("/add/{x}/{y}")
    async def view(x: int, y: int):
        result = await send(add.s(x, y))
        return {"id": result.id, "sum": await result.get(timeout=30)}

    return web

def django_application():
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import JsonResponse
    from django.urls import path

    async def view(request, x, y):
        result = await send(add.s(x, y))
        return JsonResponse({"id": result.id, "sum": await result.get(timeout=30)})

    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="test", DEBUG=False)
    globals()["urlpatterns"] = [path("add/<int:x>/<int:y>", view)]
    django.setup()
    return get_asgi_application()

async def main():
    answers = await ask(MAKE(), "/add")
    return [all(status == 200 for status, _ in answers), [answer["sum"] for _, answer in answers]]

"""
)


@pytest.mark.parametrize("fleet", ["redis", "amqp-rpc"], indirect=True)
@pytest.mark.parametrize("framework", ["fastapi", "django"])
def test_web_views_send_and_await(fleet, framework):
    pytest.importorskip(framework)
    program = WEB.replace("MAKE()", f"{framework}_application()") + "run(main)\n"
    found = json.loads(fleet.run("kombulite", program).splitlines()[-1])
    assert found == [True, [2 * n for n in range(20)]]


PATIENCE = (
    PROLOGUE
    + """
import celery.exceptions

async def main():
    result = await send(shop.add.s(1, 1), countdown=1.5)
    turns = 0
    async def turn():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)
    spinning = asyncio.create_task(turn())
    try:
        await result.get(timeout=0.05)
    except celery.exceptions.TimeoutError:
        in_time = False
    waiting = asyncio.create_task(result.get(timeout=30))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.wait([waiting])
    value = await result.get(timeout=30)
    spinning.cancel()
    async with Client(app) as client:
        own = await (await client.send(add.s(2, 2))).get(timeout=30)
    app.conf.task_always_eager = True
    eager = await (await send(add.s(3, 3))).get()
    return [in_time, waiting.cancelled(), value, turns > 100, own, eager]

run(main)
"""
)


@pytest.mark.parametrize("fleet", ["memory", "redis", "redis-rpc"], indirect=True)
def test_waiting_ends_in_time_or_cancelled_and_does_not_block_the_loop(fleet):
    found = json.loads(fleet.run("kombulite", PATIENCE).splitlines()[-1])
    assert found == [False, True, 2, True, 4, 6]


POLLING = """
import asyncio, json, threading
from kombulite.contrib.celery import Results

class Backend:
    def __init__(self):
        self.asked, self.most, self.lock = 0, 0, threading.Lock()
        self.done = threading.Event()

    def get_task_meta(self, task_id):
        with self.lock:
            self.asked += 1
            self.most = max(self.most, self.asked)
        is_done = self.done.wait(0.2)
        with self.lock:
            self.asked -= 1
        return {"status": "SUCCESS" if is_done else "PENDING", "result": 3}

async def main():
    backend = Backend()
    results = Results(backend)
    coming = results.future("t")
    for _ in range(5):
        await results.look(["t"])
        await asyncio.sleep(0)
    backend.done.set()
    meta = await asyncio.wait_for(coming, 20)
    await results.close()
    return [meta["result"], backend.most]

print(json.dumps(asyncio.run(main())))
"""


@pytest.mark.parametrize("fleet", ["memory"], indirect=True)
def test_a_backend_is_asked_once_at_a_time_however_often_a_result_is_awaited(fleet):
    assert json.loads(fleet.run("kombulite", POLLING).splitlines()[-1]) == [3, 1]


FAILING = """
import asyncio, json
from kombulite import exceptions
from kombulite.contrib.celery import AsyncResult, Results
from shop import app

class Backend:
    def __init__(self):
        self.is_broken = True

    def get_task_meta(self, task_id):
        if task_id == "bad" and self.is_broken:
            raise OSError("cannot be read")
        done = {"status": "SUCCESS", "result": task_id, "traceback": None}
        return {"status": "PENDING", "result": None} if self.is_broken else done

async def main():
    backend = Backend()
    results = Results(backend)
    made = {task_id: AsyncResult(task_id, app=app) for task_id in ("good", "bad")}
    for each in made.values():
        each.await_with(results)
    good = asyncio.create_task(made["good"].get(timeout=20))
    await asyncio.sleep(0)
    seen = []
    try:
        await made["bad"].get(timeout=20)
    except OSError as error:
        seen.append(str(error))
    seen.append(good.done())
    backend.is_broken = False
    seen += [await good, await made["bad"].get(timeout=20)]
    backend.is_broken = True
    never = AsyncResult("never", app=app)
    never.await_with(results)
    waiting = asyncio.create_task(never.get())
    while "never" not in results._asked:
        await asyncio.sleep(0)
    await results.close()
    try:
        await asyncio.wait_for(waiting, 20)
    except exceptions.RecoverableConnectionError as error:
        seen.append(str(error))
    return seen

print(json.dumps(asyncio.run(main(), debug=True)))
"""


@pytest.mark.parametrize("fleet", ["memory"], indirect=True)
def test_a_backend_that_fails_for_one_task_fails_no_other_and_none_waits_for_one_that_is_closed(fleet):
    seen = json.loads(fleet.run("kombulite", FAILING).splitlines()[-1])
    assert seen == ["cannot be read", False, "good", "bad", "no more results come: the client is closed"]
