"""The application behind ``kombulite web``.

A request needs the token, as the cookie that the first visit with ``?token=`` sets, or as ``Authorization: Bearer``.
Its host must be one that was allowed, so that no other site's name leads here. What changes a queue exists only if the
operator allowed it, takes JSON only, and must name the queue once more.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Any

import click
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from kombulite import Queue
from kombulite.cli.messages import move_messages, peek
from kombulite.cli.monitor import Monitor
from kombulite.cli.options import connected, connected_both
from kombulite.cli.web.history import History

COOKIE = "kombulite_token"
MAX_BODY = 64 * 1024  # bytes of a request
MAX_TAIL = 100  # messages
ASSETS = {"/app.js": "text/javascript", "/app.css": "text/css"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Handler = Callable[[Request], Awaitable[Response]]


class Panel:
    """What the routes do: the brokers, their history, and what may be changed."""

    def __init__(
        self, brokers: Sequence[str], options: Mapping[str, Any], history: History, token: str, may_change: bool
    ) -> None:
        self._brokers = brokers
        self._options = options
        self._history = history
        self._token = token
        self._may_change = may_change
        self._registry = CollectorRegistry()
        self._registry.register(history)

    def routes(self) -> list[Route]:
        """Return the routes."""
        found = [
            Route("/", self._guarded(self.page)),
            *(Route(path, self._guarded(self.asset)) for path in ASSETS),
            Route("/api/queues", self._guarded(self.queues)),
            Route("/metrics", self._guarded(self.metrics)),
        ]
        if self._may_change:
            for name, change in (("tail", self._tail), ("purge", self._purge), ("move", self._move)):
                found.append(Route(f"/api/{name}", self._guarded(self._changing(change)), methods=["POST"]))
        return found

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            given = request.query_params.get("token")
            if given is not None and request.url.path == "/" and self._is_token(given):
                response: Response = RedirectResponse("/", status_code=303)
                response.set_cookie(COOKIE, given, httponly=True, samesite="strict")
            elif self._is_token(request.cookies.get(COOKIE)) or self._is_token(_bearer(request)):
                response = await handler(request)
            else:
                raise HTTPException(401, "open the address that kombulite web printed: it has the token")
            response.headers.update(HEADERS)
            return response

        return guarded

    def _is_token(self, given: str | None) -> bool:
        return given is not None and secrets.compare_digest(given.encode(), self._token.encode())

    async def page(self, request: Request) -> Response:
        """Return the page."""
        return Response(_asset("index.html"), media_type="text/html")

    async def asset(self, request: Request) -> Response:
        """Its script and style."""
        path = request.url.path
        return Response(_asset(path[1:]), media_type=ASSETS[path])

    async def queues(self, request: Request) -> Response:
        """Return the last reading."""
        return JSONResponse({**self._history.as_dict(), "may_change": self._may_change})

    async def metrics(self, request: Request) -> Response:
        """Return the last reading for Prometheus."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    # --- what changes queues

    def _changing(self, change: Callable[[str, Mapping[str, Any]], Any]) -> Handler:
        async def handler(request: Request) -> Response:
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                raise HTTPException(415, "the body must be application/json")
            body = b""
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY:
                    raise HTTPException(413, f"the body has more than {MAX_BODY} bytes")
            try:
                arguments = json.loads(body)
                broker = dict(enumerate(self._brokers))[arguments["broker"]]
                result = await asyncio.to_thread(change, broker, arguments)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                raise HTTPException(400, f"not understood: {error!r}") from error
            except click.ClickException as error:
                raise HTTPException(502, error.message) from error
            return JSONResponse(result)

        return handler

    def _tail(self, broker: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        count = min(int(arguments.get("count", 20)), MAX_TAIL)
        with connected(broker, self._options) as connection:
            return {"messages": peek(Queue(_name(arguments, "queue")), connection, count)}

    def _purge(self, broker: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        name = _confirmed(arguments, "queue")
        with connected(broker, self._options) as connection:
            return {"purged": Queue(name)(connection).purge()}

    def _move(self, broker: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        source, target = _confirmed(arguments, "queue"), _name(arguments, "target")
        if source == target:
            raise ValueError("source and target are the same queue")
        options = {"confirm_publish": True, **self._options}
        with connected_both(broker, options, broker, options) as (taking, giving):
            there = Queue(target)(giving)
            there.queue_declare(passive=True)
            return {"moved": sum(1 for _ in move_messages(Queue(source)(taking), there, None))}


def create_app(
    brokers: Sequence[str],
    options: Mapping[str, Any],
    monitor: Monitor,
    *,
    token: str,
    interval: float,
    hosts: Sequence[str],
    may_change: bool,
) -> Starlette:
    """Return the application.

    Args:
        brokers: URLs of the brokers.
        options: Transport options for all of them.
        monitor: What reads them; it is closed with the application.
        token: What a request has to bring.
        interval: Seconds between two readings.
        hosts: Host names that requests may be sent to.
        may_change: Whether messages may be looked at, moved and purged.
    """
    history = History(monitor, interval)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        reading = asyncio.create_task(history.run())
        try:
            yield
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
            monitor.close()

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return PlainTextResponse(error.detail, error.status_code, {**HEADERS, **(error.headers or {})})

    return Starlette(
        routes=Panel(brokers, options, history, token, may_change).routes(),
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={HTTPException: refused},
        lifespan=lifespan,
    )


def _asset(name: str) -> bytes:
    return files("kombulite.cli.web").joinpath(name).read_bytes()


def _bearer(request: Request) -> str | None:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    return credentials if scheme.lower() == "bearer" else None


def _name(arguments: Mapping[str, Any], key: str) -> str:
    name = arguments[key]
    if not isinstance(name, str) or not name:
        raise ValueError(f"{key} must be the name of a queue, got {name!r}")
    return name


def _confirmed(arguments: Mapping[str, Any], key: str) -> str:
    name = _name(arguments, key)
    if arguments.get("confirm") != name:
        raise ValueError(f"confirm must repeat the name {name!r}")
    return name
