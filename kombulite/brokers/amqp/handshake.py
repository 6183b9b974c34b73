"""Opening a connection: py-amqp resolves, connects, negotiates TLS, logs in and tunes. Then the stream is ours."""

from __future__ import annotations

import math
import platform
import socket
import struct
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import amqp

from kombulite import exceptions
from kombulite._core import MethodReceived
from kombulite.brokers.amqp.errors import translated
from kombulite.brokers.amqp.link import Link
from kombulite.brokers.amqp.methods import payload
from kombulite.brokers.base import Settings
from kombulite.brokers.options import check_tls_settings

SMALLEST_FRAME_MAX = 4096  # bytes, section 4.9
SMALLEST_WISH = 8192  # bytes: RabbitMQ 4 does not answer those who ask for less
DEFAULT_FRAME_MAX = 131072  # bytes, where neither side has a limit
DEFAULT_TIMEOUT = 30.0  # seconds, for the broker's answers and for writing

#: Transport options that py-amqp's connection takes as they are.
DRIVER_OPTIONS = (
    "authentication",
    "channel_max",
    "frame_max",
    "locale",
    "login_response",
    "on_open",
    "on_tune_ok",
)
#: All transport options, with those that py-amqp has and we do not need.
OPTIONS = frozenset(
    [
        *DRIVER_OPTIONS,
        *(
            "client_properties",
            "confirm_publish",
            "connection_name",
            "frame_handler",
            "frame_writer",
            "heartbeat_thread",
        ),
        *("on_blocked", "on_unblocked", "read_timeout", "socket_settings", "write_timeout"),
    ]
)
#: Seconds: a connection on which nothing came for so long is probed, and so often. Whatever the probes are for, the
#: kernel gives it up after the write timeout.
KEEPALIVE_AFTER, KEEPALIVE_INTERVAL = 15, 5
#: TLS settings, under our names or with the prefix ``ssl_`` that URLs give them.
TLS_OPTIONS = (
    "keyfile",
    "certfile",
    "ca_certs",
    "cert_reqs",
    "server_hostname",
    "ciphers",
    "ssl_version",
    "tls_minimum_version",
    "tls_maximum_version",
    "server_side",
    "do_handshake_on_connect",
    "suppress_ragged_eofs",
    "context",
)


class Handshake(amqp.Connection):  # type: ignore[misc]
    """One use of py-amqp: from the TCP connection to ``open-ok``, within ``connect_timeout`` seconds."""

    library_properties: Mapping[str, Any] = {}

    def __init__(self, connect_timeout: float | None, write_timeout: float, **arguments: Any) -> None:
        self.link: Link | None = None
        self._proposed = ""  # what the broker was sent that it may not accept, for the error if it does not answer
        self._write_timeout = write_timeout
        self._deadline = None if connect_timeout is None else monotonic() + connect_timeout
        super().__init__(connect_timeout=connect_timeout, frame_writer=self._take_stream, **arguments)

    def _take_stream(self, connection: Any, transport: Any) -> Callable[..., None]:
        """py-amqp has connected: read and write its frames over a link. Returns its frame writer."""
        link = self.link = Link(transport.sock, self._write_timeout)

        def write(frame_type: int, channel: int, signature: tuple[int, int], arguments: Any, content: Any) -> None:
            link.send(link.encoder.method(channel, *signature, bytes(arguments or b"")))

        return write

    def blocking_read(self, timeout: float | None = None) -> bool:
        """Have py-amqp handle the next method of the connection."""
        link = self.link
        assert link is not None
        events: list[Any] = []
        link.handle = events.append
        try:
            if not link.wait(lambda: events, self._deadline):
                raise TimeoutError("the broker did not answer in time")
        except (OSError, exceptions.RecoverableConnectionError) as error:
            if not self._proposed:
                raise
            text = f"{error}, after {self._proposed} was proposed: it may not accept that"
            raise (TimeoutError if isinstance(error, TimeoutError) else exceptions.RecoverableConnectionError)(
                text
            ) from error
        for event in events:
            if not isinstance(event, MethodReceived) or event.channel:
                raise exceptions.UnexpectedFrame("something other than the handshake")
            try:
                self.on_inbound_method(0, event.signature, payload(event.signature, event.arguments), None)
            except (LookupError, TypeError, ValueError, AttributeError, struct.error) as error:
                # py-amqp checks neither bounds nor types.
                raise exceptions.FrameSyntaxError(f"method {event.signature} of the handshake: {error!r}") from error
        return True

    def abandon(self) -> None:
        """Close what was opened."""
        if self.link is not None:
            self.link.close()
        elif self._transport is not None and self._transport.sock is not None:
            self._transport.sock.close()

    def _on_tune(self, channel_max: int, frame_max: int, heartbeat: int, **kwargs: Any) -> None:
        # py-amqp says what the broker says; section 1.4.2.6 wants the lower of both.
        if frame_max and frame_max < SMALLEST_FRAME_MAX:
            raise exceptions.FrameSyntaxError(f"frames of {frame_max} bytes at most, where AMQP allows larger ones")
        wish = max(self.frame_max, SMALLEST_WISH) if self.frame_max else 0
        frame_max, channel_max = lower(frame_max, wish) or DEFAULT_FRAME_MAX, lower(channel_max, self.channel_max)
        self._proposed = f"frame_max={frame_max}, channel_max={channel_max}"
        super()._on_tune(channel_max, frame_max, heartbeat, **kwargs)


def lower(theirs: int, ours: int) -> int:
    """The lower of two limits, of which 0 means none."""
    return min(theirs, ours) if theirs and ours else theirs or ours


def open_link(settings: Settings, write_timeout: float) -> tuple[Link, Handshake]:
    """Connect and log in. Returns the link, and the handshake with what was negotiated.

    Raises AccessRefused, NotAllowed (the virtual host), OSError.
    """
    handshake = Handshake(
        settings.connect_timeout,
        write_timeout,
        socket_settings={**socket_settings(write_timeout), **(settings.options.get("socket_settings") or {})},
        **arguments(settings),
    )
    try:
        with translated():
            handshake.connect()
    except BaseException:
        handshake.abandon()
        raise
    link = handshake.link
    assert link is not None
    link.decoder.frame_max = link.encoder.frame_max = handshake.frame_max
    link.heartbeat = handshake.heartbeat or 0.0
    return link, handshake


def arguments(settings: Settings) -> dict[str, Any]:
    """What py-amqp's connection is made with."""
    options = settings.options
    host = settings.hostname or "localhost"
    address = "127.0.0.1" if host == "localhost" else f"[{host}]" if ":" in host else host
    return {
        "host": f"{address}:{settings.port or 5672}",
        "userid": settings.userid,
        "password": settings.password,
        "login_method": settings.login_method,
        "virtual_host": settings.virtual_host,
        "heartbeat": math.ceil(settings.heartbeat),
        "ssl": tls(settings.ssl, host),
        "client_properties": client_properties(options),
        **{name: options[name] for name in DRIVER_OPTIONS if name in options},
    }


def socket_settings(write_timeout: float) -> dict[int, int]:
    """TCP options, where the system has them: a host that has vanished is found within the write timeout.

    py-amqp's own would give a broker up that has not read for a second, as one does that is short of memory.
    """
    wanted = {
        "TCP_USER_TIMEOUT": math.ceil(write_timeout * 1000),  # milliseconds
        "TCP_KEEPIDLE": KEEPALIVE_AFTER,
        "TCP_KEEPINTVL": KEEPALIVE_INTERVAL,
    }
    return {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}


def tls(wanted: Any, host: str) -> Any:
    """py-amqp's TLS settings. The host's name is checked unless certificates are not checked at all."""
    if not wanted:
        return False
    given = dict(wanted) if isinstance(wanted, Mapping) else {}
    check_tls_settings(given)
    found = {name: given.get(name, given.get(f"ssl_{name}")) for name in TLS_OPTIONS}
    found = {name: value for name, value in found.items() if value is not None}
    context = found.get("context")
    checks = given.get("check_hostname", given.get("ssl_check_hostname", True))
    if context is not None:
        found["context"] = {"check_hostname": checks, **context}
    elif found.get("cert_reqs") == 0 or not checks:  # ssl.CERT_NONE
        found.pop("server_hostname", None)  # py-amqp checks the name of a host that it is told
        return found
    found.setdefault("server_hostname", host)
    return found


def client_properties(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the broker's management shows of us."""
    from importlib.metadata import version

    properties: dict[str, Any] = {
        "product": "kombulite",
        "product_version": version("kombulite"),
        "platform": f"{platform.python_implementation()} {platform.python_version()}",
        "capabilities": {"publisher_confirms": True, "basic.nack": True, "exchange_exchange_bindings": True},
    }
    if options.get("connection_name"):
        properties["connection_name"] = str(options["connection_name"])
    return {**properties, **(options.get("client_properties") or {})}
