"""The commands of ``kombulite``."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from kombulite import __version__
from kombulite.cli import messages as message_commands
from kombulite.cli import queues as queue_commands
from kombulite.cli.display import SilentDisplay, closing_json, closing_table, display_for
from kombulite.cli.load import Plan, Report, Run
from kombulite.cli.options import FAILED, INTERRUPTED, POSITIVE, Commands, broker_url, finite, queue_name
from kombulite.cli.relay import relay
from kombulite.cli.sql import sql
from kombulite.cli.top import top
from kombulite.cli.web.command import web

DEFAULT_MESSAGES = 200_000
REFRESH_INTERVAL = 0.25  # seconds

MAX_THREADS = 1000
MAX_PREFETCH = 65535  # it is a 16-bit number in AMQP


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kombulite")
def kombulite() -> None:
    """Messaging from the command line."""


for command in (
    message_commands.publish,
    message_commands.consume,
    message_commands.tail,
    message_commands.move,
    queue_commands.queues,
    queue_commands.purge,
    queue_commands.ping,
    relay,
    sql,
    top,
    web,
):
    kombulite.add_command(command)


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
@click.option("--consumers", type=click.IntRange(1, MAX_THREADS), default=2, show_default=True, help="Threads.")
@click.option("--producers", type=click.IntRange(1, MAX_THREADS), default=1, show_default=True, help="Threads.")
@click.option(
    "--prefetch",
    type=click.IntRange(0, MAX_PREFETCH),
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
