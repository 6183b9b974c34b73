"""What our transports raise is caught by the names of the drivers' errors too, and theirs are understood."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import subprocess
import sys

import amqp.exceptions
import pytest
import redis.exceptions

from kombulite import Connection, exceptions
from kombulite.brokers.redis.errors import connection_lost, driver_error, reply_error

NAMES = [
    name
    for name, cls in vars(amqp.exceptions).items()
    if name != "AMQPDeprecationWarning"
    and name[0].isupper()
    and isinstance(cls, type)
    and cls.__module__ == amqp.exceptions.__name__
]


@pytest.mark.parametrize("name", NAMES)
def test_our_errors_are_py_amqp_s_too(name):
    ours, theirs = getattr(exceptions, name), getattr(amqp.exceptions, name)
    assert issubclass(ours, theirs)
    if issubclass(ours, exceptions.AMQPError):
        error = ours("gone", (50, 10), "Queue.declare", 404)
        original = theirs("gone", (50, 10), "Queue.declare", 404)
        for attribute in ("args", "reply_code", "reply_text", "method_sig", "method_name", "method", "code"):
            assert getattr(error, attribute) == getattr(original, attribute), attribute


def test_a_missing_queue_is_caught_by_the_driver_s_name():
    with Connection("memory://") as connection:
        with pytest.raises(amqp.exceptions.NotFound):
            connection.channel().queue_declare("none of that name", passive=True)


def test_errors_of_the_driver_count_as_those_of_the_connection():
    with Connection("memory://") as connection:
        assert amqp.exceptions.ChannelError in connection.channel_errors
        calls = []

        def fail():
            calls.append(1)
            if len(calls) == 1:
                raise amqp.exceptions.RecoverableConnectionError("lost")
            return "done"

        assert connection.ensure(connection, fail, max_retries=2, interval_start=0)() == "done"


def test_importing_kombulite_needs_no_driver_and_both_orders_work():
    for first, second in (("amqp.exceptions", "kombulite"), ("kombulite", "amqp.exceptions")):
        program = (
            f"import sys, {first}\n"
            f"assert {first == 'amqp.exceptions'} or 'amqp' not in sys.modules\n"
            f"import {second}, kombulite.exceptions, amqp.exceptions\n"
            "assert issubclass(kombulite.exceptions.NotFound, amqp.exceptions.NotFound)\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("error", "ours", "theirs"),
    [
        (reply_error("READONLY no"), exceptions.RecoverableConnectionError, redis.exceptions.ReadOnlyError),
        (reply_error("WRONGTYPE no"), exceptions.ChannelError, redis.exceptions.ResponseError),
        (
            driver_error(redis.exceptions.TimeoutError("late")),
            OSError,
            redis.exceptions.TimeoutError,
        ),
        (connection_lost("gone"), exceptions.RecoverableConnectionError, redis.exceptions.ConnectionError),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_errors_of_redis_are_caught_by_either_name(error, ours, theirs):
    assert isinstance(error, ours)
    assert isinstance(error, theirs)
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, ours)
    assert str(copy) == str(error)


def test_errors_of_sockets_are_of_the_operating_system_s_class_too():
    for raised in (ConnectionRefusedError(111, "refused"), TimeoutError("late"), socket.gaierror(-2, "no name")):
        error = exceptions.socket_error(raised)
        for each in (error, copy.copy(error)):
            assert isinstance(each, exceptions.RecoverableConnectionError)
            assert isinstance(each, type(raised))
            assert str(each) == str(raised)
            assert each.errno == raised.errno
        assert type(pickle.loads(pickle.dumps(error))) is type(error)


def test_a_missing_extra_is_named():
    program = (
        "import sys\n"
        "sys.modules['hiredis'] = None\n"
        "import kombulite\n"
        "try:\n"
        "    kombulite.Connection('redis://').transport\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True, env=os.environ)
    assert b"kombulite[redis]" in done.stdout


@pytest.mark.parametrize(
    "classes",
    [
        (exceptions.RecoverableConnectionError, exceptions.RecoverableConnectionError),
        (exceptions.ConnectionError, exceptions.RecoverableConnectionError),
        (exceptions.RecoverableConnectionError, type(exceptions.socket_error(ConnectionResetError("reset")))),
        (type(exceptions.socket_error(TimeoutError("late"))), OSError, exceptions.RecoverableConnectionError),
    ],
)
def test_classes_that_have_ancestors_in_common_are_combined(classes):
    """A server that goes while it greets: the driver's error has one of ours as its cause."""
    error = exceptions.combined(*classes)("gone")
    for cls in classes:
        assert all(isinstance(error, part) for part in vars(cls).get("parts", (cls,)))
    assert type(error).__name__ == classes[0].__name__
    for another in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert str(another) == str(error)
        assert isinstance(another, exceptions.ConnectionError)


def test_error_of_ours_may_be_the_cause_of_a_drivers():
    for cause in (
        exceptions.socket_error(ConnectionResetError("reset")),
        exceptions.socket_error(TimeoutError("late")),
    ):
        try:
            try:
                raise cause
            except Exception as ours:
                raise redis.exceptions.ConnectionError("the greeting was cut off") from ours
        except redis.exceptions.ConnectionError as error:
            found = driver_error(error)
        assert isinstance(found, exceptions.RecoverableConnectionError)
        assert isinstance(found, redis.exceptions.ConnectionError)
        assert isinstance(found, OSError)
