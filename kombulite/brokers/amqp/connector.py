"""Opening a connection for threads, and what both streams need for it: addresses, TCP options, TLS."""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from kombulite import exceptions
from kombulite.brokers.amqp.login import PROTOCOL_HEADER, Endpoint, Login
from kombulite.brokers.amqp.stream import Stream
from kombulite.brokers.base import Settings
from kombulite.brokers.options import Option, check_tls_settings

T = TypeVar("T")

DEFAULT_TIMEOUT = 30.0  # seconds, for the broker's answers and for writing

#: All transport options, with those that py-amqp has and this client does not need.
OPTIONS = {
    "confirm_publish": Option("False", "If True, each publish waits for the broker's confirm; see below."),
    "read_timeout": Option("30", "Seconds for the broker's reply to a request (declare, get, …) and for confirms."),
    "write_timeout": Option("30", "Seconds for the broker to read what is sent, and while it is blocked."),
    "connection_name": Option("", "Name that the broker's management shows."),
    "client_properties": Option("", "Properties that are added to the client's own."),
    "frame_max": Option("the broker's", "Largest frame in bytes, from 8192: RabbitMQ 4 does not answer a lower wish."),
    "channel_max": Option("the broker's", "Largest number of channels."),
    "socket_settings": Option("", "TCP options by number."),
    "authentication": Option(
        "",
        "SASL mechanisms, the preferred one first: objects with `mechanism` (bytes), `start(login)` and, for "
        "challenges, `respond(challenge)`.",
    ),
    "login_response": Option("", "Bytes, for a `login_method` of another name."),
    "locale": Option("`en_US`", "Locale of the broker's texts."),
    "on_open": Option("", "Called with the login when the connection is open."),
    "on_blocked": Option("", "Called with the reason when the broker stops taking messages."),
    "on_unblocked": Option("", "Called when the broker takes messages again."),
    "heartbeat_thread": Option("True", "If True, a thread sends heartbeats and joined acks; else `heartbeat_check`."),
    "frame_handler": Option("", "Accepted from py-amqp's programs, without effect."),
    "frame_writer": Option("", "Accepted from py-amqp's programs, without effect."),
    "on_tune_ok": Option("", "Accepted from py-amqp's programs, without effect."),
}
#: Seconds: a connection on which nothing came for so long is probed, and so often. Whatever the probes are for, the
#: kernel gives it up after the write timeout.
KEEPALIVE_AFTER, KEEPALIVE_INTERVAL = 15, 5
#: TLS settings that a client's side has a use for, and those that py-amqp has beside them.
TLS_OPTIONS = (
    *("keyfile", "certfile", "ca_certs", "cert_reqs", "server_hostname", "ciphers", "context"),
    *("ssl_version", "tls_minimum_version", "tls_maximum_version"),
)


class TLS(NamedTuple):
    """How to encrypt a connection."""

    context: ssl.SSLContext
    server_hostname: str


def address_of(settings: Settings) -> tuple[str, int]:
    """Return the host and the port to connect to."""
    host = settings.hostname or "localhost"
    return "127.0.0.1" if host == "localhost" else host, settings.port or 5672


def set_socket_options(sock: Any, settings: Settings, write_timeout: float) -> None:
    """Set TCP options, where the system has them: a host that has vanished is found within the write timeout.

    py-amqp's own would give a broker up that has not read for a second, as one does that is short of memory.
    """
    wanted: dict[int, Any] = {socket.TCP_NODELAY: 1}
    for name, value in (
        ("TCP_USER_TIMEOUT", math.ceil(write_timeout * 1000)),  # milliseconds
        ("TCP_KEEPIDLE", KEEPALIVE_AFTER),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
    ):
        if hasattr(socket, name):
            wanted[getattr(socket, name)] = value
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in {**wanted, **(settings.options.get("socket_settings") or {})}.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def tls_of(settings: Settings) -> TLS | None:
    """Return how to encrypt, or None. The host's name is checked unless certificates are not checked at all.

    Raises:
        ValueError: A setting is unknown.
        TypeError: A setting does not go together with ``context``.
    """
    wanted = settings.ssl
    if not wanted:
        return None
    given = dict(wanted) if isinstance(wanted, Mapping) else {}
    check_tls_settings(given)
    every = {name: given.get(name, given.get(f"ssl_{name}")) for name in TLS_OPTIONS}
    found: dict[str, Any] = {name: value for name, value in every.items() if value is not None}
    checks = given.get("check_hostname", given.get("ssl_check_hostname", True))
    name = found.pop("server_hostname", None) or settings.hostname or "localhost"
    arguments = found.pop("context", None)
    if arguments is not None:
        if found:
            raise TypeError(f"ssl: {', '.join(sorted(found))} must stand in the context's arguments")
        arguments = {"check_hostname": checks, **arguments}
        checks = arguments.pop("check_hostname")
        context = ssl.create_default_context(**arguments)
        context.check_hostname = bool(checks)
        return TLS(context, name)
    context = ssl.SSLContext(found.get("ssl_version", ssl.PROTOCOL_TLS_CLIENT))
    if "tls_maximum_version" in found:
        context.maximum_version = found["tls_maximum_version"]
    if "tls_minimum_version" in found:
        context.minimum_version = found["tls_minimum_version"]
    if "certfile" in found:
        context.load_cert_chain(found["certfile"], found.get("keyfile"))
    if "ca_certs" in found:
        context.load_verify_locations(found["ca_certs"])
    if "ciphers" in found:
        context.set_ciphers(found["ciphers"])
    requirement = found.get("cert_reqs", ssl.CERT_REQUIRED)
    context.check_hostname = bool(checks) and requirement != ssl.CERT_NONE
    context.verify_mode = requirement
    if "ca_certs" not in found and requirement != ssl.CERT_NONE:
        context.load_default_certs()
    return TLS(context, name)


def open_stream(settings: Settings, write_timeout: float) -> tuple[Stream, Login]:
    """Connect and log in within ``connect_timeout`` seconds. Return the stream and the login.

    Raises:
        LoginRefused: User or password is wrong.
        NotAllowed: There is no such virtual host, or the user may not have it.
        RecoverableConnectionError: There is no connection; it is of the class of the system's error too.
    """
    try:
        return _open_stream(settings, write_timeout)
    except OSError as error:
        raise exceptions.socket_error(error) from error


def _open_stream(settings: Settings, write_timeout: float) -> tuple[Stream, Login]:
    deadline = None if settings.connect_timeout is None else monotonic() + settings.connect_timeout
    tls = tls_of(settings)
    sock = _connect(settings, deadline)
    try:
        login = Login(settings, Endpoint(sock, address_of(settings)[0]))
        set_socket_options(sock, settings, write_timeout)
        if tls is not None:
            sock.settimeout(_left(deadline))
            sock = tls.context.wrap_socket(sock, server_hostname=tls.server_hostname, do_handshake_on_connect=False)
            sock.do_handshake()
        stream = Stream(sock, write_timeout)
    except BaseException:
        sock.close()
        raise
    try:
        _log_in(stream, login, deadline)
    except BaseException:
        stream.close()
        raise
    stream.decoder.frame_max = stream.encoder.frame_max = login.frame_max
    stream.heartbeat.interval = float(login.heartbeat)
    return stream, login


def _left(deadline: float | None) -> float | None:
    """Return the seconds until a deadline. Raises TimeoutError after it."""
    if deadline is None:
        return None
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def shares(addresses: Sequence[T], deadline: float | None) -> Iterator[tuple[T, float | None]]:
    """Yield each address of a host, with the seconds to connect to it: an equal share of those that are left.

    If one drops packets, there is time for the next. Raises TimeoutError after the deadline.
    """
    for number, address in enumerate(addresses):
        left = _left(deadline)
        yield address, None if left is None else left / (len(addresses) - number)


def _connect(settings: Settings, deadline: float | None) -> Any:
    """Connect to the first address of the host that takes a connection."""
    addresses = socket.getaddrinfo(*address_of(settings), type=socket.SOCK_STREAM)
    error: OSError | None = None
    for (family, kind, protocol, _, address), seconds in shares(addresses, deadline):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(seconds)
            sock.connect(address)
            return sock
        except OSError as failure:
            sock.close()
            error = failure
        except BaseException:
            sock.close()
            raise
    assert error is not None
    raise error


def _log_in(stream: Stream, login: Login, deadline: float | None) -> None:
    def handle(event: Any) -> None:
        if answer := login.receive(event):
            stream.send(answer)

    stream.handle = handle
    try:
        stream.send(PROTOCOL_HEADER)
        if not stream.wait(lambda: login.is_done, deadline):
            raise TimeoutError("the broker did not answer in time")
    except (OSError, exceptions.RecoverableConnectionError) as error:
        explained = login.explain(error)
        if explained is error:
            raise
        raise explained from error
