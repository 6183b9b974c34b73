"""What a client answers the broker by itself, while another thread of it writes: against a scripted peer."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest

from kombulite import exceptions
from tests.amqp import peer as p
from tests.servers import wait_until

LARGE = b"x" * 15_000_000  # more than the kernel buffers for a peer that does not read


@pytest.mark.parametrize("answered", ["cancel", "channel.close", "channel.flow"])
def test_what_the_broker_wants_answered_waits_for_no_thread_that_writes(peer, answered):
    """Such a broker reads no more until it is read from. So the reader reads on, and its answer goes when it can."""
    delivered = threading.Event()
    blocked = threading.Event()

    def script(session):
        session.handshake()
        channels = [session.open_channel() for _ in range(3)]
        kept, ended = session.consume(), session.consume()
        assert blocked.wait(p.PATIENCE)
        if answered == "cancel":
            session.send(channels[1], p.CANCEL, "sb", ended, True)
        elif answered == "channel.close":
            session.close_channel(404, "NOT_FOUND", p.CONSUME, channels[1])
        else:
            session.send(channels[1], p.FLOW, "b", True)
        session.deliver(1, consumer_tag=kept, channel=channels[0])
        assert delivered.wait(p.PATIENCE)
        publish = session.expect(p.PUBLISH)
        assert publish.body == LARGE
        answer = {"cancel": p.CANCEL, "channel.close": p.CHANNEL_CLOSE_OK, "channel.flow": p.FLOW_OK}[answered]
        assert session.expect(answer).channel == channels[1]
        session.farewell()

    peer.play(script)
    options = {"write_timeout": 500, "read_timeout": p.PATIENCE}
    with peer.connection(transport_options=options) as connection:
        first, second, third = (connection.channel() for _ in range(3))
        first.basic_consume("kept", callback=lambda message: delivered.set(), no_ack=True)
        second.basic_consume("ended", callback=print, no_ack=True)
        stream = connection.transport._opened().stream
        publisher = threading.Thread(
            target=third.basic_publish, args=(third.prepare_message(LARGE),), kwargs={"routing_key": "q"}
        )
        publisher.start()
        wait_until(lambda: stream.writer.unsent, p.PATIENCE, "the publish does not wait")
        blocked.set()
        deadline = time.monotonic() + p.PATIENCE
        try:
            while not delivered.is_set():
                with suppress(exceptions.ConsumerCancelled, exceptions.NotFound):
                    connection.drain_events(timeout=max(deadline - time.monotonic(), 0))
        finally:
            delivered.set()  # so that the script ends
        publisher.join(p.PATIENCE)
        assert not publisher.is_alive()
