"""Fuzzing what is read out of a Redis: bindings, and envelopes that are marked and put back. Nothing comes out of it.

The input is a routing key, then the members of a binding set, each on a line; the whole of it is an envelope too.
"""

from kombulite._core import MalformedEnvelope, decode_envelope
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.leases import mark_redelivered
from kombulite.brokers.redis.options import Options
from kombulite.brokers.redis.router import Routes
from kombulite.utils.json_codec import codec
from tests.fuzz import fuzz_envelope
from tests.fuzz.engine import Target

keys = Keys(Options(), 0)


def fuzz_one(data: bytes) -> None:
    """Read bindings and an envelope; raises whatever is a defect."""
    key, *members = data.split(b"\n")
    routing_key = key.decode("utf-8", "replace")
    queues = {member.queue for each in members if (member := keys.parse_member(each)) is not None}
    for kind in (None, "direct", "topic", "fanout"):
        assert set(Routes(keys, "e", kind, set(members)).route(routing_key)) <= queues
    marked = mark_redelivered(data)
    try:
        delivery = decode_envelope(codec, data)
    except MalformedEnvelope:
        return
    again = decode_envelope(codec, marked)
    assert again.redelivered
    assert (again.body, again.exchange, again.routing_key) == (delivery.body, delivery.exchange, delivery.routing_key)


SEEDS = [
    "\n".join(["order.eu", *(keys.member(*member) for member in members)]).encode()
    for members in (
        [("direct", "order.eu", "q"), ("direct", "", "q2")],
        [("topic", "order.#", "q"), ("topic", "*.eu", "q2"), ("topic", "order.eu", "é")],
    )
]
SCRAPS = [keys.separator.encode(), b"\n", b"\x06", b"\x16", b"#", b"*", b".", b"\xff"]

target = Target("redis", fuzz_one, [*SEEDS, *fuzz_envelope.seeds()], [*SCRAPS, *fuzz_envelope.SCRAPS])

if __name__ == "__main__":
    target.main(__doc__)
