"""The command ``kombulite web``."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import click

from kombulite.cli.monitor import Monitor, SourceError, source_of
from kombulite.cli.options import POSITIVE, broker_urls, finite, pairs

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@click.command()
@click.argument("brokers", metavar="[BROKER]...", nargs=-1, envvar="KOMBULITE_BROKER", callback=broker_urls)
@click.option("-q", "--queue", "names", multiple=True, help="Show this queue, where a broker cannot list them.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8673, show_default=True, help="0: a free one.")
@click.option("--token", envvar="KOMBULITE_WEB_TOKEN", help="What visitors need.  [default: made for this run]")
@click.option("--allow-changes", "may_change", is_flag=True, help="Let visitors look at messages, move and purge them.")
@click.option(
    "-i", "--interval", type=POSITIVE, callback=finite, default=2.0, show_default=True, help="Seconds between readings."
)
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
def web(
    brokers: Sequence[str],
    names: Sequence[str],
    host: str,
    port: int,
    token: str | None,
    may_change: bool,
    interval: float,
    management: str | None,
    options: Mapping[str, Any],
) -> None:
    """Serve a page that shows the queues of brokers, and metrics for Prometheus at /metrics.

    It listens on the loopback interface and wants a token. It has no TLS: for other machines put a proxy in front.
    """
    try:  # packages that the other commands do not need
        import uvicorn

        from kombulite.cli.web.app import create_app
    except ImportError as error:
        raise click.ClickException(f"the page needs {error.name}: pip install 'kombulite[web]'") from error
    token = token or secrets.token_urlsafe(24)
    try:
        monitor = Monitor([source_of(each, options, names, management) for each in brokers])
    except SourceError as error:
        raise click.ClickException(str(error)) from error
    app = create_app(
        brokers,
        options,
        monitor,
        token=token,
        interval=interval,
        hosts=(_netloc(host), *LOOPBACK_NAMES),
        may_change=may_change,
    )
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", server_header=False)
    listening = config.bind_socket()
    listening.listen()  # who opens the address at once is served when the application has started
    click.echo(f"http://{_netloc(host)}:{listening.getsockname()[1]}/?token={token}")
    uvicorn.Server(config).run(sockets=[listening])


def _netloc(host: str) -> str:
    return f"[{host}]" if ":" in host else host
