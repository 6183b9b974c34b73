"""A broker that never stops talking, and never says what it is asked for."""

from __future__ import annotations

import threading

import pytest

from kombulite import exceptions
from tests.amqp import peer as p


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ["beats", "deliveries", "returns", "confirms", "methods"])
def test_a_flood_in_place_of_an_answer_ends_by_its_deadline(peer, what):
    over = threading.Event()

    def script(session):
        session.handshake()
        session.open_channel()
        session.method()
        while not over.is_set():
            try:
                match what:
                    case "beats":
                        session.beat()
                    case "deliveries":
                        session.deliver(1)
                    case "returns":
                        session.give_back(b"x", "q")
                    case "confirms":
                        session.ack(1)
                    case _:
                        session.send(0, p.UNBLOCKED)
            except OSError:
                break

    peer.play(script)
    with peer.connection(transport_options={"read_timeout": 1}) as connection:
        channel = connection.channel()
        try:
            with pytest.raises((exceptions.ConnectionError, exceptions.ChannelError, OSError)):
                channel.queue_declare("q")
        finally:
            over.set()
