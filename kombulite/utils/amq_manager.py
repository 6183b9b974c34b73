"""RabbitMQ's management interface, by the library pyrabbit."""

from __future__ import annotations

from typing import Any

__all__ = ["get_manager"]


def get_manager(
    client: Any,
    hostname: str | None = None,
    port: int | None = None,
    userid: str | None = None,
    password: str | None = None,
) -> Any:
    """Return a client of the management interface of a connection's broker.

    Args:
        client: The connection. Its transport options ``manager_hostname``, ``manager_port``, ``manager_userid`` and
            ``manager_password`` are used for what is not given here, then its own host and user, and port 15672.
        hostname: The interface's host.
        port: Its port.
        userid: User that logs in.
        password: With which password.

    Raises:
        ImportError: pyrabbit is not installed.
    """
    import pyrabbit  # type: ignore[import-not-found]

    options = client.transport_options

    def chosen(name: str, value: Any, default: Any) -> Any:
        return value if value is not None else options.get(f"manager_{name}", default)

    host = chosen("hostname", hostname, client.hostname or "localhost")
    return pyrabbit.Client(
        f"{host}:{chosen('port', port, 15672)}",
        chosen("userid", userid, client.userid or "guest"),
        chosen("password", password, client.password or "guest"),
    )
