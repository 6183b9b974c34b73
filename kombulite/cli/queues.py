"""Commands about queues and brokers: queues, purge, ping."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kombulite import Queue, exceptions
from kombulite.brokers.base import QueueStatus
from kombulite.cli.display import printable
from kombulite.cli.monitor import queue_statuses
from kombulite.cli.options import FAILED, broker_options, confirmed, connected


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@broker_options
@click.pass_context
def queues(
    ctx: click.Context,
    names: tuple[str, ...],
    broker: str,
    transport_options: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Show queues: messages that wait, messages that are out, consumers.

    Of a broker that cannot list its queues, name them. The exit status is 1 if one is not there.
    """
    with connected(broker, transport_options) as connection:
        try:
            found = queue_statuses(connection, names)
        except exceptions.AMQPNotImplementedError:
            raise click.UsageError("this broker cannot list its queues: name them") from None
        place_of = getattr(connection.transport, "place_of", _nowhere)  # others' transports have none
        places = {status.queue: place for status in found if (place := place_of(status.queue))}
        missing = set(names).difference(status.queue for status in found)
        if as_json:
            rows = [status._asdict() for status in found]
            rows = [{**row, "place": places[row["queue"]]} if row["queue"] in places else row for row in rows]
            click.echo(json.dumps(rows, indent=2))
        else:
            Console().print(_table(found, places))
        for name in sorted(missing):
            click.echo(f"Error: there is no queue {name}", err=True)
    if missing:
        ctx.exit(FAILED)


def _table(statuses: Sequence[QueueStatus], places: Mapping[str, str]) -> Table:
    table = Table()
    table.add_column("queue", overflow="fold")
    for column in ("messages", "unacked", "consumers"):
        table.add_column(column, justify="right")
    if places:
        table.add_column("place")
    for status in statuses:
        unacked = "-" if status.unacked is None else f"{status.unacked:,}"
        cells = [f"{status.message_count:,}", unacked, f"{status.consumer_count:,}"]
        if places:
            cells.append(places.get(status.queue, ""))
        table.add_row(Text(printable(status.queue)), *cells)
    return table


def _nowhere(queue: str) -> None:
    """Return no place of a queue."""


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@broker_options
def purge(
    names: tuple[str, ...],
    yes: bool,
    broker: str,
    transport_options: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Remove the messages that wait in queues."""
    with connected(broker, transport_options) as connection:
        if not yes and not confirmed(f"Remove all messages from {', '.join(names)} at {connection.as_uri()}?"):
            raise click.ClickException("nothing is removed")
        purged = {}
        for name in names:
            purged[name] = Queue(name)(connection).purge()
            if not as_json:
                click.echo(f"{purged[name]:,} removed from {name}")
        if as_json:
            click.echo(json.dumps(purged))


@click.command()
@broker_options
def ping(broker: str, transport_options: Mapping[str, Any], as_json: bool) -> None:
    """Connect to the broker, and say how long it took. The exit status is 1 if it cannot be reached."""
    start = monotonic()
    with connected(broker, transport_options) as connection:
        connection.channel().close()
        seconds = monotonic() - start
        transport = connection.transport
        facts = {
            "broker": connection.as_uri(),
            "milliseconds": round(seconds * 1000, 3),
            "driver": transport.driver_name,
            "driver_version": transport.driver_version(),
        }
        nodes: Mapping[str, str] = getattr(transport, "nodes", dict)()  # others' transports have none
    if as_json:
        click.echo(json.dumps({**facts, "nodes": nodes} if nodes else facts))
    else:
        version = f" {facts['driver_version']}" if facts["driver_version"] else ""
        click.echo(f"{facts['broker']}: {seconds * 1000:.1f} ms, {facts['driver']}{version}")
        for node, what in nodes.items():
            click.echo(f"  {node}: {what}")
