"""The commands ``sql init`` and ``sql print``: the tables of the SQL brokers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from kombulite import Connection, exceptions
from kombulite.brokers.sql import SQLTransport, schema_statements
from kombulite.cli.options import broker_options


@click.group()
def sql() -> None:
    """Manage the tables of the brokers on PostgreSQL and SQLite."""


@sql.command()
@broker_options
def init(broker: str, transport_options: Mapping[str, Any], as_json: bool) -> None:
    """Create the tables, or upgrade those of an earlier version."""
    _kind(broker)
    connection = Connection(broker, transport_options=transport_options)
    place = connection.as_uri()
    try:
        connection.create_transport().create_tables()
    except (exceptions.AMQPError, exceptions.KombuError) as error:
        raise click.ClickException(f"{place}: {error}") from error
    click.echo(json.dumps({"broker": place}) if as_json else f"the tables are there: {place}")


@sql.command(name="print")
@click.option("--since", type=int, help="Print what upgrades tables of this version instead.")
@broker_options
def print_(broker: str, transport_options: Mapping[str, Any], as_json: bool, since: int | None) -> None:
    """Print the statements that create the tables. Nothing is connected to."""
    named = {name: value for name, value in transport_options.items() if name in ("table_prefix", "schema")}
    try:
        statements = schema_statements(_kind(broker), **named, since=since)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(json.dumps(statements, indent=2) if as_json else "\n".join(f"{each};" for each in statements))


def _kind(broker: str) -> str:
    cls = Connection(broker).get_transport_cls()
    if not issubclass(cls, SQLTransport):
        raise click.UsageError("the broker must be sqlite:// or postgresql://")
    return str(cls.driver_type)
