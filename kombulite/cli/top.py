"""``kombulite top``: the queues of one or several brokers, live."""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from time import monotonic, sleep, time
from typing import Any, NamedTuple

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kombulite.cli.display import NOTHING, printable
from kombulite.cli.messages import piped
from kombulite.cli.monitor import BrokerReading, Monitor, QueueReading, SourceError, source_of
from kombulite.cli.options import FAILED, POSITIVE, broker_urls, finite, pairs

COLUMNS = QueueReading._fields
NUMBERS = COLUMNS[1:]
KEYS = "q quit · space pause · s sort by the next column · r reverse"
KEY_WAIT = 0.1  # seconds between two looks at the keyboard where there is none to wait on


class View(NamedTuple):
    """What is shown: which column sorts, which way, which queues, whether it stands still."""

    sort: str = "ready"
    ascending: bool = False
    pattern: str = "*"
    paused: bool = False

    def select(self, queues: Sequence[QueueReading]) -> list[QueueReading]:
        """Return the queues that are shown, in their order. What is not known comes last."""
        shown = sorted(each for each in queues if fnmatchcase(each.queue, self.pattern))
        known = [each for each in shown if getattr(each, self.sort) is not None]
        known.sort(key=lambda each: getattr(each, self.sort), reverse=not self.ascending)
        return known + [each for each in shown if getattr(each, self.sort) is None]

    def press(self, key: str) -> View:
        """Return what is shown after a key was pressed."""
        if key == " ":
            return self._replace(paused=not self.paused)
        if key == "s":
            return self._replace(sort=COLUMNS[(COLUMNS.index(self.sort) + 1) % len(COLUMNS)])
        if key == "r":
            return self._replace(ascending=not self.ascending)
        return self


@click.command()
@click.argument("brokers", metavar="[BROKER]...", nargs=-1, envvar="KOMBULITE_BROKER", callback=broker_urls)
@click.option("-q", "--queue", "names", multiple=True, help="Show this queue, where a broker cannot list them.")
@click.option("-f", "--filter", "pattern", default="*", metavar="GLOB", help="Show queues with such names only.")
@click.option(
    "-s", "--sort", type=click.Choice(COLUMNS), default="ready", show_default=True, help="Sort by this column."
)
@click.option("-r", "--reverse", is_flag=True, help="The lowest first.")
@click.option(
    "-i", "--interval", type=POSITIVE, callback=finite, default=2.0, show_default=True, help="Seconds between readings."
)
@click.option("-n", "--count", type=click.IntRange(min=1), help="Readings to take.  [default: until q or Ctrl-C]")
@click.option("--management", metavar="URL", help="RabbitMQ's management API.  [default: port 15672 of the host]")
@click.option(
    "-o",
    "--transport-option",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=pairs,
    help="A transport option; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each reading.")
@click.pass_context
def top(
    ctx: click.Context,
    brokers: Sequence[str],
    names: Sequence[str],
    pattern: str,
    sort: str,
    reverse: bool,
    interval: float,
    count: int | None,
    management: str | None,
    options: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Show the queues of brokers live: messages that wait, rates, consumers, ages.

    On a terminal keys sort, pause and quit; in a pipe a table is printed for each reading.
    """
    view = View(sort, reverse, pattern)
    console = Console()
    with piped(ctx):
        try:
            monitor = Monitor([source_of(each, options, names, management) for each in brokers])
        except SourceError as error:
            raise click.ClickException(str(error)) from error
        try:
            if as_json:
                readings = _print_readings(monitor, interval, count, lambda found: click.echo(_json(found, view)))
            elif console.is_terminal and not console.is_dumb_terminal:
                readings = _live(monitor, view, interval, count, console)
            else:
                readings = _print_readings(monitor, interval, count, lambda found: console.print(_screen(found, view)))
        finally:
            monitor.close()
    if readings and all(each.error is not None for each in readings):
        ctx.exit(FAILED)


def _print_readings(
    monitor: Monitor, interval: float, count: int | None, show: Callable[[Sequence[BrokerReading]], None]
) -> Sequence[BrokerReading]:
    """Show a reading at each interval; returns the last."""
    taken = 0
    while True:
        readings = monitor.read()
        show(readings)
        sys.stdout.flush()
        taken += 1
        if taken == count:
            return readings
        sleep(interval)


def _live(
    monitor: Monitor, view: View, interval: float, count: int | None, console: Console
) -> Sequence[BrokerReading]:
    """Redraw one screen; returns the last reading."""
    readings: Sequence[BrokerReading] = monitor.read()
    taken, due = 1, monotonic() + interval
    with _keyboard() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while taken != count:
            live.update(_screen(readings, view, KEYS), refresh=True)
            key = pressed(max(due - monotonic(), 0))
            if key in ("q", "Q", "\x03"):
                break
            if key is not None:
                view = view.press(key)
            elif not view.paused:
                readings = monitor.read()
                taken, due = taken + 1, monotonic() + interval
            else:
                due = monotonic() + interval
    console.print(_screen(readings, view))
    return readings


@contextmanager
def _keyboard() -> Iterator[Callable[[float], str | None]]:
    """Give a function that waits so many seconds for a key, without Enter; it returns None if none was pressed."""
    try:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError):  # no POSIX system, or the input is no terminal

        def wait(seconds: float) -> None:
            sleep(max(seconds, KEY_WAIT))

        yield wait
        return

    def pressed(seconds: float) -> str | None:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return os.read(descriptor, 1).decode("latin-1") or "q" if ready else None

    tty.setcbreak(descriptor)
    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _screen(readings: Sequence[BrokerReading], view: View, footer: str = "") -> RenderableType:
    parts: list[RenderableType] = []
    for reading in readings:
        total = sum(each.ready for each in reading.queues)
        state = f"{len(reading.queues):,} queues, {total:,} ready" if reading.error is None else "cannot be read"
        parts.append(Text.assemble((reading.broker, "bold"), f"  {state}", "  (paused)" if view.paused else ""))
        if reading.error is not None:
            parts.append(Text(printable(reading.error), style="red"))
        else:
            parts.append(_table(view.select(reading.queues), view))
    if footer:
        parts.append(Text(footer, style="dim"))
    return Group(*parts)


def _table(queues: Sequence[QueueReading], view: View) -> Table:
    """Return a table of queues; columns of which nothing is known are left out."""
    known = [name for name in NUMBERS if name == view.sort or any(getattr(each, name) is not None for each in queues)]
    table = Table()
    for column in ("queue", *known):
        mark = "" if column != view.sort else " ▲" if view.ascending else " ▼"
        if column == "queue":
            table.add_column(column + mark, overflow="fold", min_width=12)
        else:
            table.add_column(column + mark, justify="right", no_wrap=True)
    for each in queues:
        table.add_row(Text(printable(each.queue)), *(_cell(column, getattr(each, column)) for column in known))
    return table


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return NOTHING
    if column in ("ready", "unacked", "consumers"):
        return f"{value:,}"
    if column == "memory":
        return f"{value / 1024:,.0f} kB"
    if column == "oldest":
        return f"{value:,.0f} s"
    return f"{value:+,.1f}/s" if column == "change" else f"{value:,.1f}/s"


def _json(readings: Sequence[BrokerReading], view: View) -> str:
    return json.dumps(
        {
            "time": round(time(), 3),
            "brokers": [
                {
                    "broker": each.broker,
                    "error": each.error,
                    "queues": [queue._asdict() for queue in view.select(each.queues)],
                }
                for each in readings
            ],
        }
    )
