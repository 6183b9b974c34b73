"""An application for Celery. It knows nothing of kombulite; the environment says which broker it has."""

import json
import os
import signal
import sys
import time

from celery import Celery
from celery.worker.control import inspect_command
from kombu import Exchange, Queue
from kombu.common import Broadcast
from kombu.serialization import register

SPACE = os.environ["SHOP_SPACE"]  # goes before all names, so that fleets do not meet
BROKER = os.environ["SHOP_BROKER"]
BROKER = json.loads(BROKER) if BROKER.startswith("[") else BROKER
IS_QUORUM = os.environ.get("SHOP_QUEUES") == "quorum"

register("python", repr, eval, "application/x-python", "utf-8")


def named(name: str) -> str:
    return f"{SPACE}.{name}"


news = Exchange(named("news"), "topic")
arguments = {"x-queue-type": "quorum"} if IS_QUORUM else {}

app = Celery("shop", broker=BROKER, backend=os.environ["SHOP_BACKEND"])
app.conf.update(
    accept_content=["json", "pickle", "yaml", "python"],
    result_accept_content=["json", "pickle", "yaml"],
    broker_connection_retry_on_startup=True,
    control_exchange=named("pidbox"),
    event_exchange=named("celeryev"),
    event_queue_prefix=named("celeryev"),
    broker_transport_options=json.loads(os.environ.get("SHOP_OPTIONS", "{}")),
    result_expires=600,
    task_default_queue=named("celery"),
    task_default_exchange=named("celery"),
    task_default_routing_key=named("celery"),
    task_default_queue_type="quorum" if IS_QUORUM else "classic",
    worker_detect_quorum_queues=True,
    task_create_missing_queue_type="quorum" if IS_QUORUM else "classic",
    task_queues=[
        Queue(named("celery"), Exchange(named("celery")), named("celery"), queue_arguments=arguments),
        Queue(named("other"), Exchange(named("other")), named("other"), queue_arguments=arguments),
        Queue(named("sport"), news, "news.sport.#", queue_arguments=arguments),
        Queue(named("any"), news, "news.*", queue_arguments=arguments),
    ],
    task_routes={"shop.where": {"queue": named("other")}},
    task_track_started=True,
    task_reject_on_worker_lost=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_hijack_root_logger=False,
    beat_schedule={"often": {"task": "shop.note", "schedule": 0.5, "args": (named("beat"), 1)}},
)
if not IS_QUORUM:
    app.conf.task_queues += [
        Queue(named("urgent"), Exchange(named("urgent")), named("urgent"), max_priority=9),
        Broadcast(named("everybody")),
    ]
if not str(BROKER).startswith("sqla+"):  # whose options all go to SQLAlchemy, which refuses what it does not know
    app.conf.broker_transport_options["visibility_timeout"] = int(os.environ.get("SHOP_LEASE", "3600"))
if "redis" in BROKER:
    app.conf.broker_transport_options["priority_steps"] = list(range(10))


def notes():
    """A list of what tasks note down, in Redis."""
    import redis

    return redis.Redis.from_url(os.environ["SHOP_NOTES"], decode_responses=True)


@app.task
def add(x, y):
    return x + y


@app.task
def total(numbers):
    return sum(numbers)


@app.task(bind=True)
def where(self):
    info = self.request.delivery_info
    return {"routing_key": info["routing_key"], "exchange": info["exchange"], "host": self.request.hostname}


@app.task(bind=True)
def request_of(self, *args):
    return {"headers": self.request.headers, "args": list(args), "priority": self.request.delivery_info["priority"]}


@app.task
def fail(message):
    raise ValueError(message)


@app.task(
    bind=True, autoretry_for=(ValueError,), retry_backoff=0.2, retry_backoff_max=1, retry_jitter=False, max_retries=4
)
def flaky(self, failures):
    if self.request.retries < failures:
        raise ValueError("not yet")
    return self.request.retries


@app.task
def note(key, value):
    notes().rpush(key, value)


@app.task
def doze(seconds, key=None):
    time.sleep(seconds)
    if key is not None:
        notes().rpush(key, "woke")
    return seconds


@app.task(acks_late=True)
def late(seconds, key, value):
    notes().rpush(f"{key}.begun", value)
    time.sleep(seconds)
    notes().rpush(key, value)
    return value


@app.task(acks_late=True)
def gated(key, value):
    """Begin, and end when the gate is open."""
    notes().rpush(f"{key}.begun", value)
    while not notes().exists(f"{key}.gate"):
        time.sleep(0.05)
    notes().rpush(key, value)


@app.task(acks_late=True, bind=True)
def die_once(self, key):
    if notes().incr(key) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return self.request.delivery_info["redelivered"]


@app.task(soft_time_limit=1)
def too_slow():
    time.sleep(30)


@app.task(time_limit=1)
def far_too_slow():
    time.sleep(30)


@app.task
def modules():
    """Where the modules named kombu are from, in the process that runs tasks."""
    return modules_here()


@inspect_command()
def modules_of_worker(state):
    """The same for the process that consumes."""
    return modules_here()


def modules_here():
    return {
        name: [module.__name__, getattr(module, "__file__", None)]
        for name, module in list(sys.modules.items())
        if name.split(".")[0] == "kombu"
    }
