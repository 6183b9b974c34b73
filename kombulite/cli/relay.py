"""The command ``relay``: what is published at one broker, on to another."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import inf
from time import monotonic
from typing import Any

import click

from kombulite import Connection, Queue, exceptions
from kombulite._client.batching import MessageBatch
from kombulite._core import Delivery
from kombulite.cli.messages import copy_of
from kombulite.cli.options import broker_url, connected_both, finite, named, pairs
from kombulite.message import Message

BATCH = 100  # messages that are confirmed, and acknowledged, together: as many may come twice after a kill
TICK = 0.5  # seconds after which a wait looks whether it should end
RETRY_PAUSE = 1.0  # seconds


@click.command()
@click.argument("source", callback=broker_url)
@click.argument("target", callback=broker_url)
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@click.option("--declare", is_flag=True, help="Declare the queues at the target first.")
@click.option("--exchange", help="Publish to this exchange.  [default: that which the message was published to]")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    callback=finite,
    help="Seconds without a message after which it ends.  [default: it goes on until it is stopped]",
)
@click.option(
    "-o",
    "--transport-option",
    "transport_options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=pairs,
    help="A transport option for the source; may be repeated.",
)
@click.option(
    "--to-transport-option",
    "to_options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=pairs,
    help="A transport option for the target; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the closing figure as JSON, and nothing else.")
def relay(
    source: str,
    target: str,
    names: tuple[str, ...],
    declare: bool,
    exchange: str | None,
    timeout: float | None,
    transport_options: Mapping[str, Any],
    to_options: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Move messages from queues of one broker to another, as they come, until Ctrl-C or SIGTERM.

    Each goes to the exchange and with the routing key that it was published with, and is acknowledged when the target
    has confirmed it. So none is lost, and after a crash at most a hundred come twice. A message that the target has no
    queue for stays where it is, and the command ends with status 1.
    """
    to_options = {"confirm_publish": True, **to_options}
    if source == target and exchange is None:
        raise click.UsageError("source and target are the same broker: --exchange says where its messages go")
    with connected_both(source, transport_options, target, to_options) as (taking, giving):
        work = Relay(taking, giving, names, exchange)
        if declare:
            with named(giving):
                for name in names:
                    Queue(name)(giving).declare()
        try:
            with _stopped_by_signals(work.stop):
                work.run(timeout)
        finally:
            click.echo(json.dumps({"relayed": work.count}) if as_json else f"{work.count:,} relayed")


@contextmanager
def _stopped_by_signals(stop: Any) -> Iterator[None]:
    """Call ``stop`` for the first SIGINT or SIGTERM; the second has its usual effect."""
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                stack.callback(signal.signal, number, before)

                def handle(number: int, frame: Any, before: Any = before) -> None:
                    signal.signal(number, before)
                    stop()

                signal.signal(number, handle)
        yield


class Relay:
    """Moves messages until it is stopped. ``count``: how many the target has confirmed."""

    def __init__(self, taking: Connection, giving: Connection, names: Sequence[str], exchange: str | None) -> None:
        self._taking, self._giving = taking, giving
        self._queues = [Queue(name) for name in names]
        self._exchange = exchange
        self._stopping = threading.Event()
        self._failed_at = -inf
        self.count = 0

    def stop(self) -> None:
        """Have ``run`` end once the messages at hand are moved."""
        self._stopping.set()

    def run(self, timeout: float | None) -> None:
        """Move messages; ``timeout``: seconds without one after which it ends (None: never).

        Raises:
            ClickException: The target has no queue for a message.
        """
        consumer = self._taking.Consumer(
            self._queues,
            on_batch=self._move,
            batch_size=BATCH,
            batch_timeout=0,
            prefetch_count=BATCH,
            auto_declare=False,
        )
        idle_since, before = monotonic(), 0
        with ExitStack() as stack:
            with named(self._taking):
                stack.enter_context(consumer)
            while not self._stopping.is_set():
                try:
                    self._taking.drain_events(timeout=TICK if timeout is None else min(TICK, timeout))
                except TimeoutError:
                    if timeout is not None and monotonic() - idle_since >= timeout:
                        return
                except self._taking.recoverable_connection_errors as error:
                    self._reconnect(self._taking, error)
                if self.count != before:
                    idle_since, before = monotonic(), self.count

    def _move(self, messages: MessageBatch) -> None:
        """Publish messages, and acknowledge those that the target has confirmed."""
        refused = self._publish(messages)
        left = {index for index, _ in refused}
        moved = MessageBatch(each for index, each in enumerate(messages) if index not in left)
        moved.ack()
        self.count += len(moved)
        if refused:
            MessageBatch(messages[index] for index in sorted(left)).requeue(failed=False)
            message, error = messages[refused[0][0]], refused[0][1]
            raise click.ClickException(
                f"{self._giving.as_uri()} does not take a message with the routing key"
                f" {message.delivery_info.get('routing_key')!r}: {error}"
            )

    def _publish(self, messages: MessageBatch) -> list[tuple[int, Exception]]:
        """Publish messages until the target has said what became of each; returns those refused."""
        while True:
            try:
                channel = self._giving.default_channel
                return list(channel.publish_many([self._delivery(each, channel) for each in messages], mandatory=True))
            except self._giving.recoverable_connection_errors as error:
                self._reconnect(self._giving, error)
                if self._stopping.is_set():
                    raise

    def _delivery(self, message: Message, channel: Any) -> Delivery:
        copy, info = copy_of(message, channel), message.delivery_info
        exchange = info.get("exchange") or "" if self._exchange is None else self._exchange
        return Delivery(exchange, info.get("routing_key") or "", copy.properties, copy.body)

    def _reconnect(self, connection: Connection, error: BaseException) -> None:
        """Connect again, as often as it takes; after a pause if the last failure was just before."""
        if monotonic() - self._failed_at < RETRY_PAUSE:  # it connects, and then fails at once
            self._stopping.wait(RETRY_PAUSE)
        self._failed_at = monotonic()
        while not self._stopping.is_set():
            click.echo(f"{connection.as_uri()}: {error}; connecting again", err=True)
            try:
                connection.ensure_connection(max_retries=0)
                return
            except exceptions.OperationalError as failed:
                error = failed
                self._stopping.wait(RETRY_PAUSE)
