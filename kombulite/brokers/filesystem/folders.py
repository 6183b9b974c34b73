"""Messages and catalogue in folders.

``<in>/<milliseconds>_<unique>.<queue>.msg``
    a message that waits; ``-r`` ends its first part if it was delivered before. They are in order of their modification
    times, which the writer sets: the milliseconds are of a clock that starts anew with the machine.
``<in>/<name of the message>.<identity>.claimed``
    one that a connection has claimed. Renaming is the claim: one of many succeeds, and kombu looks at ``.msg`` only.
``<in>/<identity>.live``
    a connection that claims, and the queues that it consumes from. It is locked as long as its process lives, so that
    anybody can see whose claims come back.
``<control>/<exchange>.exchange``
    bindings, as kombu reads and writes them. ``.exchange.json`` and ``.queue.json`` stand beside it for what kombu does
    not keep.

The class is wider than others: it is a store, whose verbs are all a matter of these names.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from time import monotonic, monotonic_ns, time, time_ns
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote, unquote
from weakref import WeakSet

from kombulite import exceptions
from kombulite.brokers.base import Settings
from kombulite.brokers.options import Option, check_transport_options
from kombulite.brokers.store import Claim, Store
from kombulite.utils.locks import Lock
from kombulite.utils.uuid import uuid

MESSAGE, CLAIMED, LIVE, UNNAMED = ".msg", ".claimed", ".live", ".tmp"
SUFFIXES = {"bindings": ".exchange", "exchange": ".exchange.json", "queue": ".queue.json"}

LONGEST_FILE_NAME = 255  # bytes
STALE_AFTER = 1.0  # seconds that a listing is trusted, and a process that was seen alive
UNSETTLED = 0.05  # seconds; a folder that changed that recently may change again without its time telling
WRITING_FOR = 5.0  # seconds that a message may take to be written
LARGEST_FILE = 1 << 30  # bytes of a message
FORGOTTEN_AFTER = 3600.0  # seconds after which a file without its name is left over from a crash

COUNTED = re.compile(r"-r([0-9]{1,9})$")  # ends the part before the queue's name: how often the message came back
EXCHANGE_NAME = re.compile(r"[A-Za-z0-9._-]+")
DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


class Message(NamedTuple):
    """A file of a message."""

    modified: int  # nanoseconds
    name: str


class Token(NamedTuple):
    """A claim: the message's file, and the file that it is as long as it is claimed."""

    name: str
    claimed: Path


#: The transport options.
OPTIONS = {
    "data_folder_in": Option("`data_in`", "Folder that messages are read from."),
    "data_folder_out": Option("`data_out`", "Folder that messages are written to; the same one for a single program."),
    "control_folder": Option("`control`", "Folder of exchanges, queues and bindings; it is created."),
    "store_processed": Option("False", "If True, acknowledged messages are kept in `processed_folder`."),
    "processed_folder": Option("`processed`", "Folder of acknowledged messages."),
    "fsync": Option("True", "If True, a message is on the disk when `publish` returns."),
    "polling_interval": Option("0.1", "Largest time between two looks at the folder, in seconds."),
    "deadletter_queue": Option("", "Accepted from kombu's programs, without effect."),
}


class FolderStore(Store):
    """A connection's view of the folders."""

    def __init__(self, settings: Settings, identity: str) -> None:
        super().__init__(settings, identity)
        check_transport_options(settings.options, OPTIONS)
        option = settings.options.get
        self._in = Path(option("data_folder_in", "data_in"))
        self._out = Path(option("data_folder_out", "data_out"))
        self._control = Path(option("control_folder", "control"))
        self._processed = Path(option("processed_folder", "processed")) if option("store_processed") else None
        self._fsync = bool(option("fsync", True))
        self._live: int | None = None
        self._waiting: dict[str, deque[Message]] = {}
        self._listed_at = 0.0
        self._seen_alive: dict[str, float] = {}

    def open(self) -> None:
        self._control.mkdir(parents=True, exist_ok=True)
        for file in self._in.glob(f"*{LIVE}"):
            self.is_alive(file.stem)  # what the dead left behind goes
        for file in self._out.glob(f"*{UNNAMED}"):
            with suppress(FileNotFoundError):
                if file.stat().st_mtime < time() - FORGOTTEN_AFTER:
                    file.unlink()

    def _show_life(self) -> None:
        """Let others see that this connection is there, before it takes anything."""
        if self._live is None:
            # Locked before it has its name: nobody may take it for one that is left over.
            unnamed = self._in / f".{self.identity}{UNNAMED}"
            with self._need(self._in):
                self._live = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            fcntl.flock(self._live, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(self._live_file(self.identity))
            _open_stores.add(self)

    def close(self) -> None:
        if self._live is not None:
            with suppress(FileNotFoundError):
                self._live_file(self.identity).unlink()
            self.forget_lock()

    def forget_lock(self) -> None:
        """Close the descriptor that says that this process lives; in a forked child the lock stays its parent's."""
        if self._live is not None:
            os.close(self._live)
            self._live = None
            _open_stores.discard(self)

    # --- who is there

    def _live_file(self, identity: str) -> Path:
        return self._in / f"{identity}{LIVE}"

    def is_alive(self, identity: str) -> bool:
        if identity == self.identity or monotonic() - self._seen_alive.get(identity, -STALE_AFTER) < STALE_AFTER:
            return True
        try:
            with _opened(self._live_file(identity)) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, exceptions.ChannelError):
            return False
        except BlockingIOError:
            self._seen_alive[identity] = monotonic()
            return True
        with suppress(FileNotFoundError):
            self._live_file(identity).unlink()
        return False

    def on_consumers_changed(self, queues: Sequence[str]) -> None:
        if queues:
            self._show_life()
        if self._live is not None:
            data = json.dumps(queues).encode()
            os.pwrite(self._live, data, 0)
            os.ftruncate(self._live, len(data))

    def consumed_elsewhere(self, queue: str) -> int:
        found = 0
        for file in self._in.glob(f"*{LIVE}"):
            if file.stem != self.identity and self.is_alive(file.stem):
                with suppress(OSError, ValueError):  # it goes, or is just being written
                    queues = json.loads(file.read_bytes())
                    found += queues.count(queue) if isinstance(queues, list) else 0
        return found

    # --- messages

    def put(self, queue: str, data: bytes) -> None:
        name = _message_name(queue)
        _check_file_name(f"{name}-r000000.{self.identity}{CLAIMED}", queue)
        unnamed = self._out / f".{self.identity}-{uuid()}{UNNAMED}"
        with self._need(self._out), open(unnamed, "xb") as file:
            try:
                file.write(data)
                file.flush()
                stamp = _next_stamp()
                os.utime(file.fileno(), ns=(stamp, stamp))
                if self._fsync:
                    os.fsync(file.fileno())
                unnamed.rename(self._out / name)
            except BaseException:
                unnamed.unlink(missing_ok=True)
                raise
        if self._fsync:
            _sync_folder(self._out)

    def claim(self, queue: str) -> Claim | None:
        self._show_life()
        while message := self._next(queue):
            token = Token(message.name, self._in / f"{message.name}.{self.identity}{CLAIMED}")
            try:
                (self._in / message.name).rename(token.claimed)
                with _opened(token.claimed) as file:
                    if os.fstat(file.fileno()).st_size > LARGEST_FILE:
                        return Claim(token, b"")
                    data = file.read()
            except FileNotFoundError:
                continue  # somebody else has it
            except exceptions.ChannelError:
                return Claim(token, b"")  # which is no message
            except BaseException:  # too many open files, say: nobody would look at it as long as this process lives
                with suppress(FileNotFoundError):
                    token.claimed.rename(self._in / message.name)
                self._listed_at = 0.0
                raise
            if not data.rstrip().endswith(b"}") and time() - message.modified / 1e9 < WRITING_FOR:
                token.claimed.rename(self._in / message.name)  # kombu is still writing it
                return None
            return Claim(token, data, _split_count(message.name)[1])
        return None

    def finish(self, token: Token) -> None:
        with suppress(FileNotFoundError):
            if self._processed is None:
                token.claimed.unlink()
            else:
                self._processed.mkdir(parents=True, exist_ok=True)
                token.claimed.rename(self._processed / token.name)

    def put_back(self, token: Token) -> None:
        self._return(token.claimed, token.name)
        self._listed_at = 0.0

    def _return(self, claimed: Path, name: str) -> None:
        first, count, rest = _split_count(name)
        with suppress(FileNotFoundError):
            claimed.rename(self._in / f"{first}-r{count + 1}.{rest}")

    def set_aside(self, token: Token) -> None:
        token.claimed.rename(self._in / f"{token.name}.unreadable")

    def size(self, queue: str) -> int:
        self._list()
        return len(self._waiting.get(queue, ()))

    def claimed(self, queue: str) -> int:
        with self._need(self._in):
            names = [name for name in os.listdir(self._in) if name.endswith(CLAIMED)]
        return sum(
            name.removesuffix(CLAIMED).rpartition(".")[0].partition(".")[2] == f"{queue}{MESSAGE}" for name in names
        )

    def clear(self, queue: str) -> int:
        cleared = 0
        self._listed_at = 0.0
        while message := self._next(queue):
            with suppress(FileNotFoundError):
                (self._in / message.name).unlink()
                cleared += 1
        return cleared

    def _next(self, queue: str) -> Message | None:
        if not self._waiting.get(queue) or monotonic() - self._listed_at > STALE_AFTER:
            self._list()
        waiting = self._waiting.get(queue)
        return waiting.popleft() if waiting else None

    def _list(self) -> None:
        """List the messages that wait, the oldest first, if the folder may have changed; the dead's come back."""
        with self._need(self._in):
            age = monotonic() - self._listed_at
            if age < STALE_AFTER and self._in.stat().st_mtime + UNSETTLED < time() - age:
                return
            self._listed_at = monotonic()
            names = os.listdir(self._in)
            if self._recover(names):
                names = os.listdir(self._in)
            found: dict[str, list[Message]] = {}
            for name in names:
                if name.endswith(MESSAGE):
                    queue = name.partition(".")[2].removesuffix(MESSAGE)
                    with suppress(FileNotFoundError):
                        found.setdefault(queue, []).append(Message((self._in / name).stat().st_mtime_ns, name))
            self._waiting = {queue: deque(sorted(messages)) for queue, messages in found.items()}

    def _recover(self, names: list[str]) -> bool:
        """Put back what those had claimed who are not there any more; whether there was anything."""
        found = False
        for name in names:
            if name.endswith(CLAIMED):
                original, _, identity = name.removesuffix(CLAIMED).rpartition(".")
                if not self.is_alive(identity):
                    self._return(self._in / name, original)
                    found = True
        return found

    @contextmanager
    def _need(self, folder: Path) -> Iterator[None]:
        """Raise ChannelError where a folder is missing."""
        try:
            yield
        except FileNotFoundError as error:
            if folder.is_dir():
                raise
            raise exceptions.ChannelError(
                f"the folder {str(folder)!r} of the filesystem transport is missing: create it, or set data_folder_in"
                " and data_folder_out"
            ) from error

    # --- the catalogue

    def _entry(self, kind: str, name: str) -> Path:
        if kind == "queue":
            return self._control / f"{quote(name, safe='@ ')}{SUFFIXES[kind]}"
        if not EXCHANGE_NAME.fullmatch(name) or not name.strip(".") or DEVICE.fullmatch(name):
            raise exceptions.ChannelError(f"an exchange cannot be called {name!r} where its name is that of a file")
        return self._control / f"{name}{SUFFIXES[kind]}"

    def read(self, kind: str, name: str) -> bytes | None:
        try:
            with _opened(self._entry(kind, name)) as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, kind: str, name: str, data: bytes) -> None:
        if kind == "queue":
            self._show_life()  # it may be this connection's own
            _check_file_name(f"{'0' * 60}.{name}{MESSAGE}.{self.identity}{CLAIMED}", name)
        # In place and under its lock: that is how kombu guards it.
        with _opened(self._entry(kind, name), create=True) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(data)
            file.truncate()

    def remove(self, kind: str, name: str) -> None:
        self._entry(kind, name).unlink(missing_ok=True)

    def names(self, kind: str) -> Iterator[str]:
        suffix = SUFFIXES[kind]
        for file in self._control.iterdir():
            if file.name.endswith(suffix):
                yield unquote(file.name.removesuffix(suffix))

    def lock(self) -> Any:
        return _lock_of(self._control)


class _FolderLock(Lock):
    """A lock between processes and threads; who has it may take it again, as a garbage collection may have to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(self._close)
        self._path = folder / ".lock"
        self._file: FileIO | None = None

    def __enter__(self) -> None:
        depth = self.depth()
        try:
            super().__enter__()
            if depth == 0:
                self._file = FileIO(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
                fcntl.flock(self._file, fcntl.LOCK_EX)
        except BaseException:
            self.release_to(depth)
            raise

    def _close(self) -> None:
        if self._file is not None and not self._file.closed:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # also of a child that was forked meanwhile
            self._file.close()


_locks: dict[Path, _FolderLock] = {}
_open_stores: WeakSet[FolderStore] = WeakSet()
_last_stamp = 0
_stamp_lock = Lock()


def _lock_of(folder: Path) -> _FolderLock:
    return _locks.setdefault(folder.resolve(), _FolderLock(folder.resolve()))


def _next_stamp() -> int:
    """Return the time in nanoseconds, and never twice the same in this process."""
    global _last_stamp  # noqa: PLW0603 - it is the process's
    with _stamp_lock:
        _last_stamp = max(_last_stamp + 1, time_ns())
        return _last_stamp


def _message_name(queue: str) -> str:
    """Return the name of a new message's file, behind those of earlier ones: kombu takes files in order of their names.

    What looks like a UUID begins with the nanoseconds within the millisecond, of the same reading of the clock.
    """
    milliseconds, nanoseconds = divmod(monotonic_ns(), 1_000_000)
    return f"{milliseconds}_{nanoseconds:08x}{uuid()[8:]}.{queue}{MESSAGE}"


def _check_file_name(file_name: str, queue: str) -> None:
    if "/" in queue or "\0" in queue or len(os.fsencode(file_name)) > LONGEST_FILE_NAME:
        raise exceptions.PreconditionFailed(
            f"a queue cannot be called {queue!r:.80} where its name is part of a file's"
        )


def _opened(path: Path, create: bool = False) -> BinaryIO:
    """Open a file, to be read or (``create``) changed in place.

    Raises ChannelError for what is no file, such as a link.

    Whoever may write to the folder may put anything there: a link that leads elsewhere, a pipe that nobody writes to.
    """
    flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise exceptions.ChannelError(f"{str(path)!r} is no regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise exceptions.ChannelError(f"{str(path)!r} is no regular file")
    return open(descriptor, "r+b" if create else "rb")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forget_locks() -> None:
    # A child that outlived its parent would seem to be it.
    for store in list(_open_stores):
        store.forget_lock()
    _locks.clear()


os.register_at_fork(after_in_child=_forget_locks)


def _split_count(name: str) -> tuple[str, int, str]:
    """Return a message's file name: what it began with, how often the message came back, and the rest."""
    first, _, rest = name.partition(".")
    found = COUNTED.search(first)
    return (first, 0, rest) if found is None else (first[: found.start()], int(found.group(1)), rest)
