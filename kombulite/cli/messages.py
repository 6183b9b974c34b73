"""Commands about messages: publish, consume, tail, move."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from kombulite import Connection, Queue
from kombulite._client.batching import MessageBatch
from kombulite._client.dead_letters import without_delivery_headers
from kombulite._core import KEYWORD_PROPERTIES
from kombulite.cli.display import printable
from kombulite.cli.options import FAILED, broker_options, broker_url, connected, connected_both, finite, named, pairs
from kombulite.message import Message

SETTLING_TIME = 0.3  # seconds in which a broker says that nobody wanted a message
PREFETCH = 100


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Return a bar on the terminal, if the standard error is one; gives what to call for each step."""
    console = Console(stderr=True)
    if not console.is_terminal:  # Progress(disable=True) of rich 13.0 prints an empty line
        yield lambda: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


# --- publish ----------------------------------------------------------------------------------------------------


@click.command()
@click.argument("bodies", metavar="[BODY]...", nargs=-1)
@click.option("-q", "--queue", help="Publish to this queue.")
@click.option("--exchange", default="", help="Publish to this exchange.  [default: the default exchange]")
@click.option("-k", "--routing-key", help="The routing key.  [default: the queue's name]")
@click.option("--declare", is_flag=True, help="Declare the queue first.")
@click.option("--text", is_flag=True, help="Publish text as it is.  [default: JSON, where it is that]")
@click.option("-H", "--header", "headers", metavar="NAME=VALUE", multiple=True, callback=pairs, help="A header.")
@click.option("--priority", type=click.IntRange(0, 255), default=0, help="The priority.")
@click.option("--expiration", type=click.FloatRange(min=0), callback=finite, help="Seconds after which it is gone.")
@click.option("--transient", is_flag=True, help="Need not survive a restart of the broker.")
@broker_options
@click.pass_context
def publish(
    ctx: click.Context,
    /,
    bodies: tuple[str, ...],
    queue: str | None,
    exchange: str,
    routing_key: str | None,
    declare: bool,
    text: bool,
    headers: Mapping[str, Any],
    transient: bool,
    broker: str,
    transport_options: Mapping[str, Any],
    as_json: bool,
    **properties: Any,
) -> None:
    """Publish messages: the bodies given, or the lines of the standard input.

    The exit status is 1 if no queue took one of them.
    """
    routing_key = queue if routing_key is None else routing_key
    if routing_key is None and not exchange:
        raise click.UsageError("say where to: --queue, or --exchange and --routing-key")
    if declare and not queue:
        raise click.UsageError("--declare needs --queue")
    lines: Iterator[str] = iter(bodies) if bodies else (line.rstrip("\n") for line in sys.stdin)
    returned: list[Any] = []
    published = 0
    with connected(broker, transport_options) as connection:
        if declare and queue:
            Queue(queue)(connection).declare()
        producer = connection.Producer(on_return=lambda *returned_message: returned.append(returned_message))
        with progress("published", len(bodies) or None) as advance:
            for line in lines:
                producer.publish(
                    line if text else _as_json(line),
                    exchange=exchange,
                    routing_key=routing_key or "",
                    headers=headers,
                    delivery_mode="transient" if transient else "persistent",
                    mandatory=True,
                    **properties,
                )
                published += 1
                advance()
        _settle(connection)
        if as_json:
            click.echo(json.dumps({"published": published, "unroutable": len(returned)}))
        else:
            cure = ": --declare creates it" if queue and not declare else ""
            unroutable = f", {len(returned):,} taken by no queue{cure}" if returned else ""
            click.echo(f"{published:,} published{unroutable}")
    if returned:
        ctx.exit(FAILED)


def _as_json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


def _settle(connection: Connection) -> None:
    """Hear what the broker still has to say."""
    try:
        while True:
            connection.drain_events(timeout=SETTLING_TIME)
    except TimeoutError:
        pass


# --- consume and tail -------------------------------------------------------------------------------------------


@click.command()
@click.argument("queue")
@click.option("-n", "--count", type=click.IntRange(min=1), help="Messages to take.  [default: all]")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    callback=finite,
    default=1.0,
    show_default=True,
    help="Seconds without a message after which it ends.",
)
@broker_options
def consume(
    queue: str,
    count: int | None,
    timeout: float,
    broker: str,
    transport_options: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Take messages out of a queue and print them, one a line, until none comes any more.

    Each is acknowledged when it is written; what could not be written goes back.
    """
    with connected(broker, transport_options) as connection:
        _consume(connection, queue, count, timeout, as_json)


@click.command()
@click.argument("queue")
@click.option("-n", "--count", type=click.IntRange(min=1), help="Messages to take.  [default: no bound]")
@broker_options
def tail(
    queue: str,
    count: int | None,
    broker: str,
    transport_options: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Take messages out of a queue and print them as they come, until Ctrl-C."""
    with connected(broker, transport_options) as connection:
        _consume(connection, queue, count, None, as_json)


def _consume(connection: Connection, queue: str, count: int | None, timeout: float | None, as_json: bool) -> None:
    left = count

    def show(message: Message) -> None:
        nonlocal left
        if left == 0:
            message.requeue(failed=False)
            return
        click.echo(_json_line(message) if as_json else _line(message))
        sys.stdout.flush()
        message.ack()
        left = None if left is None else left - 1

    prefetch = PREFETCH if count is None else min(count, PREFETCH)
    consumer = connection.Consumer(
        Queue(queue), on_message=show, auto_declare=False, prefetch_count=prefetch, accept=["json", "text/plain"]
    )
    with consumer:
        while left != 0:
            try:
                connection.drain_events(timeout=timeout)
            except TimeoutError:
                return


def _content(message: Message) -> dict[str, Any]:
    try:
        return {"body": message.payload}
    except Exception as error:  # whatever a serializer raises: the message is shown as it came
        return {"body_base64": base64.b64encode(message.body).decode(), "error": str(error)}


def _line(message: Message) -> str:
    content = _content(message)
    body = content.get("body", content.get("body_base64"))
    shown = body if isinstance(body, str) else json.dumps(body, default=str, ensure_ascii=False)
    return f"{printable(message.delivery_info.get('routing_key', ''))}\t{printable(shown)}"


def _json_line(message: Message) -> str:
    info = message.delivery_info
    return json.dumps(
        {
            **_content(message),
            "content_type": message.content_type,
            "headers": message.headers,
            "properties": {name: value for name, value in message.properties.items() if name in KEYWORD_PROPERTIES},
            "exchange": info.get("exchange"),
            "routing_key": info.get("routing_key"),
            "redelivered": bool(info.get("redelivered")),
        },
        default=str,
    )


# --- move -------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("source")
@click.argument("target")
@click.option(
    "--to-broker", metavar="URL", callback=broker_url, help="The broker of the target.  [default: that of the source]"
)
@click.option(
    "--to-transport-option",
    "to_options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=pairs,
    help="A transport option for the target's broker; may be repeated.",
)
@click.option("-n", "--count", type=click.IntRange(min=1), help="Messages to move.  [default: all that are there]")
@click.option("--declare", is_flag=True, help="Declare the target queue first.")
@broker_options
def move(
    source: str,
    target: str,
    to_broker: str | None,
    to_options: Mapping[str, Any],
    count: int | None,
    declare: bool,
    broker: str,
    transport_options: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Move messages from one queue to another, here or at another broker.

    Each is published first and acknowledged then: if it is interrupted none is lost, and one may be in both queues.
    """
    if to_broker is None:
        to_broker, to_options = broker, {**transport_options, **to_options}
        if source == target:
            raise click.UsageError("source and target are the same queue")
    moved = 0
    to_options = {"confirm_publish": True, **to_options}
    with connected_both(broker, transport_options, to_broker, to_options) as (taking, giving):
        queue = Queue(source)(taking)
        with named(taking):
            waiting = queue.queue_declare(passive=True)
        there = Queue(target)(giving)
        with named(giving):
            there.queue_declare(passive=not declare)
        total = waiting.message_count if waiting is not None else 0
        total = min(total, count) if count else total
        try:
            with progress("moved", total) as advance:
                for _ in move_messages(queue, there, total):
                    moved += 1
                    advance()
        finally:
            click.echo(json.dumps({"moved": moved}) if as_json else f"{moved:,} moved from {source} to {target}")


def move_messages(source: Queue, target: Queue, count: int | None) -> Iterator[Message]:
    """Publish what waits in one queue to another, and acknowledge each message then; they come as they are moved.

    Args:
        source: A bound queue.
        target: A bound queue; its connection confirms publishes if the broker can.
        count: How many at most. None: as many as wait when it begins.
    """
    if count is None:
        waiting = source.queue_declare(passive=True)
        count = waiting.message_count if waiting is not None else 0
    for _ in range(count):
        message = source.get(no_ack=False)
        if message is None:
            return
        _publish_copy(target, message)
        message.ack()
        yield message


def peek(queue: Queue, connection: Connection, count: int) -> list[dict[str, Any]]:
    """Fetch messages from the head of a queue and give them back, uncounted where the broker makes that difference."""
    with connection.channel() as channel:
        bound, found = queue(channel), MessageBatch()
        while len(found) < count and (message := bound.get(no_ack=False)) is not None:
            found.append(message)
        found.requeue(failed=False)
        return [json.loads(_json_line(message)) for message in found]


def _publish_copy(queue: Queue, message: Message) -> None:
    queue.channel.basic_publish(copy_of(message, queue.channel), routing_key=queue.name)


def copy_of(message: Message, channel: Any) -> Any:
    """Return a message to publish on a channel as it was received; its body came inflated, and goes so."""
    properties = {name: value for name, value in message.properties.items() if name in KEYWORD_PROPERTIES}
    headers = without_delivery_headers(message.headers)
    if not message.errors:
        headers.pop("compression", None)
    body = message.body if isinstance(message.body, bytes) else str(message.body)
    return channel.prepare_message(
        body, message.properties.get("priority"), message.content_type, message.content_encoding, headers, properties
    )
