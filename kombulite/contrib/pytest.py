"""A pytest plugin: memory brokers for tests, the messages that a test published, and a clock that can be moved.

Installing kombulite installs it (entry point ``pytest11``).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from kombulite.brokers.memory import broker
from kombulite.connection import Connection, add_hook, remove_hook
from kombulite.contrib.recording import PublishedMessage, RecordingHook

__all__ = ["Clock", "kombulite_clock", "kombulite_connection", "kombulite_published", "kombulite_url"]


class Clock:
    """The time of the memory brokers."""

    def advance(self, seconds: float) -> None:
        """Let time pass without waiting: messages and queues that expire within ``seconds`` are expired.

        Args:
            seconds: Seconds, 0 or more.

        Raises:
            ValueError: ``seconds`` is negative.
        """
        broker.advance(seconds)


@pytest.fixture
def kombulite_url() -> Iterator[str]:
    """Return the URL of a memory broker that only this test has."""
    virtual_host = f"test-{uuid.uuid4().hex}"
    yield f"memory://localhost/{virtual_host}"
    broker.drop_broker(virtual_host)


@pytest.fixture
def kombulite_connection(kombulite_url: str) -> Iterator[Connection]:
    """Return a connection to the memory broker of this test; it is released at the end."""
    with Connection(kombulite_url) as connection:
        yield connection


@pytest.fixture
def kombulite_clock() -> Clock:
    """Return the clock of the memory brokers: ``kombulite_clock.advance(3600)``."""
    return Clock()


@pytest.fixture
def kombulite_published() -> Iterator[list[PublishedMessage]]:
    """Return the messages that the test publishes on any connection, in order, without those that a broker refused."""
    hook = RecordingHook()
    add_hook(hook)
    yield hook.published
    remove_hook(hook)
