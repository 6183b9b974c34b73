"""Names in the database: keys, channels, members of binding sets, as kombu has them."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from kombulite._core import PriorityNaming
from kombulite.brokers.redis.options import Options

_UNESCAPED = re.compile(r"[^0-9A-Za-z.#*]")


class Member(NamedTuple):
    """A member of a binding set: a queue and the key it is bound with. ``pattern``: empty but for topic exchanges."""

    routing_key: str
    pattern: str
    queue: str


def topic_pattern(binding_key: str) -> str:
    """Return the regular expression that kombu's publishers match routing keys against, for a topic binding key.

    kombu's form of ``#`` needs the dots beside it: ``a.#`` does not match ``a`` there. Our publishers route by the
    binding key instead.
    """
    words = (
        "[^\\.]+" if word == "*" else ".*?" if word == "#" else word
        for word in _UNESCAPED.sub(_escape, binding_key).split(".")
    )
    return "^" + r"\.".join(words) + "$"


def _escape(found: re.Match[str]) -> str:
    char = found.group()
    return char if char.isalnum() else f"\\{char}"


class Keys:
    """All names of one database; ``prefix`` stands before every key and channel."""

    def __init__(self, options: Options, database: int) -> None:
        self.prefix = options.hash_tag + options.global_keyprefix
        self.separator = options.sep
        self.naming = PriorityNaming(options.priority_steps, options.sep)
        self.unacked = self.prefix + options.unacked_key
        self.unacked_index = self.prefix + options.unacked_index_key
        self.unacked_mutex = self.prefix + options.unacked_mutex_key
        self.deadlines = f"{self.prefix}_kombu.binding_deadlines"
        #: A hash of our own that kombu ignores: exchange -> type.
        self.exchanges = f"{self.prefix}_kombulite.exchanges"
        #: A sorted set of our own: what ends when it is not used -> when (``deadlines``).
        self.own_deadlines = f"{self.prefix}_kombulite.deadlines"
        if options.fanout_prefix is True:
            self._fanout = f"/{database}."
        else:
            self._fanout = (options.fanout_prefix or "").replace("{db}", str(database))
        self._patterns = options.fanout_patterns

    def of(self, name: str) -> Keys:
        """Return the keys among which those of a queue or an exchange are: these, where there is one place for all."""
        return self

    # --- queues

    def lists(self, queue: str) -> tuple[str, ...]:
        """Return the lists of a queue, in the order of service."""
        return self.naming.keys(self.prefix + queue)

    def list_for(self, queue: str, priority: object) -> str:
        """Return the list for messages of that priority."""
        return self.naming.key(self.prefix + queue, priority)

    def record(self, queue: str) -> str:
        """Where we, not kombu, keep how a queue was declared."""
        return f"{self.prefix}_kombulite.queue.{queue}"

    def dead_letters(self, queue: str) -> str:
        """Where elements of a queue's lists go that are no messages."""
        return f"{self.prefix}_kombulite.dead.{queue}"

    def lease_ending(self, queue: str) -> str:
        """How the lease of a message from that queue ends: ``[envelope, "", "queue"]``.

        The default exchange and the queue's name make kombu put it back there and nowhere else.
        """
        return f', "", {json.dumps(queue)}]'

    # --- bindings

    def bindings(self, exchange: str) -> str:
        """Return the set of an exchange's bindings."""
        return f"{self.prefix}_kombu.binding.{exchange}"

    def permanent_bindings(self, exchange: str) -> str:
        """Those of queues that do not expire."""
        return f"{self.prefix}_kombu.binding_permanent.{exchange}"

    def member(self, kind: str, routing_key: str, queue: str) -> str:
        """Return a binding as it stands in the set."""
        pattern = topic_pattern(routing_key) if kind == "topic" else ""
        return self.separator.join((routing_key, pattern, queue))

    def parse_member(self, member: bytes) -> Member | None:
        """Return a binding from the set; None for what is no binding."""
        try:
            parts = member.decode("utf-8").split(self.separator)
        except UnicodeDecodeError:
            return None
        return Member(*parts) if len(parts) == 3 else None

    # --- fanout

    def topic(self, exchange: str, routing_key: str) -> str:
        """Return the channel that a fanout publish goes to."""
        topic = f"{self.prefix}{self._fanout}{exchange}"
        return f"{topic}/{routing_key}" if routing_key and self._patterns else topic

    def compatible_topic(self, exchange: str) -> str:
        """Return the channel of Sentinel clients before kombu 5.4, which did not fill in the database."""
        return f"{self.prefix}/{{db}}.{exchange}"

    def topic_patterns(self, exchange: str, routing_key: str) -> tuple[str, ...]:
        """Return the glob patterns to subscribe to for a binding.

        Without a key it takes everything, as fanout does in AMQP; with one it is a pattern, as kombu has it.
        """
        topic = glob_escaped(f"{self.prefix}{self._fanout}{exchange}")
        if not self._patterns:
            return (topic,)
        if not routing_key:
            return topic, f"{topic}/*"
        return (f"{topic}/{routing_key.replace('#', '*')}",)


def glob_escaped(text: str) -> str:
    """Text that a glob pattern takes as it is."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)
