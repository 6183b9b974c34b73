"""Calling something again when the connection fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from kombulite import exceptions
from kombulite._client.interfaces import BlockingConnection
from kombulite.brokers.base import Transport
from kombulite.utils.functional import retry_intervals, sleep_in_slices
from kombulite.utils.records import NamedTuple


class RetryPolicy(NamedTuple):
    """How to try again; the fields are explained at ``Connection.ensure``."""

    errback: Callable[[Any, float], Any] | None = None
    max_retries: int | None = None
    interval_start: float = 1
    interval_step: float = 1
    interval_max: float = 1
    on_revive: Callable[[Any], Any] | None = None
    retry_errors: tuple[type[BaseException], ...] | None = None


#: What of a policy holds for connecting too.
CONNECT_FIELDS = RetryPolicy._fields[:5]


class NextTry(Enum):
    """What has to be done before something is tried again."""

    NOW = "now"
    AFTER_PAUSE = "after a pause"
    WHEN_CONNECTED = "when connected again"


def next_try(error: BaseException, policy: RetryPolicy, retries: int, transport: Any) -> NextTry:
    """Say what has to be done after a try that failed, the first after which ``retries`` have failed too.

    ``transport`` has the tuples of error classes: a transport's class, or a connection, where they can be set.
    Raises what ends the tries: the error itself, or an OperationalError.
    """
    is_last = policy.max_retries is not None and retries >= policy.max_retries
    if isinstance(error, tuple(policy.retry_errors or ())):
        if is_last:
            raise error
        return NextTry.NOW
    if isinstance(error, (exceptions.MessageNacked, *transport.recoverable_channel_errors)):
        # The connection is fine. What a broker refuses now, as a queue is full, it may take in a while.
        if is_last:
            raise exceptions.OperationalError(str(error)) from error
        return NextTry.AFTER_PAUSE if isinstance(error, exceptions.MessageNacked) else NextTry.NOW
    if isinstance(error, exceptions.Blocked) or not isinstance(error, transport.recoverable_connection_errors):
        raise error  # of the two, the first: the connection is fine, and the message may be with the broker already
    if is_last:
        raise exceptions.OperationalError(str(error)) from error
    return NextTry.WHEN_CONNECTED


class Retrier:
    """The calls of one function so far, all of which have failed. Made after the first: most calls have no second."""

    def __init__(self, policy: RetryPolicy) -> None:
        self.policy = policy
        self.count = 0
        self._intervals = retry_intervals(policy.interval_start, policy.interval_step, policy.interval_max)

    def failed(self, error: BaseException, transport: Any) -> tuple[NextTry, float]:
        """Count a failure; returns what has to be done before the next call, and seconds to pause.

        ``transport`` as for ``next_try``. Raises what ends the tries: ``error`` itself, or an OperationalError.
        """
        following = next_try(error, self.policy, self.count, transport)
        # The first new connection is made at once. If that one fails too, the broker is there and cannot do it yet.
        is_paused = following is NextTry.AFTER_PAUSE or (following is NextTry.WHEN_CONNECTED and self.count > 0)
        self.count += 1
        return following, next(self._intervals) if is_paused else 0.0

    def report(self, error: BaseException, pause: float) -> None:
        """Tell the program of a failure, except one that it has called retryable itself."""
        policy = self.policy
        if policy.errback is not None and not isinstance(error, tuple(policy.retry_errors or ())):
            policy.errback(error, pause)


class BlockingRetrier(Retrier):
    """The same for a synchronous connection, which it connects again. ``obj``: what the function belongs to."""

    def __init__(self, connection: BlockingConnection, obj: Any, policy: RetryPolicy) -> None:
        super().__init__(policy)
        self._connection = connection
        self._obj = obj

    def prepare(self, error: BaseException, transport: Transport | None) -> None:
        """Make ready for another call after one that failed with ``error``, begun on ``transport``."""
        connection, policy, retries = self._connection, self.policy, self.count
        following, pause = self.failed(error, connection)
        if following is NextTry.WHEN_CONNECTED:
            connection.abandon(transport, error)
        self.report(error, pause)
        sleep_in_slices(pause)
        if following is not NextTry.WHEN_CONNECTED:
            return
        left = None if policy.max_retries is None else max(policy.max_retries - retries, 1)
        with library_errors(connection, exceptions.OperationalError, exceptions.OperationalError):
            connection._ensure_connection(policy.errback, left, *policy[2:5], reraise_as_library_errors=False)
        channel = connection.default_channel
        self._obj.revive(channel)
        if policy.on_revive is not None:
            policy.on_revive(channel)


class Refusal(NamedTuple):
    """Why a host refused. ``shown``: its URL without the password."""

    shown: str
    error: BaseException


class Refusals:
    """The refusals of the hosts of a connection, which connects to each of them in turn.

    ``recoverable``: errors that are no refusals; ``urls``: the URLs of all hosts.
    """

    def __init__(self, recoverable: tuple[type[BaseException], ...], urls: Iterable[str]) -> None:
        self._recoverable = recoverable
        self._urls = frozenset(urls)
        self._refusals: dict[str | None, Refusal] = {}
        #: Whether the next host is to be tried, since the last one failed.
        self.is_switch_due = False

    def add(self, url: str | None, shown: str, error: BaseException) -> None:
        """Note that connecting to a URL failed."""
        self.is_switch_due = True
        if isinstance(error, self._recoverable):
            self._refusals.pop(url, None)
        else:
            self._refusals[url] = Refusal(shown, error)

    @property
    def are_complete(self) -> bool:
        """Whether all hosts have refused."""
        return bool(self._refusals) and self._refusals.keys() >= self._urls

    def summarize(self, last: BaseException) -> BaseException:
        """Return an error that names all hosts which refused, of the last one's class; the last one if it is alone."""
        if len(self._refusals) < 2 or isinstance(last, self._recoverable):
            return last
        kind = type(last) if isinstance(last, exceptions.AMQPError) else exceptions.OperationalError
        return kind("; ".join(f"{shown}: {error}" for shown, error in self._refusals.values()))


class library_errors:  # noqa: N801 - used as a function
    """A context that raises the transport's errors as the library's own."""

    __slots__ = ("_channel_error", "_connection", "_connection_error")

    def __init__(
        self, connection: BlockingConnection, connection_error: type[Exception], channel_error: type[Exception]
    ) -> None:
        self._connection = connection
        self._connection_error = connection_error
        self._channel_error = channel_error

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if error is None or isinstance(error, (self._connection_error, self._channel_error)):
            return
        if isinstance(error, self._connection.recoverable_connection_errors):
            raise self._connection_error(str(error)) from error
        if isinstance(error, self._connection.recoverable_channel_errors):
            raise self._channel_error(str(error)) from error


class ChannelHolder:
    """What ``autoretry`` calls and revives: a function, and the channel that it is called with.

    ``options``: those of ``ensure``, which hold for connecting too.
    """

    def __init__(self, connection: Any, fun: Callable[..., Any], channel: Any, options: Mapping[str, Any]) -> None:
        self._connection = connection
        self._fun = fun
        self.channel = channel
        self._options = options
        self.__name__ = getattr(fun, "__name__", None)
        self.__doc__ = getattr(fun, "__doc__", None)
        self.__module__ = getattr(fun, "__module__", None)  # type: ignore[assignment]

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Call the function, and return its result and the channel."""
        if self.channel is None:
            self._connection.connect_as(self._options)
            self.revive(self._connection.default_channel)
        return self._fun(*args, channel=self.channel, **kwargs), self.channel

    def revive(self, channel: Any) -> None:
        """Go on with another channel."""
        self.channel = channel
