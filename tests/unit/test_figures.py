"""Limits and times that the manual names are those of the code: a page that says 50 ms of what takes 10 fails here."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from kombulite import Consumer, Producer, aio, compression, pools
from kombulite._client import outgoing, streams
from kombulite.aio import _calls, _session
from kombulite.brokers import amqp, threaded
from kombulite.brokers.amqp import connector, heartbeat_thread, protocol, verbs
from kombulite.brokers.amqp.aio import stream as amqp_on_loops
from kombulite.brokers.redis import blocking, claims, deadlines, handover, held_acks, leases, maintainer, pace, receiver
from kombulite.brokers.redis import stream as redis_stream
from kombulite.brokers.redis.cluster import held_acks as cluster_acks
from kombulite.brokers.redis.cluster import known
from kombulite.brokers.redis.cluster import stream as cluster_stream
from kombulite.brokers.redis.options import Options
from kombulite.brokers.sql import claims as sql_claims
from kombulite.brokers.sql import database, lengths, messages, postgresql, topology
from kombulite.brokers.sql import transport as sql
from kombulite.cli import relay
from kombulite.pidbox import Mailbox
from kombulite.resource import Resource

DOCS = Path(__file__).parent.parent.parent / "docs"
REDIS = Options()
MIB = 1 << 20


def default(function, name):
    return inspect.signature(function).parameters[name].default


def ms(seconds):
    return f"{seconds * 1000:g} ms"


#: A page, what it says, and the values in it.
FIGURES = [
    ("reliability.md", "`max_size` ({}). A full one", default(Producer.batch, "max_size")),
    ("reliability.md", "| {} messages at a time; on AMQP with confirms {} without one |", outgoing.CHUNK, amqp.WINDOW),
    ("reliability.md", "not drained | {:,} events; then", protocol.MAX_WAITING_EVENTS),
    ("reliability.md", "acks on Redis without a reply | {}; then", redis_stream.MAX_POSTED),
    ("reliability.md", "for a consumer that is slow | {:,}; then", claims.MAX_FANOUT),
    ("reliability.md", "reads ahead {} events", amqp.MAX_READ_AHEAD),
    ("reliability.md", "option `read_timeout` | {:g} s, then the connection is lost |", connector.DEFAULT_TIMEOUT),
    ("reliability.md", "or option `write_timeout` | {:g} s |", connector.DEFAULT_TIMEOUT),
    ("reliability.md", "| `close`, `release` | | {:g} s |", amqp.CLOSE_TIMEOUT),
    ("reliability.md", "two intervals; {:g} s |", REDIS.health_check_interval + REDIS.socket_timeout),
    ("reliability.md", "an answer of Redis | option `socket_timeout` | {:g} s |", REDIS.socket_timeout),
    ("reliability.md", "on PostgreSQL | option `socket_timeout` | {:g} s |", postgresql.SOCKET_TIMEOUT),
    ("reliability.md", "all of it | `timeout`, or option `read_timeout` | {:g} s |", _session.DEFAULT_TIMEOUT),
    ("reliability.md", "by the kernel | {:g} s, and up to", connector.DEFAULT_TIMEOUT),
    ("reliability.md", "and up to {} more |", connector.KEEPALIVE_INTERVAL),
    ("reliability.md", "TCP keepalives after {} s", connector.KEEPALIVE_AFTER),
    ("reliability.md", "a producer's connection included | {:g} s |", Resource.block_timeout),
    ("reliability.md", "| `Mailbox.call` | `timeout` | {:g} s after", Mailbox.call_timeout),
    ("reliability.md", "which is {} by default since 4.0", verbs.DELIVERY_LIMIT),
    ("guide/pools.md", "`kombulite.pools.get_limit()`, {};", pools.get_limit()),
    ("guide/pools.md", "waits for `timeout` seconds before, {:g} by default", Resource.block_timeout),
    ("guide/consumers.md", "there are `batch_size` of them ({})", default(Consumer, "batch_size")),
    ("guide/consumers.md", "for `batch_timeout` seconds ({};", default(Consumer, "batch_timeout")),
    ("guide/serialization.md", "may inflate to {} MiB", compression._limits["inflated"] // MIB),
    ("security.md", "| {} MiB, or `kombulite.compression.set_max_inflated`", compression._limits["inflated"] // MIB),
    ("security.md", "| {} MiB for its decoder |", compression.LZMA_MEMORY // MIB),
    ("asyncio.md", "At most {:,} messages are under way", _session.WINDOW),
    ("asyncio.md", "while more than {} MiB is to be written", amqp_on_loops.HIGH_WATER // MIB),
    ("asyncio.md", "Each verb ends by its deadline: {:g} seconds", _session.DEFAULT_TIMEOUT),
    ("asyncio.md", "within {:g} seconds leaves its thread", threaded.CLOSE_TIMEOUT),
    ("asyncio.md", "have `grace` seconds ({:g}) to end", default(aio.Connection.serve, "grace")),
    ("asyncio.md", "deleted at its end, or after {} |", {3600: "an hour"}[_calls.EXPIRES]),
    ("amqp.md", "and after {} at the latest, also", ms(heartbeat_thread.FLUSH_DELAY)),
    ("amqp.md", "limit of failures, {} by default", verbs.DELIVERY_LIMIT),
    ("amqp.md", "saves them every {} at most", {1: "second"}[streams.SAVE_INTERVAL]),
    ("redis.md", "While {} messages or more are at hand", held_acks.MIN_FOLLOWING),
    ("redis.md", "after {} of them or {}, also", held_acks.MAX_HELD, ms(maintainer.FLUSH_DELAY)),
    ("redis.md", "In a cluster up to {} acks wait", cluster_acks.ClusterHeldAcks.max_held),
    ("redis.md", "hold some {} messages ahead", 2 * claims.MAX_CLAIMED),
    ("redis.md", "within {} of a second once Python has freed it", {0.25: "a quarter"}[handover.HELD_INTERVAL]),
    ("redis.md", "lasts `visibility_timeout` seconds** ({})", REDIS.visibility_timeout),
    ("redis.md", "`unacked_restore_throttle` seconds ({})", REDIS.restore_interval),
    ("redis.md", "dropped beyond {:,}", claims.MAX_FANOUT),
    ("redis.md", "| twice `expires`, at least {} s |", deadlines.MIN_OWN_LIFE // 1000),
    ("redis.md", "that the broker named | {} s |", deadlines.EXCLUSIVE_LIFE // 1000),
    ("redis.md", "once more {} seconds later", deadlines.LATE_LIFE // 1000),
    ("redis.md", "more than {0} queues asks those with messages for it {0} at a time", claims.MAX_ASKED),
    ("redis.md", "again pause, up to {},", ms(pace.MAX_BACKOFF)),
    ("redis.md", "pause of {:g} to {} each time", pace.FIRST_PAUSE * 1000, ms(pace.LONGEST_PAUSE)),
    ("redis.md", "as it has lists, {} at most", blocking.MAX_WAITING),
    ("redis.md", "over up to {} connections more", blocking.MAX_WAITING),
    ("redis.md", "message, {} at least, {:g} s (or", ms(receiver.SHORTEST_POLL), receiver.POLLING_INTERVAL),
    ("redis.md", "for `health_check_interval` seconds ({:g})", REDIS.health_check_interval),
    ("redis-cluster.md", "Up to {} acks (tagged", cluster_acks.ClusterHeldAcks.max_held),
    ("redis-cluster.md", "layout: {}) wait", held_acks.MAX_HELD),
    ("redis-cluster.md", "for {} at most ({:g} s if", ms(maintainer.FLUSH_DELAY), cluster_stream.SLOW),
    ("redis-cluster.md", "after {} at first, and", ms(known.MIN_REFRESH_INTERVAL)),
    ("redis-cluster.md", "and every {:g} s as long", known.MAX_REFRESH_INTERVAL),
    ("differences.md", "for {:g} s | {:g} s | |", REDIS.unacked_mutex_expire, leases.MUTEX_LIFE),
    ("sql.md", "at once, at most {}), acks", sql_claims.MAX_CLAIMED_AHEAD),
    ("sql.md", "up to {} of them, deleted in one", sql_claims.MAX_UNFLUSHED_ACKS),
    ("sql.md", "and looks every {:g} seconds besides", database.LOOK_INTERVAL),
    ("sql.md", "commits {:,} messages, or {} MB", outgoing.CHUNK, outgoing.CHUNK_BYTES // MIB),
    ("sql.md", "`get` and `declare` count up to {:,} waiting", sql.MAX_COUNTED),
    ("sql.md", "with less than {:,} messages it never", lengths.MIN_COUNT),
    ("sql.md", "may have a {} more than its limit", {1.01: "hundredth"}[lengths.OVER_LIMIT]),
    ("sql.md", "more than {} of the limit in it", {0.9: "nine tenths"}[lengths.NEAR_LIMIT]),
    ("sql.md", "or {:,} messages claimed or delayed", lengths.MAX_OTHERS),
    ("sql.md", "is purged {:,} messages at a time", topology.DELETED_AT_ONCE),
    ("sql.md", "is released {:,} messages at a time", messages.RELEASED_AT_ONCE),
    ("sql.md", "or {} where it becomes dead letters", messages.DEAD_LETTERS_AT_ONCE),
    ("sql.md", "up to {} messages that were confirmed come again", relay.BATCH),
    ("errors.md", "a routing key of more than {} bytes", outgoing.LONGEST_SHORT_STRING),
]


@pytest.mark.parametrize(("page", "text", "values"), [(page, text, values) for page, text, *values in FIGURES])
def test_a_figure_of_the_manual_is_that_of_the_code(page, text, values):
    said = " ".join((DOCS / page).read_text().split())
    assert text.format(*values) in said
