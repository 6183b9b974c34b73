"""Where faults are put on: programs of one library on a broker behind a proxy, and what they wrote down."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import redis

from kombulite.cli.ledger import Ledger, balance
from tests.clock import Clock
from tests.proxy import Proxy
from tests.servers import RabbitMQServer, RedisServer, Server, tail

HERE = Path(__file__).parent
#: The programs of a library; those of the others are the same.
PROGRAMS: Mapping[str, Path] = {
    "kombulite.aio": HERE / "aio_programs.py",
    "aio-pika": HERE / "aio_pika_programs.py",
}
NUMBERS = 1_000_000  # that one producer may use
PATIENCE = 20.0  # seconds that a program has to end when it is asked to
SETTLE = 20.0  # seconds in which all is consumed that can be, or something has moved

HEARTBEAT = 2  # seconds

#: Brokers that keep what they have confirmed.
BROKERS: Mapping[str, Callable[[], Server]] = {
    "RabbitMQ": RabbitMQServer,
    "Redis": lambda: RedisServer(appendonly="yes", appendfsync="always"),
}
#: The same for both libraries; each option is in kombu's documentation.
SETTINGS: Mapping[type[Server], Mapping[str, Any]] = {
    RabbitMQServer: {"heartbeat": HEARTBEAT, "transport_options": {"confirm_publish": True}},
    RedisServer: {
        "transport_options": {
            "socket_timeout": 2 * HEARTBEAT,
            "health_check_interval": HEARTBEAT,
            "visibility_timeout": 5,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        }
    },
}


def private_memory(process: int | str) -> int:
    """Bytes of memory that a process has to itself (Linux)."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such figure")


class Program:
    """A producer or a consumer, as a process."""

    def __init__(self, role: str, arguments: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.role = role
        stem = f"{role}-{len(list(folder.glob(f'{role}-*.out')))}"
        self.journal, self.log = folder / f"{stem}.out", folder / f"{stem}.log"
        with self.journal.open("ab") as out, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAMS.get(arguments[0], HERE / "programs.py")), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def noted(self) -> int:
        """How many numbers it has written down, about."""
        return self.journal.stat().st_size

    def enter_into(self, ledger: Ledger) -> None:
        """Enter what it has written down."""
        for line in self.journal.read_bytes().split(b"\n")[:-1]:
            ledger.enter(int(line))

    def kill(self) -> None:
        """End it without a warning."""
        self.process.kill()
        self.process.wait()

    def ends(self, deadline: float) -> bool:
        """Whether it ends by then; if it does not it says where it is, and is killed."""
        try:
            self.process.wait(max(deadline - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(0.2)
            self.kill()
            return False
        return True

    def refuse_descriptors(self) -> Callable[[], None]:
        """Let it open no file and no socket more. Returns what takes that back."""
        before = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (3, before[1]))

        def allow() -> None:
            if self.is_alive():
                resource.prlimit(self.pid, resource.RLIMIT_NOFILE, before)

        return allow

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory(self) -> int:
        """Bytes of memory that it has to itself."""
        return private_memory(self.pid)


class Outcome(NamedTuple):
    """What a fault did."""

    confirmed: int
    consumed: int
    lost: int
    duplicates: int
    hung: int  # programs that did not end by their deadline, or consumed no more though there was something
    died: int  # programs that ended though nobody asked them to

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost and nothing hung."""
        return self.confirmed > 0 and not (self.lost or self.hung or self.died)


class Stage:
    """The programs, the broker, the proxy between them.

    Args:
        libraries: Whose programs are started, in turn.
    """

    patience = PATIENCE  # seconds that a program has to do something when it should

    def __init__(
        self, server: Server, libraries: Sequence[str], own_clock: bool = False, queue_type: str = "classic"
    ) -> None:
        self.server = server
        self._queue_type = queue_type
        self.folder = Path(tempfile.mkdtemp(prefix="kombulite-faults-"))
        self.proxy = Proxy(urlsplit(server.url).port or 0)
        self.producers: list[Program] = []
        self.consumers: list[Program] = []
        self._libraries = {role: cycle(libraries) for role in ("produce", "consume")}
        self.clock = Clock(self.folder) if own_clock else None
        self.queue = f"faults-{uuid.uuid4()}"
        self._all: list[Program] = []
        self._killed: set[Program] = set()

    # --- the programs

    def _start(self, role: str, url: str, **options: Any) -> Program:
        settings = {"connection": self._connection(), "queue_type": self._queue_type, **options}
        arguments = [next(self._libraries[role]), role, url, self.queue, json.dumps(settings)]
        program = Program(role, arguments, self.folder, self.clock.environment if self.clock else {})
        self._all.append(program)
        return program

    def produce(self, pause: float = 0.005) -> Program:
        """Start a producer that pauses so long after each message."""
        first = NUMBERS * sum(program.role == "produce" for program in self._all)
        self.producers.append(self._start("produce", self._address(), first=first, pause=pause))
        return self.producers[-1]

    def consume(self) -> Program:
        """Start a consumer."""
        self.consumers.append(self._start("consume", self._address(), prefetch=20))
        return self.consumers[-1]

    def _connection(self) -> Mapping[str, Any]:
        """What programs give to their connection, beside the address."""
        return next(settings for kind, settings in SETTINGS.items() if isinstance(self.server, kind))

    def _address(self) -> str:
        """Where programs find the broker: behind the proxy."""
        return self.proxy.url(self.server.url)

    def kill(self, program: Program) -> None:
        """SIGKILL."""
        program.kill()
        self._killed.add(program)
        for group in (self.producers, self.consumers):
            if program in group:
                group.remove(program)

    def programs(self) -> list[Program]:
        """Those that are at work."""
        return [program for program in (*self.producers, *self.consumers) if program.is_alive()]

    def goes_on(self) -> bool:
        """Wait until all that are at work have got over what happened. False if one does not in time."""
        return self.wait_for_progress(*self.programs())

    def wait_for_progress(self, *programs: Program) -> bool:
        """Wait until each of these has written down something new, or has ended. False if one does neither in time."""
        before = {program: program.noted() for program in programs}
        deadline = time.monotonic() + self.patience
        while any(program.is_alive() and program.noted() == size for program, size in before.items()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    # --- the end

    def outcome(self) -> Outcome:
        """End all, and draw the balance.

        The producers end; the consumers have to consume what is left, and end; if something is missing then another
        consumer looks for it.
        """
        died = sum(not program.is_alive() for program in self._all if program not in self._killed)
        hung = self._end(self.producers)
        self._settle()
        left = self._missing()
        alive = any(program.is_alive() for program in self.consumers)
        ended_late = self._end(self.consumers)
        if left:  # in the broker, or nowhere
            self._end_leases()
            self.consumers = [self._start("consume", self.server.url, prefetch=20)]
            self._settle()
            self._end(self.consumers)
            if alive and self._missing() < left:  # it was there to be had
                ended_late = max(ended_late, 1)
        hung += ended_late
        published, consumed = self._ledgers()
        figures = balance([published], [consumed])
        return Outcome(published.distinct, consumed.distinct, figures.lost, figures.duplicates, hung, died)

    def _end(self, programs: list[Program]) -> int:
        """Ask them to end; returns how many do not."""
        for program in programs:
            if program.is_alive():
                program.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        return sum([not program.ends(deadline) for program in programs])

    def _settle(self) -> None:
        """Wait until all is consumed that was confirmed, or nothing moves any more."""
        size, since = -1, time.monotonic()
        while time.monotonic() - since < SETTLE and any(program.is_alive() for program in self.consumers):
            now = sum(program.noted() for program in self._all)
            if now != size:
                size, since = now, time.monotonic()
                if not self._missing():
                    return
            time.sleep(0.2)

    def _end_leases(self) -> None:
        """Let the time pass that Redis keeps what a dead consumer had, whatever the clock was that dated it."""
        if isinstance(self.server, RedisServer):
            with redis.Redis(port=self.server.port) as client:
                for lease in client.zrange("unacked_index", 0, -1):
                    client.zadd("unacked_index", {lease: 1})
                client.delete("unacked_mutex")

    def _missing(self) -> int:
        published, consumed = self._ledgers()
        return balance([published], [consumed]).lost

    def _ledgers(self) -> tuple[Ledger, Ledger]:
        published, consumed = Ledger(), Ledger()
        for program in self._all:
            program.enter_into(published if program.role == "produce" else consumed)
        return published, consumed

    def logs(self) -> str:
        """The ends of what the programs had to say."""
        return "\n".join(f"--- {program.log.name}\n{tail(program.log)}" for program in self._all)

    def close(self) -> None:
        """End what is left."""
        for program in self._all:
            program.kill()
        self.proxy.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
