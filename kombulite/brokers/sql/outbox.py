"""Publishing within a transaction of the caller's, over whichever library has it.

Statements are those of ``Database``: ``?`` for a parameter. What runs them is told by the caller's object.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

__all__ = ["Statement", "runner"]

Statement = tuple[str, Sequence[Any]]
Run = Callable[[], Coroutine[Any, Any, None] | None]
Execute = Callable[[str, Sequence[Any]], Any]

#: Libraries whose connections are taken as they are: the form of their placeholders.
DOLLARS = "${}"
DRIVERS = {
    "postgresql": {"psycopg": "%s", "asyncpg": DOLLARS},
    "sqlite": {"sqlite3": "?", "aiosqlite": "?"},
}


def runner(via: Any, database: str, statements: Sequence[Statement]) -> Run:
    """Return what runs statements over a connection or session of the caller's.

    If the caller's library is synchronous, it runs them at once and returns None, else a coroutine to be awaited.

    Args:
        via: A connection of psycopg, asyncpg, sqlite3, aiosqlite or Django, a session or connection of SQLAlchemy.
        database: ``postgresql`` or ``sqlite``, which has to be that of ``via`` too.
        statements: The statements, with their values.

    Raises:
        TypeError: ``via`` is none of these, or is of another database.
    """
    execute, form = _executor(via, database)
    prepared = [(_with_placeholders(text, form), values) for text, values in statements]

    async def run_on_loop() -> None:
        for text, values in prepared:
            await execute(text, values)

    def run() -> Coroutine[Any, Any, None] | None:
        for text, values in prepared:
            result = execute(text, values)
            # What is called does not tell: wrappers of a coroutine function are none, as those of asyncpg's pools.
            if isinstance(result, Coroutine):
                result.close()  # it has not begun
                return run_on_loop()
        return None

    return run


def _libraries(via: Any) -> set[str]:
    return {cls.__module__.partition(".")[0] for cls in type(via).__mro__}


def _executor(via: Any, database: str) -> tuple[Execute, str]:
    """Return what runs one statement, and the form of its placeholders."""
    libraries = _libraries(via)
    if "sqlalchemy" in libraries:
        bind = via.get_bind() if hasattr(via, "get_bind") else via
        _check_database(via, bind.dialect.name, database)
        return _over_sqlalchemy(via), ":v{}"
    if "django" in libraries and hasattr(via, "vendor"):
        _check_database(via, via.vendor, database)
        return _over_django(via), "%s"
    for library in libraries & DRIVERS[database].keys():
        form = DOLLARS if _has_raw_cursors(via) else DRIVERS[database][library]
        return (via.execute if library != "asyncpg" else lambda text, values: via.execute(text, *values)), form
    raise TypeError(
        f"via must be a connection of {', '.join(DRIVERS[database])} or Django, or a session or connection of"
        f" SQLAlchemy, got {type(via).__name__}"
    )


def _has_raw_cursors(via: Any) -> bool:
    """Return whether a connection or cursor of psycopg takes placeholders as PostgreSQL has them, and no others."""
    factory = getattr(via, "cursor_factory", type(via))
    return any(cls.__name__ == "RawCursorMixin" for cls in getattr(factory, "__mro__", ()))


def _check_database(via: Any, found: str, database: str) -> None:
    if found != database:
        raise TypeError(f"via must be on {database}, where the broker is, got {type(via).__name__} on {found}")


def _with_placeholders(statement: str, form: str) -> str:
    if form == "%s":
        statement = statement.replace("%", "%%")
    first, *others = statement.split("?")
    return first + "".join(form.format(number) + text for number, text in enumerate(others, 1))


def _over_django(via: Any) -> Execute:
    def execute(text: str, values: Sequence[Any]) -> None:
        with via.cursor() as cursor:
            cursor.execute(text, values)

    return execute


def _over_sqlalchemy(via: Any) -> Execute:
    from sqlalchemy import text as clause  # it is there: via is of it

    def execute(text: str, values: Sequence[Any]) -> Any:
        return via.execute(clause(text), {f"v{number}": value for number, value in enumerate(values, 1)})

    return execute
