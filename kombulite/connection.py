"""A connection to a broker: where it is, when it is opened, and what happens when it fails.

Longer than other modules, and its class wider: kombu's users find all of this on one class.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from kombulite import exceptions, messaging
from kombulite._client.address import DEFAULT_FAILOVER_STRATEGY, FAILOVER_STRATEGIES, Address
from kombulite._client.counters import Counters
from kombulite._client.interfaces import Bindable
from kombulite._client.lifecycle import State
from kombulite._client.process import add_hook, register, remove_hook, watch_connections
from kombulite._client.retry import (
    CONNECT_FIELDS,
    BlockingRetrier,
    ChannelHolder,
    Refusals,
    RetryPolicy,
    library_errors,
)
from kombulite._client.session import ChannelSession
from kombulite._client.topology import restore_topology
from kombulite._core import declaration_key
from kombulite._sync.channel import Channel
from kombulite.abstract import is_connection, maybe_channel
from kombulite.brokers import check_url_transport as _check_url_transport  # noqa: F401 - by kombu's name too
from kombulite.brokers import is_native, resolve_transport
from kombulite.brokers.base import Capabilities, Event, Transport
from kombulite.transport import TRANSPORT_ALIASES, get_transport_cls, supports_librabbitmq
from kombulite.transport.adapter import AdaptedChannel, AdaptedTransport, attach, facade_channel
from kombulite.transport.distribution import named_requirement
from kombulite.utils.collections import HashedSeq  # noqa: F401 - this and some of the next by kombu's names
from kombulite.utils.debug import LOG_CHANNEL as _log_channel  # noqa: N811 - kombu's name, as the next
from kombulite.utils.debug import LOG_CONNECTION as _log_connection  # noqa: N811
from kombulite.utils.debug import log_calls
from kombulite.utils.functional import dictfilter, lazy, retry_over_time, shufflecycle  # noqa: F401
from kombulite.utils.locks import Lock
from kombulite.utils.objects import cached_property
from kombulite.utils.url import as_url, maybe_sanitize_url, parse_url  # noqa: F401

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kombulite._client.hooks import Hook, Hooks
    from kombulite._sync.consumer import ConsumerArguments
    from kombulite._sync.producer import ProducerArguments
    from kombulite.resource import ChannelPool, ConnectionPool
    from kombulite.simple import SimpleBuffer, SimpleQueue

__all__ = [
    "BrokerConnection",
    "Channel",
    "ChannelPool",
    "Connection",
    "ConnectionPool",
    "Counters",
    "add_hook",
    "is_connection",
    "maybe_channel",
    "remove_hook",
    "watch_connections",
]

T = TypeVar("T")
Errback = Callable[[Any, float], Any]


class ErrorClasses:
    """Tuple of error classes: that of the connection's transport, unless a program sets another."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, connection: None, owner: type) -> ErrorClasses: ...

    @overload
    def __get__(self, connection: Connection, owner: type) -> tuple[type[BaseException], ...]: ...

    def __get__(self, connection: Connection | None, owner: type) -> ErrorClasses | tuple[type[BaseException], ...]:
        if connection is None:
            return self
        return error_classes(connection._transport_class, self._name)


class Connection(Address):
    """Connection to a broker.

    Creating one does no I/O: it opens when it is first used, and opens again if it is used after it was lost or closed.
    Threads may share it; if several wait in ``drain_events``, one reads for all. A value in the URL wins over the
    keyword, except for ``transport``.

    Args:
        hostname: A URL, a list of URLs or one string with ``;`` between them (failover: if one fails, the next is
            tried), or a host name.
        userid: User name.
        password: Password, or a callable that returns one; it is called for each connect.
        virtual_host: Virtual host on AMQP, database number on Redis (default: the transport's).
        port: TCP port (default: the transport's).
        insist: Has no effect; kombu's programs pass it.
        ssl: True for TLS, or a dict of TLS settings, which the page of the transport lists.
        transport: Name of a transport, a path ``"module:Class"``, or a class (default: the URL's scheme).
        connect_timeout: Seconds for one attempt to connect, including TLS and login; on Redis for each of these steps.
        transport_options: Options of the transport.
        login_method: SASL mechanism on AMQP, such as ``"PLAIN"`` or ``"EXTERNAL"``.
        uri_prefix: Prefix of the URL, as in ``sqla+sqlite://``.
        heartbeat: Seconds between AMQP heartbeats; 0 switches them off.
        failover_strategy: ``"round-robin"``, ``"shuffle"``, or a callable that makes an endless iterator over the
            URLs.
        alternates: Further URLs for failover.
        credential_provider: An object of redis-py's interface that returns user name and password.
        ignored: Other keywords, accepted because kombu accepts them.

    Raises:
        KeyError: The transport is unknown.
        ValueError: The URL is malformed or has an unknown option.

    Example:
        ```py
        with Connection("amqp://guest:guest@localhost//") as connection:
            connection.Producer().publish({"n": 1}, routing_key="numbers", declare=[Queue("numbers")])
        ```
    """

    # What programs read from the class.
    hostname: Any = None
    userid: Any = None
    password: Any = None
    port: Any = None
    ssl: Any = None
    login_method: Any = None
    virtual_host: Any = "/"
    connect_timeout: Any = 5
    heartbeat: Any = None
    uri_prefix: Any = None
    transport_options: Any = None
    cycle: Any = None
    failover_strategy: Any = DEFAULT_FAILOVER_STRATEGY
    _logger = _log_connection  # whether what is done is logged
    resolve_aliases: ClassVar[dict[str, str]]
    failover_strategies: ClassVar[dict[str, Any]]

    # Not in its dict: CPython looks attributes up fast as long as there are no more than 30.
    __slots__ = ("_closed", "kept_state")

    #: What a broken connection raises, and a failed request; and those of them after which trying again may do.
    connection_errors: ErrorClasses = ErrorClasses()
    channel_errors: ErrorClasses = ErrorClasses()
    recoverable_connection_errors: ErrorClasses = ErrorClasses()
    recoverable_channel_errors: ErrorClasses = ErrorClasses()

    def __init__(
        self,
        hostname: str | Iterable[str] | None = "localhost",
        userid: str | None = None,
        password: str | Callable[[], str] | None = None,
        virtual_host: str | None = None,
        port: int | None = None,
        insist: bool = False,
        ssl: Any = False,
        transport: Any = None,
        connect_timeout: float | None = 5,
        transport_options: Mapping[str, Any] | None = None,
        login_method: str | None = None,
        uri_prefix: str | None = None,
        heartbeat: float | None = 0,
        failover_strategy: str | Callable[[Iterable[str]], Iterator[str]] | None = DEFAULT_FAILOVER_STRATEGY,
        alternates: Iterable[str] | None = None,
        credential_provider: Any = None,
        **ignored: object,
    ) -> None:
        super().__init__(
            hostname,
            alternates,
            failover_strategy,
            transport_options,
            {
                "userid": userid,
                "password": password,
                "virtual_host": virtual_host,
                "port": port,
                "insist": insist,
                "ssl": ssl,
                "transport": transport,
                "connect_timeout": connect_timeout,
                "login_method": login_method,
                "heartbeat": heartbeat,
                "uri_prefix": uri_prefix,
                "credential_provider": credential_provider,
            },
        )
        self._lock = Lock()
        self._carrier: Transport | None = None  # as this class uses the transport
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self.session = ChannelSession(self.as_uri)
        self._loop: Any = None  # the event loop that the lost connection was registered with
        #: The exchanges and bindings that a virtual transport of others knew, kept for the next one.
        self.kept_state: Any = None
        self._closed: bool | None = None
        register(self)

    def clone(self, **overrides: Any) -> Connection:
        """Return a connection with the same settings and hooks, not opened.

        Args:
            **overrides: Arguments of the constructor to replace.
        """
        arguments = {**self._own_info(), **overrides}
        return self._hook_up(type(self)(**arguments))

    def clone_for(self, pool: ConnectionPool[Any]) -> Connection:
        """Return a clone for a pool: a ``PooledConnection``, or an instance of the subclass of ``Connection``.

        Args:
            pool: The pool that the clone belongs to.
        """
        if type(self) is not Connection:
            return self.clone()
        return self._hook_up(PooledConnection(pool, **self._own_info()))

    def _hook_up(self, clone: Connection) -> Connection:
        for hook in self.hooks or ():
            clone.add_hook(hook)
        return clone

    def _own_info(self) -> dict[str, Any]:
        """Return the constructor's arguments, of which nothing is shared with this connection."""
        info = self.info()
        return {**info, "transport_options": dict(info["transport_options"]), "alternates": list(self.alt)}

    def __copy__(self) -> Connection:
        return self.clone()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), self.info())

    def __repr__(self) -> str:
        return f"<Connection: {self.as_uri()} at {id(self):#x}>"

    # --- the transport

    def get_transport_cls(self) -> Any:
        """Return the class of the transport as kombu's programs know it. Subclasses may choose another."""
        name = self.transport_cls
        return get_transport_cls(name) if name in TRANSPORT_ALIASES else resolve_transport(name)

    @property
    def _transport_class(self) -> Any:
        """The class that is used: one of kombulite's own (``brokers.base``), or of kombu's interface."""
        own = OWN_METHODS["get_transport_cls"]
        if get_transport_cls is not OWN_GET_TRANSPORT_CLS:  # a program has replaced the name in this module
            return resolve_transport(get_transport_cls(self.transport_cls))
        is_overridden = getattr(self.get_transport_cls, "__func__", None) is not own
        if is_overridden and (chosen := self.get_transport_cls()) is not own(self):
            return resolve_transport(chosen)
        return resolve_transport(self.transport_cls)

    def create_transport(self) -> Any:
        """Return a new transport that is not connected."""
        cls = self._transport_class
        if not is_native(cls):
            with named_requirement(getattr(cls, "__module__", "")):
                return cls(client=self)
        transport = cls(self.settings())
        transport.client = self
        if _log_connection:
            log_calls(transport, "kombu.connection", f"Kombu connection:{id(self):#x}")
        return transport

    def _make_transport(self) -> Transport:
        """Return a new transport, as this class uses it."""
        made = self.create_transport()
        return made if isinstance(made, Transport) else AdaptedTransport(self, made)

    def _own_transport(self) -> Transport:
        """Return the transport as this class uses it, made when it is first asked for."""
        with self._lock:
            if self._carrier is None:
                self._carrier = self._make_transport()
            return self._carrier

    @property
    def transport(self) -> Any:
        """The transport, created when it is first read."""
        return self._own_transport().public

    @property
    def _transport(self) -> Any:
        """The transport, or None if there is none yet. Programs may set another one."""
        return None if self._carrier is None else self._carrier.public

    @_transport.setter
    def _transport(self, transport: Any) -> None:
        before = None if self._carrier is None else self._carrier.adapted
        is_usable = transport is None or isinstance(transport, Transport)
        self._carrier = transport if is_usable else AdaptedTransport(self, transport)
        if before is not None and not is_usable:
            self._carrier.adapted.link = before.link

    def _parse(self, url: str) -> dict[str, Any]:
        return parse_url(url)  # by the name of this module, which a program may replace

    def _preferred(self, transport: Any) -> Any:
        # What a program puts in the place of the name decides; kombulite's own transport needs no librabbitmq.
        is_replaced = supports_librabbitmq is not OWN_SUPPORTS_LIBRABBITMQ
        return "librabbitmq" if transport == "amqp" and is_replaced and supports_librabbitmq() else transport

    def _transport_defaults(self) -> Mapping[str, Any]:
        # Only a transport that is made for this connection knows, and whoever asks for a URL has made it.
        if is_native(self._transport_class):
            return {}
        params = self.transport.default_connection_params
        return params if isinstance(params, Mapping) else {}  # a stand-in for a transport has anything

    def get_manager(self, *args: Any, **kwargs: Any) -> Any:
        """Return the object that administers the broker, if the transport has one.

        Args:
            *args: Passed on to the transport.
            **kwargs: Passed on to the transport.
        """
        return self.transport.get_manager(*args, **kwargs)

    @cached_property
    def manager(self) -> Any:
        """The object that administers the broker, created once."""
        transport = self._own_transport()
        return self.get_manager() if transport.adapted is None else transport.public.manager

    @property
    def connected(self) -> bool:
        """True if the connection is open and alive."""
        return self._carrier is not None and not self._closed and self._carrier.connected

    @property
    def connection(self) -> Any:
        """The transport, or the connection object of a foreign one, connected if needed; None once closed."""
        return None if self._closed else self.connect()

    @property
    def _connection(self) -> Any:
        """The same if it is connected, else None."""
        transport = self._carrier
        if transport is None:
            return None
        return transport.public_connection if transport.adapted is not None or transport.connected else None

    @_connection.setter
    def _connection(self, connection: Any) -> None:
        adapted = self._own_transport().adapted
        if adapted is None:
            raise AttributeError("the connection of one of kombulite's own transports cannot be replaced")
        adapted.link = connection

    @property
    def client(self) -> Connection:
        """The connection itself, for kombu's path ``channel.connection.client``."""
        return self

    def connect(self) -> Any:
        """Connect now, in two attempts, or if there are several URLs in one for each. Return ``connection``.

        Raises:
            ConnectionError: Connecting failed; the transport's own error.
        """
        attempts = max(1, len(self.alt) - 1)
        return (
            self._connection
            if self.connected
            else self._ensure_connection(max_retries=attempts, reraise_as_library_errors=False)
        )

    def _connected_transport(self) -> Transport:
        self.connect()
        return self._own_transport()

    def _establish_connection(self) -> Any:
        """Have a transport of others connect."""
        self._debug("establishing connection...")
        link = self.transport.establish_connection()
        self._debug("connection established: %r", self)
        return link

    def _connection_factory(self) -> Any:
        """Connect, without another try. Returns ``connection``."""
        return self._connect_once().public_connection

    @property
    def state(self) -> State:
        """The state of the connection: closed, connecting, open, suspect, lost or restoring."""
        return self._watch()

    def _watch(self) -> State:
        """See whether the broker has fallen silent, or speaks again. Returns the state."""
        state, transport = self.session.life.state, self._carrier
        if state not in (State.OPEN, State.SUSPECT):
            return state
        if transport is None or not transport.connected:
            return State.LOST
        seen = State.SUSPECT if transport.is_suspect else State.OPEN
        if seen is not state and self._lock.acquire(blocking=False):  # another thread may be connecting
            try:
                if self._carrier is transport and self.session.life.state in (State.OPEN, State.SUSPECT):
                    self.session.life.to(seen)
            finally:
                self._lock.release()
        return seen

    def _connect_once(self) -> Transport:
        with self._lock:
            if self.connected:
                return self._own_transport()
            transport = self._carrier
            if not self._is_unused(transport):  # else a program that looked at it may have changed it
                self._suspend()
                transport = self._make_transport()
            assert transport is not None
            before = self.session.life.state
            self.session.life.to(State.CONNECTING)
            self._closed = False
            self._carrier = transport if transport.adapted is not None else None
            try:
                transport.connect()
            except BaseException as error:
                self.session.life.to(before, error)
                self._carrier = None
                raise
            self._carrier = transport
            if transport.adapted is None:  # those of others hold the connection
                # Whoever drops a connection without closing it loses nothing: its messages go back.
                self._finalizer = weakref.finalize(self, _close_in, os.getpid(), transport)
                self._finalizer.atexit = False
            self._restore(transport)
            self.session.connect(transport.poll_ready)
            self.session.life.to(State.OPEN)
            if before is State.LOST:
                self.session.tally.count_reconnect()
            loop, self._loop = self._loop, None
            if loop is not None:
                transport.register_with_event_loop(transport, loop)
            return transport

    def _is_unused(self, transport: Transport | None) -> bool:
        """Whether it has not been connected yet, and is for the place where the connection is now."""
        if transport is None:
            return False
        if transport.adapted is not None:
            return bool(transport.adapted.is_unused)
        return self.session.life.state is State.CLOSED and transport.settings == self.settings()

    def _suspend(self, reason: object = None) -> None:
        """Keep the channels for the next connection, because the transport lost its own."""
        life = self.session.life
        if life.state in (State.OPEN, State.SUSPECT, State.RESTORING):
            life.to(State.LOST, reason)
        transport, self._carrier = self._carrier, None
        self.session.lose_connection(reason)
        self._drop_finalizer()
        if transport is not None:
            self._loop = transport.event_loop or self._loop
            transport.unregister_from_event_loop(transport, self._loop)
            transport.collect()

    def _restore(self, transport: Transport) -> None:
        """Go on with the channels of the connection before."""
        session = self.session
        channels, topology = list(session.channels.values()), session.topology
        everything = session.must_declare_all(self.place, transport.capabilities.keeps_durable)
        if not channels and not topology.needs_restoring(everything):
            topology.place = self.place
            return
        session.life.to(State.RESTORING)
        try:
            restore_topology(transport, topology, everything)
            for channel in channels:
                channel.reopen(transport)
            reopened = [each for each in channels if each.is_open]  # another thread may have closed some
            session.replace_channels(reopened)
            for channel in reopened:
                if channel.is_open:
                    channel.resume(topology.renamed)
        except BaseException as error:
            self._suspend(error)
            raised = session.restore_error(error, everything)
            if raised is error:
                raise
            raise raised from error
        session.note_restored(self.place)

    def _drop_finalizer(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None

    def ensure_connection(
        self,
        errback: Errback | None = None,
        max_retries: int | None = None,
        interval_start: float = 2,
        interval_step: float = 2,
        interval_max: float = 30,
        callback: Callable[[], Any] | None = None,
        reraise_as_library_errors: bool = True,
        timeout: float | None = None,
    ) -> Connection:
        """Connect, and retry as the arguments say. Return the connection.

        If there are several URLs, the next one is tried at once; the thread sleeps only after all were tried. A refusal
        (of a password, a database, a virtual host) is final only after all URLs have refused; the error then names them
        all.

        Args:
            errback: Called with (exception, interval in seconds) after each failure.
            max_retries: Further attempts after the first (None: no limit).
            interval_start: Seconds before the first further attempt.
            interval_step: Seconds by which the interval grows with each attempt.
            interval_max: Seconds that the interval grows to.
            callback: Called before each attempt after a failure.
            reraise_as_library_errors: If False, the transport's own error is raised.
            timeout: Seconds after which retrying ends.

        Raises:
            OperationalError: No broker could be reached.
        """
        self._ensure_connection(
            errback,
            max_retries,
            interval_start,
            interval_step,
            interval_max,
            callback,
            reraise_as_library_errors,
            timeout,
        )
        return self

    def _ensure_connection(
        self,
        errback: Errback | None = None,
        max_retries: int | None = None,
        interval_start: float = 2,
        interval_step: float = 2,
        interval_max: float = 30,
        callback: Callable[[], Any] | None = None,
        reraise_as_library_errors: bool = True,
        timeout: float | None = None,
    ) -> Any:
        """Do what ``ensure_connection`` does, and return ``connection``."""
        if self.connected:
            return self._connection
        retryable = self.recoverable_connection_errors
        refusals = Refusals(retryable, self.alt)
        if self.cycle is not None:
            retryable = (*self.connection_errors, *self.channel_errors, *retryable)

        def on_error(error: Any, intervals: Iterator[float], retries: int) -> float:
            if refusals.are_complete:
                raise error
            interval = next(intervals) if self.completes_cycle(retries) else 0
            if errback is not None:
                errback(error, interval)
            return interval

        def connect_once() -> Any:
            if refusals.is_switch_due:
                self.maybe_switch_next()
            try:
                return self._connection_factory()
            except retryable as error:
                refusals.add(self.current_url, self.as_uri(), error)
                raise

        def connect() -> Any:
            try:
                return retry_over_time(
                    connect_once,
                    retryable,
                    errback=on_error,
                    max_retries=max_retries,
                    interval_start=interval_start,
                    interval_step=interval_step,
                    interval_max=interval_max,
                    callback=callback,
                    timeout=timeout,
                )
            except BaseException as error:
                if not self.connected:  # whatever has ended it, the next call must not begin at the same host
                    self.maybe_switch_next()
                named = refusals.summarize(error)
                if named is error or not isinstance(error, retryable):
                    raise
                raise named from error

        if reraise_as_library_errors:
            with self._reraise_as_library_errors():
                return connect()
        return connect()

    def _reraise_as_library_errors(
        self,
        ConnectionError: type[Exception] = exceptions.OperationalError,
        ChannelError: type[Exception] = exceptions.OperationalError,
    ) -> library_errors:
        return library_errors(self, ConnectionError, ChannelError)

    def as_uri(
        self, include_password: bool = False, mask: str = "**", getfields: Callable[[Any], Any] | None = None
    ) -> str:
        """Return the URL of the connection. The password is masked by default.

        Args:
            include_password: If True, the password is in the URL.
            mask: Text shown for the password.
            getfields: Ignored; kept for compatibility.
        """
        if self._facts is None and not is_native(self._transport_class):
            hostname = self.hostname or "localhost"
            if self.transport.can_parse_url is True:
                try:
                    shown: str = self.transport.as_uri(self.hostname, include_password, mask)
                    return shown
                except NotImplementedError:
                    pass
            if self.uri_prefix or self.transport.can_parse_url is True:
                url = f"{self.uri_prefix}+{hostname}" if self.uri_prefix else hostname
                return url if include_password else str(maybe_sanitize_url(url, mask))
        return super().as_uri(include_password, mask, getfields)

    # --- channels and entities

    def channel(self) -> Channel:
        """Return a new channel, connecting if needed.

        It is a ``Channel``, or what a transport written for kombu has in its place, with the same verbs.
        """
        self._debug("create channel")
        transport = self._connected_transport()
        with self._lock:
            if transport.adapted is not None:
                raw: Channel = transport.adapted.create_channel()
                attach(raw, AdaptedChannel(self, transport.adapted, transport.open_channel(), raw))
                return raw
            channel = Channel(self, transport, transport.open_channel())
            self.session.add(channel)
            if _log_channel:
                log_calls(channel, "kombu.channel", f"Kombu channel:{channel.channel_id}")
            return channel

    @property
    def default_channel(self) -> Channel:
        """A channel that all users without one of their own share; reading it opens it, after reconnecting."""
        channel: Channel | None = self.session.default_channel
        if channel is not None and facade_channel(channel).is_open and self.connected:
            return channel
        self._ensure_connection(**self._extract_failover_opts())
        with self._lock:
            if self.session.default_channel is None or not facade_channel(self.session.default_channel).is_open:
                self.session.default_channel = self.channel()
            opened: Channel = self.session.default_channel
            return opened

    def maybe_close_channel(self, channel: Any) -> None:
        """Close a channel, and ignore errors of the connection and the channel.

        Args:
            channel: The channel.
        """
        try:
            channel.close()
        except (*self.connection_errors, *self.channel_errors):
            pass

    def maybe_declare(
        self,
        entity: messaging.Exchange | messaging.Queue,
        channel: Bindable | None = None,
        retry: bool = False,
        **retry_policy: Any,
    ) -> bool:
        """Declare an entity, unless this connection has declared it already.

        Args:
            entity: Exchange or queue.
            channel: Channel to declare it on (default: the default channel).
            retry: If True, reconnect and try again after a failure.
            **retry_policy: Keywords of ``ensure``.

        Returns:
            True if it was declared now.

        Raises:
            RecoverableConnectionError: The channel is closed.
        """
        facade: Any = maybe_channel(channel) or self.default_channel
        if not facade_channel(facade).is_open:
            raise exceptions.RecoverableConnectionError("channel disconnected")
        key = declaration_key(entity) if entity.can_cache_declaration else None
        if key is not None and key in self.declared_entities:
            return False
        given = entity
        if not entity.is_bound:
            entity = entity.bind(facade)
        if retry:
            self.ensure(entity, entity.declare, **retry_policy)()
        else:
            entity.declare(channel=facade)
        if not given.name:
            given.name = entity.name  # the broker's choice
        if key is not None:
            self.declared_entities.add(key)
        return True

    def Pool(self, limit: int | None = None, **kwargs: Any) -> ConnectionPool[Connection]:
        """Return a pool of connections like this one.

        Args:
            limit: Largest number of resources (None or 0: no limit).
            **kwargs: Keywords of ``ConnectionPool``.
        """
        from kombulite.resource import ConnectionPool  # this and the next: not all programs need them

        return ConnectionPool(self, limit, **kwargs)

    def ChannelPool(self, limit: int | None = None, **kwargs: Any) -> ChannelPool:
        """Return a pool of channels of this connection.

        Args:
            limit: Largest number of resources (None or 0: no limit).
            **kwargs: Keywords of ``ChannelPool``.
        """
        from kombulite.resource import ChannelPool

        return ChannelPool(self, limit, **kwargs)

    def SimpleQueue(
        self,
        name: str | messaging.Queue,
        no_ack: bool | None = None,
        queue_opts: dict[str, Any] | None = None,
        queue_args: dict[str, Any] | None = None,
        exchange_opts: dict[str, Any] | None = None,
        channel: Bindable | None = None,
        **kwargs: Any,
    ) -> SimpleQueue:
        """Return a queue with ``put`` and ``get``, as ``simple.SimpleQueue``.

        Args:
            name: Name of queue, exchange and routing key, or a ``Queue``.
            no_ack: If True, a message counts as acknowledged when the broker sends it.
            queue_opts: Keywords of ``Queue``.
            queue_args: Arguments of the queue, under the broker's names.
            exchange_opts: Keywords of ``Exchange``.
            channel: Channel to use (default: the connection's default channel).
            **kwargs: Keywords of ``simple.SimpleQueue``.
        """
        from kombulite.simple import SimpleQueue

        return SimpleQueue(channel or self, name, no_ack, queue_opts, queue_args, exchange_opts, **kwargs)

    def SimpleBuffer(
        self,
        name: str | messaging.Queue,
        no_ack: bool | None = None,
        queue_opts: dict[str, Any] | None = None,
        queue_args: dict[str, Any] | None = None,
        exchange_opts: dict[str, Any] | None = None,
        channel: Bindable | None = None,
        **kwargs: Any,
    ) -> SimpleBuffer:
        """Return a queue for messages that may be lost, as ``simple.SimpleBuffer``.

        Args:
            name: Name of queue, exchange and routing key, or a ``Queue``.
            no_ack: If True, a message counts as acknowledged when the broker sends it.
            queue_opts: Keywords of ``Queue``.
            queue_args: Arguments of the queue, under the broker's names.
            exchange_opts: Keywords of ``Exchange``.
            channel: Channel to use (default: the connection's default channel).
            **kwargs: Keywords of ``simple.SimpleBuffer``.
        """
        from kombulite.simple import SimpleBuffer

        return SimpleBuffer(channel or self, name, no_ack, queue_opts, queue_args, exchange_opts, **kwargs)

    def Producer(
        self, channel: Bindable | None = None, *args: Any, **kwargs: Unpack[ProducerArguments]
    ) -> messaging.Producer:
        """Return a producer on this connection.

        Args:
            channel: Channel to use (default: the connection's default channel).
            *args: Arguments of ``Producer`` after ``channel``.
            **kwargs: Keywords of ``Producer``.
        """
        return messaging.Producer(channel or self, *args, **kwargs)

    def Consumer(
        self,
        queues: messaging.Queue | Iterable[messaging.Queue] | None = None,
        channel: Bindable | None = None,
        *args: Any,
        **kwargs: Unpack[ConsumerArguments],
    ) -> messaging.Consumer:
        """Return a consumer on this connection.

        Args:
            queues: A queue, or several.
            channel: Channel to use (default: the connection's default channel).
            *args: Arguments of ``Consumer`` after ``queues``.
            **kwargs: Keywords of ``Consumer``.
        """
        return messaging.Consumer(channel or self, queues, *args, **kwargs)

    # --- events

    def drain_events(self, timeout: float | None = None, **kwargs: Any) -> Any:
        """Wait for one event, and run its callback. A batch of messages is one event.

        If the connection is lost, the error is raised once; the next call reconnects (one attempt, within
        ``connect_timeout``) and continues with the same consumers.

        Args:
            timeout: Seconds to wait (None: no limit).
            **kwargs: For foreign transports only.

        Returns:
            None; on foreign transports what their ``drain_events`` returns.

        Raises:
            TimeoutError: No event came in time (``socket.timeout``).
            OperationalError: The wait could never end, because nothing is consumed.
        """
        if self.session.dispatch_ready():
            return None
        if kwargs:
            if timeout is not None:
                kwargs["timeout"] = timeout
            return self._connected_transport().public.drain_events(self.connection, **kwargs)
        if not self.drain(timeout):
            raise TimeoutError("timed out")
        transport = self._carrier
        return None if transport is None else transport.drained

    def drain(self, timeout: float | None) -> bool:
        """Wait for one event as ``drain_events`` does. Return True if there was one.

        Unlike ``drain_events`` it raises no TimeoutError of its own, so a TimeoutError comes from a callback.

        Args:
            timeout: Seconds to wait (None: no limit).
        """
        session = self.session
        if session.unreported:
            session.report_unreported()
        if session.collectors:
            return session.drain_batch(self._receive, timeout)
        events = self._receive(timeout)
        if events:
            session.dispatch(events)
        return bool(events)

    def _receive(self, timeout: float | None) -> Sequence[Event]:
        """Return the next events, or an empty sequence on timeout. Connect if needed, and notice a lost connection."""
        transport = self._carrier
        if transport is None:
            try:
                self.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            except TimeoutError as error:  # it must not be taken for "no message"
                raise exceptions.RecoverableConnectionError(f"cannot connect: {error}") from error
            transport = self._own_transport()
        try:
            events = transport.receive(timeout)
        except self.connection_errors as error:
            is_lost = not transport.connected
            with self._lock:
                if self._carrier is transport and is_lost:
                    self._suspend(error)
            if is_lost and isinstance(error, TimeoutError):  # it must not be taken for "no message"
                raise exceptions.RecoverableConnectionError(str(error)) from error
            raise
        if not events:
            self._watch()
        return events

    def register_with_event_loop(self, loop: Any) -> None:
        """Let a ``Hub`` run the callbacks of arriving events; connect if needed.

        Args:
            loop: The hub.
        """
        transport = self._connected_transport()
        transport.register_with_event_loop(transport, loop)

    # --- failures

    def ensure(
        self,
        obj: object,
        fun: Callable[..., T],
        errback: Errback | None = None,
        max_retries: int | None = None,
        interval_start: float = 1,
        interval_step: float = 1,
        interval_max: float = 1,
        on_revive: Callable[[Channel], Any] | None = None,
        retry_errors: tuple[type[BaseException], ...] | None = None,
    ) -> Callable[..., T]:
        """Return a wrapper of ``fun`` that reconnects and calls it again if the connection fails.

        After a reconnect ``obj.revive(channel)`` moves the owner of ``fun`` to a new channel.

        Args:
            obj: The owner of ``fun``, with a method ``revive(channel)``.
            fun: The function.
            errback: Called with (exception, interval in seconds) after each failure.
            max_retries: Further attempts after the first (None: no limit).
            interval_start: Seconds before the first further attempt.
            interval_step: Seconds by which the interval grows with each attempt.
            interval_max: Seconds that the interval grows to.
            on_revive: Called with the new channel after a reconnect.
            retry_errors: Error classes after which the call is repeated at once, on the same connection.

        Raises:
            OperationalError: From the wrapper, if the attempts are used up.
        """
        policy = RetryPolicy(errback, max_retries, interval_start, interval_step, interval_max, on_revive, retry_errors)

        def ensured(*args: Any, **kwargs: Any) -> T:
            return self.call_insured(obj, policy, fun, *args, **kwargs)

        ensured.__name__ = f"{getattr(fun, '__name__', fun)}(ensured)"
        ensured.__doc__, ensured.__module__ = fun.__doc__, fun.__module__
        return ensured

    @property
    def ensures_itself(self) -> bool:
        """True if ``ensure`` was not replaced by a subclass or a program."""
        return type(self).ensure is OWN_METHODS["ensure"] and "ensure" not in self.__dict__

    def _is_replaced(self, name: str) -> bool:
        return getattr(type(self), name) is not OWN_METHODS[name] or name in self.__dict__

    def call_insured(self, obj: Any, policy: RetryPolicy, fun: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call ``fun`` with the retries that ``ensure`` describes.

        Args:
            obj: The owner of ``fun``, with a method ``revive(channel)``.
            policy: The policy of the retries.
            fun: The function.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments.
        """
        transport = self._carrier
        try:
            return fun(*args, **kwargs)
        except Exception as error:
            return self.call_again(obj, policy, error, transport, fun, *args, **kwargs)

    def call_again(
        self,
        obj: Any,
        policy: RetryPolicy,
        error: Exception,
        transport: Transport | None,
        fun: Callable[..., T],
        *args: Any,
        **kwargs: Any,
    ) -> T:
        """Call ``fun`` after a first call that failed, with the retries that ``ensure`` describes.

        Args:
            obj: The owner of ``fun``, with a method ``revive(channel)``.
            policy: The policy of the retries.
            error: The exception of the first call.
            transport: The transport that the first call was made on.
            fun: The function.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments.
        """
        retrier = BlockingRetrier(self, obj, policy)
        while True:
            retrier.prepare(error, transport)
            transport = self._carrier
            try:
                return fun(*args, **kwargs)
            except Exception as raised:
                error = raised

    def connect_as(self, policy: Mapping[str, Any]) -> None:
        """Connect, if need be, as often as a policy says, and else as ``transport_options`` do.

        Args:
            policy: Keywords of ``ensure``.
        """
        if not self.connected:
            given = {name: policy[name] for name in CONNECT_FIELDS if name in policy}
            self._ensure_connection(**{**self._extract_failover_opts(), **given})

    def abandon(self, transport: Transport | None, reason: object) -> None:
        """Drop a transport that failed, and select the next URL; another transport is left alone.

        Args:
            transport: The transport that failed.
            reason: The error, for the state's listeners.
        """
        with self._lock:
            if self._carrier is transport:  # else another thread has replaced it already
                self.maybe_switch_next()
                self._suspend(reason)

    def autoretry(
        self, fun: Callable[..., T], channel: Channel | None = None, **ensure_options: Any
    ) -> Callable[..., Any]:
        """Return a wrapper of ``fun`` that calls it with ``channel=...`` and reconnects as ``ensure`` does.

        The wrapper returns (result, the channel used last).

        Args:
            fun: A function with a keyword ``channel``.
            channel: Channel for the first call (default: the connection's default channel).
            **ensure_options: Keywords of ``ensure``.
        """
        holder = ChannelHolder(self, fun, channel, ensure_options)
        return self.ensure(holder, holder, **ensure_options)

    def revive(self, new_channel: object) -> None:
        """Close the default channel, because another channel replaces it.

        Args:
            new_channel: The new channel.
        """
        if self.session.default_channel is not None and self.session.default_channel is not new_channel:
            self.maybe_close_channel(self.session.default_channel)
            self.session.default_channel = None

    def switch(self, conn_str: str) -> None:
        """Close the connection, and select another URL. It connects when it is used.

        Args:
            conn_str: The URL.
        """
        self.close()  # of one that a pool has handed out, ``release`` would give it back
        self._closed = False
        self.take(conn_str, prefers_url=True)

    def maybe_switch_next(self) -> None:
        """Select the next URL, if there are several."""
        if self.cycle is not None and self._is_replaced("switch"):
            self.switch(next(self.cycle))
        elif self.cycle is not None:
            with self._lock:
                self._suspend()
                self._closed = False
            self.take(next(self.cycle))

    # --- lifetime

    def _forget(self) -> None:
        """Give up all that depends on the transport's connection."""
        self.session.close()
        self._loop = None
        self._drop_finalizer()
        self.session.life.to(State.CLOSED)

    def release(self) -> None:
        """Close the channels and the connection. It opens again when it is used again."""
        self._close()

    def _close(self) -> None:
        self._closed = True  # before: another thread may connect again meanwhile
        self._do_close_self()
        self._do_close_transport()
        self._debug("closed")

    def _debug(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Log what is done, if ``_logger`` asks for it."""
        if self._logger:
            log = globals()["logger"] if "logger" in globals() else __getattr__("logger")
            log.debug(f"[Kombu connection:{id(self):#x}] {msg}", *args, **kwargs)

    def _do_close_transport(self) -> None:
        """Drop a transport that is not connected."""
        with self._lock:
            if self._carrier is not None and not self._carrier.connected:
                self._carrier = None

    def _do_close_self(self) -> None:
        """Close the channels and the connection."""
        with self._lock:
            transport, channel = self._carrier, self.session.default_channel
            self._forget()
            self._carrier = None
        if transport is not None:
            transport.unregister_from_event_loop(transport, None)
            if transport.adapted is not None and channel is not None:
                self.maybe_close_channel(channel)
            try:
                transport.close()
            except (*transport.connection_errors, *transport.channel_errors):
                pass

    close = release

    def discard(self) -> None:
        """Do the same as ``release``. A pool replaces both on the connections that it hands out."""
        self.release()

    def collect(self, socket_timeout: float | None = None) -> None:
        """Drop the connection without a message to the broker, as after a fork or a failure.

        Args:
            socket_timeout: Has no effect on kombulite's own transports, which do not wait here.
        """
        transport = self._carrier
        if transport is None or (transport.adapted is not None and transport.adapted.closes_to_collect):
            try:
                self._do_close_self()
            except Exception:  # a broken connection may fail in any way
                self._debug("closing a lost connection failed", exc_info=True)
        with self._lock:
            transport = self._carrier
            self._forget()
            self._carrier = None
        if transport is not None:
            transport.unregister_from_event_loop(transport, None)
            transport.collect()
        self._do_close_transport()

    def after_fork(self) -> None:
        """Forget the parent's connection, in a forked child."""
        self._lock = Lock()
        self.session.tally.clear()
        if self._carrier is not None and not self._carrier.survives_fork:
            self.collect()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is None:
            self.release()
        else:
            self.discard()

    # --- what is seen of it

    @property
    def declared_entities(self) -> set[Any]:
        """Keys of the entities that were declared on this connection."""
        return self.session.declared

    @declared_entities.setter
    def declared_entities(self, declared: set[Any]) -> None:
        self.session.declared = declared

    @property
    def _default_channel(self) -> Any:
        """The default channel, or None if it was not opened."""
        return self.session.default_channel

    @_default_channel.setter
    def _default_channel(self, channel: Any) -> None:
        self.session.default_channel = channel

    @property
    def hooks(self) -> Hooks | None:
        """The hooks around publishing and consuming, or None."""
        return self.session.hooks

    @property
    def counters(self) -> Counters:
        """Counts of messages and reconnects since the connection was created; closing does not reset them."""
        return self.session.counters

    def add_hook(self, hook: Hook) -> None:
        """Install a hook around publishing and consuming on this connection and later clones. Repeating has no effect.

        Args:
            hook: The hook.
        """
        with self._lock:
            if not self.session.add_hook(hook, self):
                return
        hook.installed(self)

    def remove_hook(self, hook: Hook) -> None:
        """Remove a hook, if it is installed.

        Args:
            hook: The hook.
        """
        with self._lock:
            self.session.remove_hook(hook, self)

    # --- what the transport can do

    def heartbeat_check(self, rate: float = 2) -> Any:
        """Send a heartbeat if one is due. Call it about once a second. Returns what a transport of others returns.

        Args:
            rate: Checks for each heartbeat interval.

        Raises:
            ConnectionForced: The broker's heartbeats are missing.
        """
        return self._own_transport().heartbeat_check(rate=rate)

    def update_secret(self, secret: str, reason: str = "") -> None:
        """Give the broker a new secret for the connection that is open, as before an OAuth 2 token expires (RabbitMQ).

        A connection that is opened later logs in with ``password``: let that be a callable which returns a valid one.

        Args:
            secret: The new token, or the new password.
            reason: Text for the broker's log.

        Raises:
            AccessRefused: The broker does not accept the secret, and closes the connection.
            AMQPNotImplementedError: The transport has no such thing.
        """
        self._own_transport().update_secret(secret, reason)

    def get_heartbeat_interval(self) -> float:
        """Return the seconds between heartbeats; 0 if there are none."""
        return self._own_transport().heartbeat_interval

    @property
    def supports_heartbeats(self) -> bool:
        """True if the transport has heartbeats."""
        return self._capabilities.heartbeats

    @property
    def is_evented(self) -> bool:
        """True if an event loop can wait for the transport's events."""
        return self._capabilities.asynchronous

    def supports_exchange_type(self, exchange_type: str) -> bool:
        """Return True if the transport has exchanges of a type.

        Args:
            exchange_type: ``"direct"``, ``"topic"``, ``"fanout"``, ``"headers"`` or a plugin's type.
        """
        return exchange_type in self._capabilities.exchange_types

    @property
    def _capabilities(self) -> Capabilities:
        cls = self._transport_class
        found: Capabilities = cls.capabilities if is_native(cls) else self._own_transport().capabilities
        return found

    @property
    def qos_semantics_matches_spec(self) -> bool:
        """True if a prefetch count without ``apply_global`` limits the channel (AMQP); False: a consumer."""
        return self._own_transport().qos_semantics_matches_spec()


#: Functions of this module that programs replace by others, as they are.
OWN_GET_TRANSPORT_CLS, OWN_SUPPORTS_LIBRABBITMQ = get_transport_cls, supports_librabbitmq

#: Methods that subclasses and programs may replace, as they are written here.
OWN_METHODS: Mapping[str, Callable[..., Any]] = {
    name: getattr(Connection, name) for name in ("ensure", "get_transport_cls", "switch")
}


class PooledConnection(Connection):
    """Connection of a pool, which replaces it after an exception in its context."""

    __slots__ = ("_pool",)

    def __init__(self, pool: ConnectionPool[Any], **kwargs: Any) -> None:
        self._pool = pool
        super().__init__(**kwargs)

    def clone(self, **overrides: Any) -> Connection:
        """Return a connection with the same settings and hooks, not opened, that belongs to no pool.

        Args:
            **overrides: Arguments of the constructor to replace.
        """
        return self._hook_up(Connection(**{**self._own_info(), **overrides}))

    def __exit__(self, *exc_info: object) -> None:
        # For stand-ins: a pool of ours sets a `discard` on what it gives, by which Connection.__exit__ does the same.
        if exc_info[0] is not None and self._pool.limit:
            self._pool.replace(self)
        self.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (Connection, self.info())


def error_classes(cls: Any, name: str) -> tuple[type[BaseException], ...]:
    """Return a tuple of error classes of a transport's class, or kombu's default if the class has none.

    Args:
        cls: The transport's class.
        name: Name of the attribute, such as ``recoverable_channel_errors``.
    """
    found = getattr(cls, name, None)
    if isinstance(found, tuple):
        return exceptions.with_driver_classes(found)
    if name == "recoverable_connection_errors":
        return (*error_classes(cls, "connection_errors"), *error_classes(cls, "channel_errors"))
    defaults: dict[str, tuple[type[BaseException], ...]] = {
        "connection_errors": Transport.connection_errors,
        "channel_errors": Transport.channel_errors,
    }
    return defaults.get(name, ())


BrokerConnection = Connection
Channel.__module__ = Counters.__module__ = __name__  # where the names are public, whatever module defines them

#: Other names of transports, under which pools and ``info()`` show them.
resolve_aliases = {"pyamqp": "amqp", "librabbitmq": "amqp"}
roundrobin_failover = FAILOVER_STRATEGIES["round-robin"]
failover_strategies = FAILOVER_STRATEGIES
Connection.resolve_aliases = resolve_aliases
Connection.failover_strategies = failover_strategies
ssl_available = True


#: Names that kombu's users find here too, by their modules: these are slow to import, and few programs need them.
_ELSEWHERE = {
    "CERT_NONE": "ssl",
    "ChannelPool": "kombulite.resource",
    "ConnectionPool": "kombulite.resource",
    "Resource": "kombulite.resource",
    "get_logger": "kombulite.log",
    "quote": "urllib.parse",
    "urlparse": "urllib.parse",
}


def __getattr__(name: str) -> Any:
    if name == "logger":
        return __getattr__("get_logger")(__name__)
    if name == "socket":
        return import_module(name)
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE[name]), name)


def _unpickle(cls: type[Connection], arguments: dict[str, Any]) -> Connection:
    return cls(**arguments)


def _close_in(pid: int, transport: Transport) -> None:
    """Close what was opened in that process; a forked child's copy is not its to close."""
    if os.getpid() == pid:
        try:
            transport.close()
        except (exceptions.ConnectionError, OSError):  # the broker is gone
            transport.collect()
