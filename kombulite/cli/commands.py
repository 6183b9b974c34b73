"""The commands of ``kombulite``."""

from __future__ import annotations

import math
from typing import Any

import click
from rich.console import Console

from kombulite import Connection, __version__, parse_url
from kombulite.cli.display import SilentDisplay, closing_json, closing_table, display_for
from kombulite.cli.load import Plan, Report, Run

DEFAULT_MESSAGES = 200_000
REFRESH_INTERVAL = 0.25  # seconds

FAILED = 1
INTERRUPTED = 130

MOST_THREADS = 1000
MOST_PREFETCH = 65535  # it is a 16-bit number in AMQP
LONGEST_NAME = 200  # bytes; a suffix comes to it, and AMQP's names have at most 255


def broker_url(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Check that a connection can be made from a URL. Nothing is connected to yet."""
    try:
        for url in value.split(";"):
            parse_url(url)
    except ValueError:
        # What cannot be parsed is not shown: it may hold a password.
        raise click.BadParameter("this is no URL; one looks like amqp://user:password@host:5672/vhost") from None
    try:
        Connection(value)
    except (KeyError, ValueError) as error:
        raise click.BadParameter(str(error.args[0] if error.args else error)) from error
    return value


def finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Check that a number is finite."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number")
    return value


def queue_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Check that a queue's name can start like that."""
    if not value or value.startswith("amq.") or len(value.encode("utf-8", "surrogateescape")) > LONGEST_NAME:
        raise click.BadParameter(f"a name has 1 to {LONGEST_NAME} bytes, and does not start with 'amq.'")
    return value


POSITIVE = click.FloatRange(min=0, min_open=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kombulite")
def kombulite() -> None:
    """Messaging from the command line."""


@kombulite.command()
@click.option(
    "--broker",
    metavar="URL",
    callback=broker_url,
    default="memory://",
    show_default=True,
    help="Where to send the messages.",
)
@click.option(
    "--messages",
    type=click.IntRange(min=1),
    help=f"Messages to publish.  [default: {DEFAULT_MESSAGES}, or no bound with --seconds]",
)
@click.option("--seconds", type=POSITIVE, callback=finite, help="Seconds to publish for.")
@click.option("--consumers", type=click.IntRange(1, MOST_THREADS), default=2, show_default=True, help="Threads.")
@click.option("--producers", type=click.IntRange(1, MOST_THREADS), default=1, show_default=True, help="Threads.")
@click.option(
    "--prefetch",
    type=click.IntRange(0, MOST_PREFETCH),
    default=1000,
    show_default=True,
    help="Messages that a consumer gets before it acknowledges them; 0: no bound.",
)
@click.option(
    "--queue",
    metavar="NAME",
    callback=queue_name,
    default="kombulite.run",
    show_default=True,
    help="How the names of exchange and queues start; they are deleted at the end.",
)
@click.option(
    "--rate", type=POSITIVE, callback=finite, help="Messages to publish per second.  [default: as fast as it goes]"
)
@click.option(
    "--max-depth",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Messages published and not yet consumed at which producers wait.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the closing figures as JSON, and nothing else.")
@click.pass_context
def run(ctx: click.Context, /, as_json: bool, messages: int | None, seconds: float | None, **options: Any) -> None:
    """Move a stream of orders over a broker, and check that each arrives once.

    The exit status is 0 if so, 1 if any was lost or came twice or something failed, 130 after Ctrl-C, which ends it
    when all that was published is consumed (a second one at once).
    """
    if messages is None and seconds is None:
        messages = DEFAULT_MESSAGES
    load = Run(Plan(messages=messages, seconds=seconds, **options))
    console = Console()
    report, interrupted = _watch(load, console, as_json)
    if as_json:
        click.echo(closing_json(report))
    else:
        console.print(closing_table(report))
    if report.error is not None:
        click.echo(f"Error: {report.error}", err=True)
    if interrupted:
        ctx.exit(INTERRUPTED)
    if not report.succeeded:
        ctx.exit(FAILED)


def _watch(load: Run, console: Console, as_json: bool) -> tuple[Report, bool]:
    """Let it run its course; returns its figures, and whether it was interrupted."""
    interrupted = False
    display = SilentDisplay() if as_json else display_for(load.plan, load.broker, console)
    with display:
        try:
            try:
                load.start()
                while load.wait(REFRESH_INTERVAL):
                    display.show(load.sample())
            except KeyboardInterrupt:
                interrupted = True
                load.stop()
            try:
                while interrupted and load.wait(REFRESH_INTERVAL):
                    display.show(load.sample())
            except KeyboardInterrupt:
                pass  # no patience: what is left over counts as lost
        finally:
            report = load.close()
        display.show(load.sample())
    return report, interrupted
