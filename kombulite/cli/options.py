"""What the commands' options and arguments share."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import click

from kombulite import Connection, exceptions, parse_url

FAILED = 1
INTERRUPTED = 130
BROKEN_PIPE = 141  # as of a program that SIGPIPE ended

LONGEST_NAME = 200  # bytes; a suffix comes to it, and AMQP's names have at most 255

POSITIVE = click.FloatRange(min=0, min_open=True)

F = TypeVar("F", bound=Callable[..., Any])


class Commands(click.Group):
    """Group of commands that end without a traceback if the reader leaves, the operator interrupts or a file fails."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, with a status of its own for Ctrl-C and for an output that nobody reads any more."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _discard_output()
            ctx.exit(BROKEN_PIPE)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except UnicodeDecodeError as error:
            raise click.ClickException(f"the input must be {error.encoding}: {error}") from error
        except OSError as error:
            _discard_output()
            raise click.ClickException(str(error)) from error
        return result


def _discard_output() -> None:
    """Drop what is left in the buffer of the output: it would raise again when the interpreter ends."""
    with suppress(ValueError):  # it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


def confirmed(question: str) -> bool:
    """Ask on the terminal. Raises UsageError where there is none to ask on, KeyboardInterrupt after Ctrl-C."""
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise KeyboardInterrupt from None
        click.echo(err=True)  # the cursor is behind the question
        raise click.UsageError("there is no terminal to ask on: say --yes") from None


def connection_to(broker: str, transport_options: Mapping[str, Any]) -> Connection:
    """Return a connection that is not open yet. Raises UsageError for an option that its transport refuses."""
    try:
        connection = Connection(broker, transport_options=transport_options)
        connection.transport  # noqa: B018 - it checks its options when it is made
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error
    except exceptions.KombuError as error:
        raise click.ClickException(str(error)) from error
    return connection


@contextmanager
def connected(broker: str, transport_options: Mapping[str, Any]) -> Iterator[Connection]:
    """Open a connection for a command. An error is printed without a traceback and without a password."""
    with connection_to(broker, transport_options) as connection:
        _connect(connection)
        with named(connection):
            yield connection


@contextmanager
def connected_both(
    source: str, source_options: Mapping[str, Any], target: str, target_options: Mapping[str, Any]
) -> Iterator[tuple[Connection, Connection]]:
    """Open two connections for a command, as ``connected`` does; ``named`` has an error say which one it is from."""
    with connection_to(source, source_options) as taking, connection_to(target, target_options) as giving:
        _connect(taking)
        _connect(giving)
        with _reported("", taking, giving):
            yield taking, giving


@contextmanager
def named(connection: Connection) -> Iterator[None]:
    """Print the errors of a connection without a traceback, after the URL of its broker."""
    with _reported(f"{connection.as_uri()}: ", connection):
        yield


def _connect(connection: Connection) -> None:
    with _reported(f"cannot connect to {connection.as_uri()}: ", connection):
        connection.ensure_connection(max_retries=0)


@contextmanager
def _reported(prefix: str, *connections: Connection) -> Iterator[None]:
    """Print the errors of connections without a traceback."""
    known: list[type[BaseException]] = [exceptions.KombuError]
    for connection in connections:
        known += (*connection.connection_errors, *connection.channel_errors)
    try:
        yield
    except BrokenPipeError:  # an OSError too, but that of the output
        raise
    except tuple(known) as error:
        raise click.ClickException(f"{prefix}{error}") from error
