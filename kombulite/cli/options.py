"""What the commands' options and arguments share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from kombulite import Connection, exceptions, parse_url

FAILED = 1
INTERRUPTED = 130
BROKEN_PIPE = 141  # as of a program that SIGPIPE ended

LONGEST_NAME = 200  # bytes; a suffix comes to it, and AMQP's names have at most 255

POSITIVE = click.FloatRange(min=0, min_open=True)

F = TypeVar("F", bound=Callable[..., Any])


def broker_url(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Check that a connection can be made from a URL. Nothing is connected to yet."""
    if value is None:
        return None
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


def broker_urls(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Check the URLs of one or several brokers, as ``broker_url`` does."""
    if not values:
        raise click.BadParameter("name a broker, or set KOMBULITE_BROKER")
    for value in values:
        broker_url(ctx, param, value)
    return values


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


def pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Parse arguments of the form ``name=value``; a value is decoded as JSON if it is JSON, else kept as text."""
    found = {}
    for each in values:
        name, separator, value = each.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"{each!r} is not of the form name=value")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def broker_options(command: F) -> F:
    """Return the options of a command that talks to a broker."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else."),
        click.option(
            "-o",
            "--transport-option",
            "transport_options",
            metavar="NAME=VALUE",
            multiple=True,
            callback=pairs,
            help="A transport option; may be repeated.",
        ),
        click.option(
            "-b",
            "--broker",
            metavar="URL",
            envvar="KOMBULITE_BROKER",
            required=True,
            callback=broker_url,
            help="The broker, amqp://user:password@host/vhost for example; or in the environment: KOMBULITE_BROKER.",
        ),
    ):
        command = option(command)
    return command


@contextmanager
def connected(broker: str, transport_options: Mapping[str, Any]) -> Iterator[Connection]:
    """Open a connection for a command. An error is printed without a traceback and without a password."""
    with Connection(broker, transport_options=transport_options) as connection:
        errors = (*connection.connection_errors, *connection.channel_errors)
        known: tuple[type[BaseException], ...] = (*errors, exceptions.KombuError)
        try:
            connection.ensure_connection(max_retries=0)
        except known as error:
            raise click.ClickException(f"cannot connect to {connection.as_uri()}: {error}") from error
        try:
            yield connection
        except BrokenPipeError:  # an OSError too, but that of the output
            raise
        except known as error:
            raise click.ClickException(f"{connection.as_uri()}: {error}") from error
