"""Other people's programs in a round each, on either library: they print what they see, which is the same for both.

The packages are not of the test set-up, because they pin Celery and Django: `pip install --no-deps celery-batches
django-celery-beat django-timezone-field cron-descriptor python-crontab`, `pip install oslo.messaging
pulsar-galaxy-lib`.
"""

from __future__ import annotations

import importlib.util
import subprocess

import pytest

from tests.celery.fleet import LIBRARIES, TIMEOUT, Process
from tests.conftest import missing
from tests.servers import tail

BATCHES = """
import os, sys
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery_batches import Batches

app = Celery("application", broker=sys.argv[1], backend="cache+memory://")
app.conf.worker_hijack_root_logger = False
sizes = []

@app.task(base=Batches, flush_every=3, flush_interval=1)
def add(requests):
    sizes.append(len(requests))
    for each in requests:
        app.backend.mark_as_done(each.id, sum(each.args), request=each)

with start_worker(app, pool="threads", perform_ping_check=False, loglevel="ERROR", shutdown_timeout=60):
    results = [add.delay(number, 1) for number in range(7)]
    print([result.get(timeout=30) for result in results], sum(sizes), max(sizes))
"""

DATABASE_BEAT = """
import sys, threading
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django_celery_beat"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "schedule"}},
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    SECRET_KEY="key",
)
django.setup()
from celery import Celery
from celery.beat import EmbeddedService
from celery.contrib.testing.worker import start_worker
from django.core.management import call_command
from django_celery_beat.models import IntervalSchedule, PeriodicTask

call_command("migrate", verbosity=0)
app = Celery("application", broker=sys.argv[1], backend="cache+memory://")
app.conf.update(worker_hijack_root_logger=False, beat_max_loop_interval=1)
seen = threading.Semaphore(0)

@app.task(name="tick")
def tick(number):
    seen.release()

often = IntervalSchedule.objects.create(every=300000, period=IntervalSchedule.MICROSECONDS)
route = {"queue": "celery", "exchange": "celery", "routing_key": "celery", "headers": '{"h": 1}', "priority": 3}
PeriodicTask.objects.create(interval=often, name="tick", task="tick", args="[3]", **route)
with start_worker(app, pool="threads", perform_ping_check=False, loglevel="ERROR", shutdown_timeout=60):
    service = EmbeddedService(app, thread=True, scheduler_cls="django_celery_beat.schedulers:DatabaseScheduler")
    service.daemon = True
    service.start()
    print([seen.acquire(timeout=30) for _ in range(3)])
    service.stop()
"""

OPENSTACK = """
import sys, threading
import oslo_messaging
from oslo_config import cfg
from oslo_messaging.rpc.dispatcher import DefaultRPCAccessPolicy

conf = cfg.CONF
conf([], default_config_files=[])
transport = oslo_messaging.get_rpc_transport(conf, url=sys.argv[1])
noted, told = threading.Event(), threading.Event()

class Endpoint:
    target = oslo_messaging.Target(version="1.0")

    def add(self, context, a, b):
        return a + b

    def fail(self, context):
        raise ValueError("no")

    def note(self, context, what):
        noted.set()

class Listener:
    def info(self, context, publisher_id, event_type, payload, metadata):
        print(event_type, payload)
        told.set()

target = oslo_messaging.Target(topic="test", server="server")
options = {"executor": "threading", "access_policy": DefaultRPCAccessPolicy}
server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()], **options)
server.start()
client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="test", version="1.0"))
within = client.prepare(timeout=30)
print([within.call({}, "add", a=number, b=2) for number in range(5)])
try:
    within.call({}, "fail")
except Exception as error:
    print(type(error).__name__)
client.prepare(fanout=True).cast({}, "note", what="x")
print(noted.wait(30))
server.stop()
server.wait()
notes = oslo_messaging.get_notification_transport(conf, url=sys.argv[1])
to = [oslo_messaging.Target(topic="notes")]
listener = oslo_messaging.get_notification_listener(notes, to, [Listener()], executor="threading")
listener.start()
notifier = oslo_messaging.Notifier(notes, driver="messaging", publisher_id="p", topics=["notes"])
notifier.info({}, "event", {"a": 1})
print(told.wait(30))
listener.stop()
listener.wait()
transport.cleanup()
notes.cleanup()
"""

GALAXY = """
import sys, threading
from pulsar.client.amqp_exchange import PulsarExchange

done = threading.Event()
bodies = []

class Check:
    def __bool__(self):
        return not done.is_set()

def receive(body, message):
    bodies.append(body)
    message.ack()
    done.set()

exchange = PulsarExchange(sys.argv[1], "manager")
reader = threading.Thread(target=exchange.consume, args=("setup", receive), kwargs={"check": Check()}, daemon=True)
reader.start()
for _ in range(30):  # its queue may not be there yet
    exchange.publish("setup", {"job_id": "1", "files": [1, 2]})
    if done.wait(1):
        break
print(done.is_set(), bodies[0])
reader.join(30)
print(reader.is_alive())
"""

CASES = {
    "celery-batches": ("celery_batches", BATCHES, ("redis", "amqp")),
    "django-celery-beat": ("django_celery_beat", DATABASE_BEAT, ("redis", "amqp")),
    "oslo.messaging": ("oslo_messaging", OPENSTACK, ("kombu+memory://", "rabbit")),
    "pulsar": ("pulsar.client", GALAXY, ("memory://", "amqp", "redis")),
}


@pytest.mark.soak
@pytest.mark.parametrize(
    ("package", "broker"), [(package, broker) for package, (_, _, brokers) in CASES.items() for broker in brokers]
)
def test_a_program_sees_the_same_on_both_libraries(request, tmp_path, package, broker):
    module, program, _ = CASES[package]
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        missing(request, f"{package} is not installed", by_hand=True)
    if "://" not in broker:
        broker = request.getfixturevalue("redis_url" if broker == "redis" else "amqp_url")
    if package == "oslo.messaging":
        broker = broker.replace("amqp://", "rabbit://")
    printed = []
    for library in LIBRARIES:
        (tmp_path / library).mkdir()
        log = tmp_path / library / "program.log"
        process = Process(library, {}, log, "-c", program, broker, stdout=subprocess.PIPE)
        try:
            output, _ = process.process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        assert process.process.returncode == 0, tail(log)
        printed.append(output)
    assert printed[0] == printed[1]
    assert "True" in printed[1] or "[1, 2, 3, 4, 5, 6, 7] 7 3" in printed[1]
    assert "False" not in printed[1] or package == "pulsar"
