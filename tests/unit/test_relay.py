"""``kombulite relay`` where the target connects and fails all the same; its tests on databases are in tests/sql."""

from __future__ import annotations

from kombulite import Connection, Producer, Queue, exceptions
from kombulite.cli.relay import Relay

pytest_plugins = ["kombulite_pytest"]


def test_target_that_connects_and_fails_is_tried_again_after_a_pause(kombulite_url, monkeypatch):
    failures, pauses = [exceptions.ResourceError("disk full")] * 3, []
    with Connection(kombulite_url) as taking, Connection(kombulite_url) as giving:
        for name in ("orders", "moved"):
            Queue(name)(taking).declare()
        Producer(taking, routing_key="orders").publish(1)
        relay = Relay(taking, giving, ["orders"], None)
        channel = giving.default_channel
        publish_many = channel.publish_many

        def publish(*arguments, **options):
            if failures:
                raise failures.pop()
            relay.stop()
            return publish_many(*arguments, **options)

        monkeypatch.setattr(channel, "publish_many", publish)
        monkeypatch.setattr(relay._stopping, "wait", pauses.append)
        relay.run(20)
    assert relay.count == 1
    assert len(pauses) == 2  # not before the first try
