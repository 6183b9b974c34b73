"""What Redis and its driver say went wrong, as this library's errors: one table for both."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from redis import exceptions as driver

from kombulite import exceptions


class Row(NamedTuple):
    """Our error; the codes of the server's error replies (their first word), the names of redis-py's classes."""

    error: type[Exception]
    codes: tuple[str, ...]
    classes: tuple[str, ...]


TABLE = (
    # The server cannot serve us now; it, or the one that takes over, may do so later.
    Row(
        exceptions.RecoverableConnectionError,
        ("LOADING", "READONLY", "MASTERDOWN", "UNBLOCKED", "MOVED", "ASK", "CLUSTERDOWN"),
        (
            "ConnectionError",
            "MaxConnectionsError",
            "BusyLoadingError",
            "ReadOnlyError",
            "MasterDownError",
            "ChildDeadlockedError",
            "RedisError",
            "ClusterDownError",
            "MovedError",
            "AskError",
            "SlotNotCoveredError",
        ),
    ),
    Row(exceptions.combined(exceptions.RecoverableConnectionError, exceptions.TimeoutError), (), ("TimeoutError",)),
    # It is no Redis.
    Row(exceptions.FrameError, (), ("InvalidResponse",)),
    # It would not let us in the next time either.
    Row(
        exceptions.LoginRefused,
        ("NOAUTH", "WRONGPASS"),
        (
            "AuthenticationError",
            "AuthenticationWrongNumberOfArgsError",
            "AuthorizationError",
            "ExternalAuthProviderError",
        ),
    ),
    Row(exceptions.AccessRefused, ("NOPERM",), ("NoPermissionError",)),
    # Writes are refused: memory is full, the disk fails, replicas are missing.
    Row(exceptions.MessageNacked, ("OOM", "MISCONF", "NOREPLICAS"), ("OutOfMemoryError",)),
    Row(exceptions.RecoverableChannelError, ("BUSY", "TRYAGAIN"), ("TryAgainError",)),
    Row(exceptions.PreconditionFailed, ("WRONGTYPE",), ("DataError",)),
    Row(
        exceptions.IrrecoverableChannelError,
        ("ERR", "NOSCRIPT", "EXECABORT", "NOPROTO"),
        (
            "ResponseError",
            "NoScriptError",
            "ExecAbortError",
            "ModuleError",
            "NoSuchFieldsetError",
            "WatchError",
            "PubSubError",
            "LockError",
            "LockNotOwnedError",
            "InvalidPipelineStack",
            "IncorrectPolicyType",
        ),
    ),
    # A Redis Cluster needs a client of another kind.
    Row(
        exceptions.AMQPNotImplementedError,
        ("CROSSSLOT",),
        (
            "ClusterError",
            "RedisClusterException",
            "ClusterCrossSlotError",
            "CrossSlotTransactionError",
        ),
    ),
)

BY_CODE = {code: row.error for row in TABLE for code in row.codes}
BY_CLASS = {name: row.error for row in TABLE for name in row.classes}


#: What Redis writes before the cause: before 7, of an error that a command had in a script; if EXEC itself is refused.
BEFORE_CAUSE = re.compile(
    r"^(?:ERR Error running script \(call to f_[0-9a-f]+\): )?(?:@user_script: ?[0-9]+: )+-?"
    r"|^EXECABORT Transaction discarded because of: "
)


#: What Redis writes where a script runs a command that its user may not run (6.2 and 7.0, and later), or that was
#: renamed.
NOT_IN_SCRIPT = re.compile(r"can't (?:run this command|access at least)|ACL failure in script|Unknown Redis command")
#: What Redis answers to a command that its user may not run, or that was renamed.
NOT_RUN = re.compile(r"NOPERM .* run the '|ERR unknown command")


#: Codes of a server that is no master any more: a new connection may lead to the one that is, this one never will.
REPLICA_CODES = frozenset(["READONLY", "MASTERDOWN"])


def code_of(text: str) -> str:
    """Return the code of an error reply: the first word of its cause."""
    return BEFORE_CAUSE.sub("", text, count=1).partition(" ")[0]


def reply_error(text: str) -> Exception:
    """Return the error for an error reply of the server (RESP: ``-CODE words``)."""
    cause = BEFORE_CAUSE.sub("", text, count=1)
    code = code_of(text)
    is_refused = NOT_RUN.match(cause) or NOT_IN_SCRIPT.search(text)
    kind = exceptions.AccessRefused if is_refused else BY_CODE.get(code, exceptions.IrrecoverableChannelError)
    return shared(kind, getattr(driver, DRIVER_CLASS_OF_CODE.get(code, "ResponseError")))(text)


#: What an error reply stands for where the server may do later what it refuses now: LOADING; BUSY; MISCONF, NOREPLICAS.
FOR_NOW = (exceptions.RecoverableConnectionError, exceptions.RecoverableChannelError, exceptions.MessageNacked)

#: redis-py's class for an error reply, where it has one of its own.
DRIVER_CLASS_OF_CODE = {
    "LOADING": "BusyLoadingError",
    "READONLY": "ReadOnlyError",
    "MASTERDOWN": "MasterDownError",
    "NOAUTH": "AuthenticationError",
    "WRONGPASS": "AuthenticationError",
    "NOPERM": "NoPermissionError",
    "OOM": "OutOfMemoryError",
    "NOSCRIPT": "NoScriptError",
    "EXECABORT": "ExecAbortError",
}


def shared(kind: type[Exception], theirs: Any) -> Callable[[str], Exception]:
    """Return a class that is one of our errors and one of redis-py's: programs catch either."""
    found: Any = exceptions.combined(kind, theirs)
    found.error_type, found.status_code = theirs.__name__, None
    cls: Callable[[str], Exception] = found
    return cls


class ServerClosed(exceptions.RecoverableConnectionError, driver.ConnectionError):
    """The server has closed the connection."""

    error_type: Any = driver.ConnectionError.__name__  # redis-py's constructor, which sets them, does not run
    status_code = None
    __repr__ = Exception.__repr__


def connection_lost(text: str) -> Exception:
    """Return the error for a connection that is lost or cannot be had."""
    return shared(exceptions.RecoverableConnectionError, driver.ConnectionError)(text)


def socket_error(error: OSError) -> Exception:
    """Return the error for what the socket of a connection ended with."""
    return exceptions.socket_error(
        error, driver.TimeoutError if isinstance(error, TimeoutError) else driver.ConnectionError
    )


def driver_error(error: driver.RedisError, text: str | None = None) -> Exception:
    """Return the error for one that redis-py raised: that of its class, or of the nearest ancestor in the table.

    ``text``: what it says, in place of the words of ``error``.
    """
    name = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in BY_CLASS)
    code = str(error).partition(" ")[0]
    kind = BY_CODE.get(code, BY_CLASS[name]) if name in ("ResponseError", "ConnectionError") else BY_CLASS[name]
    reason = error.__context__
    if name == "ConnectionError" and isinstance(reason, OSError):
        kind = exceptions.combined(kind, type(reason))
    return shared(kind, type(error))(str(error) if text is None else text)


def connect_error(error: driver.RedisError, text: str) -> Exception:
    """Return an error of connecting as an error of the connection, whatever class the server gives it."""
    mapped = driver_error(error, text)
    return mapped if isinstance(mapped, (exceptions.ConnectionError, OSError)) else exceptions.NotAllowed(text)


def unquoted(error: driver.RedisError) -> str:
    """Return its words without the arguments of a command that the server does not know, such as a password."""
    return str(error).partition(", with args")[0]


class ErrorClasses(NamedTuple):
    """redis-py's errors, sorted by what fails."""

    connection_errors: tuple[type[BaseException], ...]
    channel_errors: tuple[type[BaseException], ...]


def get_redis_error_classes() -> ErrorClasses:
    """Return the errors of redis-py, for code that uses it beside this library, such as a result backend."""
    return ErrorClasses(
        (OSError, driver.ConnectionError, driver.BusyLoadingError, driver.AuthenticationError, driver.TimeoutError),
        (driver.DataError, driver.InvalidResponse, driver.ResponseError),
    )
