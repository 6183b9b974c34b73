"""Logging in: the methods of a connection from the protocol header to ``open-ok`` (sections 1.4.2 and 4.2.2).

``Login`` neither reads nor waits: give it the events of the decoder, and write what it returns. Both streams use it.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from amqp.serialization import dumps

from kombulite import exceptions
from kombulite._core import FrameEncoder, MethodReceived
from kombulite.brokers.amqp import methods
from kombulite.brokers.amqp.errors import closing_error
from kombulite.brokers.amqp.methods import Signature
from kombulite.brokers.base import Settings

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"

FRAME_MAX_LOWEST = 4096  # bytes, section 4.9
FRAME_MAX_LOWEST_PROPOSED = 8192  # bytes: RabbitMQ 4 does not answer a client that proposes less
FRAME_MAX_DEFAULT = 131072  # bytes, where neither side has a limit
CHANNEL_MAX = 65535

#: What this client can do, without being asked.
CAPABILITIES = ("publisher_confirms", "basic.nack", "exchange_exchange_bindings")
#: What it can do, and says if the broker can do it too.
NEGOTIATED_CAPABILITIES = ("consumer_cancel_notify", "connection.blocked", "authentication_failure_close")


class Mechanism:
    """A SASL mechanism of the option ``authentication``; py-amqp's classes have the same methods."""

    mechanism: bytes

    def start(self, connection: Any) -> Any:
        """Return the first response as bytes, or NotImplemented if the mechanism cannot be used here."""
        raise NotImplementedError

    def respond(self, challenge: bytes) -> bytes:
        """Return the response to a challenge."""
        raise exceptions.ConnectionError(
            f"cannot log in by {self.mechanism.decode()}: the broker sent a challenge, to which it has no response"
        )


class Response(Mechanism):
    """A mechanism whose response is known beforehand."""

    def __init__(self, mechanism: str, response: bytes) -> None:
        self.mechanism = mechanism.encode()
        self.response = response

    def start(self, connection: Any) -> bytes:
        """Return the response."""
        return self.response


class Endpoint(NamedTuple):
    """Where the connection leads: what GSSAPI asks of py-amqp's transport."""

    sock: Any
    host: str


class Login:
    """The login of one connection.

    Args:
        settings: User, password, virtual host, heartbeat and options.
        transport: The endpoint that the connection leads to.
    """

    def __init__(self, settings: Settings, transport: Endpoint) -> None:
        options = settings.options
        self.transport = transport
        self.is_done = False
        self.server_properties: dict[str, Any] = {}
        self.channel_max = CHANNEL_MAX
        self.frame_max = FRAME_MAX_DEFAULT
        self.heartbeat = 0
        self._settings = settings
        self._mechanisms = tuple(mechanisms(settings))
        self._mechanism: Any = None
        self._encoder = FrameEncoder()
        self._proposed = ""  # what the broker may not accept, for the error if it does not answer
        self._on_open = options.get("on_open")

    def receive(self, event: Any) -> bytes:
        """Return the frames that answer an event.

        Raises:
            LoginRefused: User or password is wrong.
            NotAllowed: There is no such virtual host, or the user may not have it.
            ConnectionError: The broker offers no mechanism that can be used, or closed the connection.
            UnexpectedFrame: The event has no place in a login.
            FrameSyntaxError: Its arguments are malformed.
        """
        if not isinstance(event, MethodReceived) or event.channel:
            raise exceptions.UnexpectedFrame("something other than the handshake")
        signature, arguments = event.signature, event.arguments
        if signature == methods.CONNECTION_START:
            return self._start(*methods.decode("ooFSS", arguments))
        if signature == methods.CONNECTION_SECURE:
            return self._secure(*methods.decode("S", arguments))
        if signature == methods.CONNECTION_TUNE:
            return self._tune(*methods.decode("BlB", arguments))
        if signature == methods.CONNECTION_OPEN_OK:
            self.is_done = True
            if callable(self._on_open):
                self._on_open(self)
            return b""
        if signature == methods.CONNECTION_CLOSE.signature:
            error = closing_error(arguments, exceptions.ConnectionError)
            if isinstance(error, exceptions.AccessRefused):
                raise exceptions.LoginRefused(error.reply_text, error.method_sig, error.method_name, error.reply_code)
            raise error
        raise exceptions.UnexpectedFrame(f"method {signature} during the handshake")

    def explain(self, error: Exception) -> Exception:
        """Return an error, or one that says what the broker did not answer, if that is known."""
        if not self._proposed or self.is_done:
            return error
        text = f"{error}, after {self._proposed} was proposed: it may not accept that"
        return TimeoutError(text) if isinstance(error, TimeoutError) else exceptions.RecoverableConnectionError(text)

    def _send(self, signature: Signature, format: str, *arguments: Any) -> bytes:
        return self._encoder.method(0, *signature, methods.encode("Connection", format, arguments))

    def _start(self, major: int, minor: int, server_properties: Any, offered: Any, locales: Any) -> bytes:
        if not isinstance(server_properties, dict):
            raise exceptions.FrameSyntaxError("the broker's properties are no table")
        self.server_properties = server_properties
        names = _bytes(offered).split(b" ")
        response: Any = NotImplemented
        for mechanism in self._mechanisms:
            if mechanism.mechanism in names:
                response = mechanism.start(self)
                if response is not NotImplemented:
                    self._mechanism = mechanism
                    break
        else:
            ours = ", ".join(each.mechanism.decode() for each in self._mechanisms if each.mechanism)
            theirs = ", ".join(name.decode(errors="replace") for name in names)
            raise exceptions.ConnectionError(
                f"the broker offers no auth mechanism that can be used (can offer: {ours}; available: {theirs})"
            )
        able = server_properties.get("capabilities")
        properties = client_properties(self._settings.options, able if isinstance(able, dict) else {})
        locale = self._settings.options.get("locale") or "en_US"
        return self._send((10, 11), "FsSs", properties, self._mechanism.mechanism, response, locale)

    def _secure(self, challenge: Any) -> bytes:
        respond = getattr(self._mechanism, "respond", None)
        if respond is None:
            raise exceptions.ConnectionError("the broker sent a challenge, to which the login method has no response")
        return self._send((10, 21), "S", respond(_bytes(challenge)))

    def _tune(self, channel_max: int, frame_max: int, heartbeat: int) -> bytes:
        # Section 1.4.2.6: the lower of what both sides want; 0 stands for no limit.
        if frame_max and frame_max < FRAME_MAX_LOWEST:
            raise exceptions.FrameSyntaxError(f"frames of {frame_max} bytes at most, where AMQP allows larger ones")
        options = self._settings.options
        wish = max(options.get("frame_max") or FRAME_MAX_DEFAULT, FRAME_MAX_LOWEST_PROPOSED)
        self.frame_max = lower(frame_max, wish)
        self.channel_max = lower(channel_max, options.get("channel_max") or CHANNEL_MAX)
        wanted = math.ceil(self._settings.heartbeat)
        self.heartbeat = lower(heartbeat, wanted) if wanted else 0
        self._proposed = f"frame_max={self.frame_max}, channel_max={self.channel_max}"
        return self._send((10, 31), "BlB", self.channel_max, self.frame_max, self.heartbeat) + self._send(
            (10, 40), "ssb", self._settings.virtual_host, "", False
        )


def is_rabbitmq_since(server_properties: Mapping[str, Any], version: tuple[int, int]) -> bool:
    """Return whether a broker is a RabbitMQ of this version (major, minor) or a later one."""
    if server_properties.get("product") != "RabbitMQ":
        return False
    try:
        major, minor = (int(part) for part in str(server_properties.get("version")).split(".")[:2])
    except ValueError:
        return False
    return (major, minor) >= version


def lower(theirs: int, ours: int) -> int:
    """Return the lower of two limits, of which 0 means none."""
    return min(theirs, ours) if theirs and ours else theirs or ours


def mechanisms(settings: Settings) -> Iterable[Any]:
    """Return the mechanisms to choose from, the preferred one first.

    Raises:
        ValueError: The login method is unknown, or has neither user nor password.
    """
    options, method = settings.options, settings.login_method
    given = options.get("authentication")
    if given:
        return given if isinstance(given, (list, tuple)) else (given,)
    user, password = settings.userid, settings.password
    if method is None:
        return (
            Response("EXTERNAL", b""),
            *_by_password("AMQPLAIN", user, password),
            *_by_password("PLAIN", user, password),
        )
    if method == "EXTERNAL":
        return (Response("EXTERNAL", b""),)
    if method in ("PLAIN", "AMQPLAIN"):
        found = _by_password(method, user, password)
        if not found:
            raise ValueError(f"the login method {method} needs a user and a password")
        return found
    if method == "GSSAPI":
        from amqp.sasl import GSSAPI  # which needs the package gssapi

        return (GSSAPI(user),)
    if options.get("login_response") is not None:
        return (Response(method, options["login_response"]),)
    raise ValueError(f"unknown login method {method!r}; known ones: PLAIN, AMQPLAIN, EXTERNAL, GSSAPI")


def _by_password(method: str, user: str | None, password: str | None) -> tuple[Response, ...]:
    if user is None or password is None:
        return ()
    if method == "PLAIN":
        return (Response(method, f"\0{user}\0{password}".encode()),)
    table = bytes(dumps("F", ({"LOGIN": user, "PASSWORD": password},)))
    return (Response(method, table[4:]),)  # without its length


def client_properties(options: Mapping[str, Any], able: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the broker's management shows of this client. ``able``: the broker's capabilities."""
    from importlib.metadata import version

    capabilities = dict.fromkeys(CAPABILITIES, True)
    capabilities.update((name, True) for name in NEGOTIATED_CAPABILITIES if able.get(name))
    properties: dict[str, Any] = {
        "product": "kombulite",
        "product_version": version("kombulite"),
        "platform": f"{platform.python_implementation()} {platform.python_version()}",
        "capabilities": capabilities,
    }
    if options.get("connection_name"):
        properties["connection_name"] = str(options["connection_name"])
    given = dict(options.get("client_properties") or {})
    if isinstance(given.get("capabilities"), Mapping):
        given["capabilities"] = {**given["capabilities"], **capabilities}
    return {**properties, **given}


def _bytes(value: Any) -> bytes:
    """Return a long string as bytes: py-amqp decodes those that are text."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
