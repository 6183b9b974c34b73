"""``kombulite top``: the queues of one or several brokers, live."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from fnmatch import fnmatchcase
from threading import Thread
from time import monotonic, sleep, time
from typing import Any, NamedTuple, TypeVar

import click
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kombulite.cli.display import NOTHING, printable
from kombulite.cli.monitor import BrokerReading, Monitor, QueueReading, SourceError, source_of
from kombulite.cli.options import FAILED, POSITIVE, broker_urls, finite, pairs

COLUMNS = QueueReading._fields
NUMBERS = COLUMNS[1:]
KEYS = "q quit · space pause · s sort by the next column · r reverse"
NAME_WIDTH = 12  # columns of the screen that a queue's name has at least
ROUND_A_TABLE = 5  # lines: a frame with its heading, and what says how many queues are not shown
PIPE_WIDTH = 1000  # columns: a pipe has no width, and a line is no longer than what it shows
KEY_WAIT = 0.1  # seconds between two looks at the keyboard where there is none to wait on, or a reading is under way

T = TypeVar("T")


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

    On a terminal the keys s and r sort, space pauses, q quits; in a pipe a table is printed for each reading.
    """
    view = View(sort, reverse, pattern)
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
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
            readings = _print_readings(
                monitor, interval, count, lambda found: console.print(_screen(found, view, console.width))
            )
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
    coming: Future[Sequence[BrokerReading]] | None = None  # a reading that is under way
    with _ended_by_sigterm(), _keyboard() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while taken != count:
            live.update(_fitted(readings, view, console.size), refresh=True)
            key = pressed(KEY_WAIT if coming is not None else max(due - monotonic(), 0))
            if key in ("q", "Q", "\x03"):
                break
            if key is not None:
                view = view.press(key)
            elif coming is not None and coming.done():
                readings, coming = readings if view.paused else coming.result(), None
                taken, due = taken + 1, monotonic() + interval
            elif coming is None and not view.paused:
                coming = _in_background(monitor.read)
            elif coming is None:
                due = monotonic() + interval
    console.print(_screen(readings, view, console.width))
    return readings


def _in_background(read: Callable[[], T]) -> Future[T]:
    """Call a function in a thread that does not keep the process: keys are heeded while a broker hangs."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(read())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="kombulite-top", daemon=True).start()
    return future


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM unwind the stack, so that the terminal is left as it was found."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


def _fitted(readings: Sequence[BrokerReading], view: View, size: ConsoleDimensions) -> RenderableType:
    """Return what fits a terminal of this size: so many queues of each broker, or none, and the keys."""
    lines = size.height - 1
    keys = Text(f"paused · {KEYS}" if view.paused else KEYS, style="dim", no_wrap=True, overflow="ellipsis")
    shown = readings[:lines]
    return Group(_screen(shown, view, size.width, _shares(shown, view, lines - len(shown))), keys)


def _shares(readings: Sequence[BrokerReading], view: View, lines: int) -> list[int]:
    """Share lines out among brokers: each gets what it needs, or as much as the others that need more, or none."""
    needs = [_need(each, view) for each in readings]
    most = 0  # for one broker
    for taken, need in enumerate(sorted(needs)):
        most = lines // (len(needs) - taken)
        if need > most:
            break
        lines -= need
    shares = [min(need, most) for need in needs]
    return [
        share if reading.error is not None or share > ROUND_A_TABLE else 0
        for share, reading in zip(shares, readings, strict=True)
    ]


def _need(reading: BrokerReading, view: View) -> int:
    """Return how many lines a broker takes below its heading."""
    return 1 if reading.error is not None else max(len(view.select(reading.queues)), 1) + ROUND_A_TABLE


def _screen(
    readings: Sequence[BrokerReading], view: View, width: int, shares: Sequence[int] | None = None
) -> RenderableType:
    """Return the brokers with their queues in ``width`` columns.

    With ``shares``, so many lines for each broker, nothing takes more than one line: what is too long is cut. With a
    share of 0 there is the heading only.
    """
    parts: list[RenderableType] = []
    for number, reading in enumerate(readings):
        total = sum(each.ready for each in reading.queues)
        state = f"  {_queues(len(reading.queues))}, {total:,} ready" if reading.error is None else "  cannot be read"
        name = Text(reading.broker, "bold")
        if shares is not None:
            name.truncate(max(width - cell_len(state), NAME_WIDTH), overflow="ellipsis")
        parts.append(Text.assemble(name, state, no_wrap=True, overflow="ellipsis"))
        share = None if shares is None else shares[number]
        if share == 0:
            continue
        if reading.error is not None:
            parts.append(_line(printable(reading.error), "red", cut=share is not None))
        else:
            queues = view.select(reading.queues)
            rows = None if share is None else share - ROUND_A_TABLE
            parts.append(_table(queues[:rows], view, width, cut=rows is not None))
            if len(queues[:rows]) < len(queues):
                parts.append(Text(f"{_queues(len(queues) - len(queues[:rows]))} more", style="dim"))
    return Group(*parts)


def _line(text: str, style: str = "", *, cut: bool) -> Text:
    """Return a text that is cut where it is longer than its line, or goes on in the next."""
    return Text(text, style, no_wrap=True, overflow="ellipsis") if cut else Text(text, style)


def _queues(number: int) -> str:
    return "1 queue" if number == 1 else f"{number:,} queues"


def _table(queues: Sequence[QueueReading], view: View, width: int, *, cut: bool) -> Table:
    """Return a table of queues, without the columns of which nothing is known, or for which there is no room.

    ``cut``: a name that is too long ends in an ellipsis instead of going on in a second line.
    """
    known = [name for name in NUMBERS if name == view.sort or any(getattr(each, name) is not None for each in queues)]
    mark = " ▲" if view.ascending else " ▼"
    cells = {
        column: [
            column + (mark if column == view.sort else ""),
            *(_cell(column, getattr(each, column)) for each in queues),
        ]
        for column in known
    }
    needed = {column: max(map(cell_len, texts)) + 3 for column, texts in cells.items()}  # with its frame
    room = width - NAME_WIDTH - 4 - needed.get(view.sort, 0)
    shown = []
    for column in known:
        if column != view.sort:
            room -= needed[column]
        if column == view.sort or room >= 0:
            shown.append(column)
    table = Table()
    table.add_column("queue" + (mark if view.sort == "queue" else ""), overflow="fold", min_width=NAME_WIDTH)
    for column in shown:
        table.add_column(cells[column][0], justify="right", no_wrap=True)
    for number, each in enumerate(queues, 1):
        table.add_row(_line(printable(each.queue), cut=cut), *(cells[column][number] for column in shown))
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
