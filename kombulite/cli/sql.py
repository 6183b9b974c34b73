"""The commands ``sql init`` and ``sql print``: the tables of the SQL brokers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from kombulite import Connection
from kombulite.brokers.sql import SQLTransport, schema_statements
from kombulite.cli.options import broker_options, connected


@click.group()
def sql() -> None:
    """Manage the tables of the brokers on PostgreSQL and SQLite."""


@sql.command()
@broker_options
def init(broker: str, transport_options: Mapping[str, Any], as_json: bool) -> None:
    """Create the tables, unless they are there."""
    _kind(broker)
    with connected(broker, {**transport_options, "create_tables": True}) as connection:
        place = connection.as_uri()
    click.echo(json.dumps({"broker": place}) if as_json else f"the tables are there: {place}")


@sql.command(name="print")
@broker_options
def print_(broker: str, transport_options: Mapping[str, Any], as_json: bool) -> None:
    """Print the statements that create the tables. Nothing is connected to."""
    named = {name: value for name, value in transport_options.items() if name in ("table_prefix", "schema")}
    try:
        statements = schema_statements(_kind(broker), **named)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(json.dumps(statements, indent=2) if as_json else "\n".join(f"{each};" for each in statements))


def _kind(broker: str) -> str:
    cls = Connection(broker).get_transport_cls()
    if not issubclass(cls, SQLTransport):
        raise click.UsageError("the broker must be sqlite:// or postgresql://")
    return str(cls.driver_type)
