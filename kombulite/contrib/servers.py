"""Private brokers for tests: processes on free ports of the loopback interface, with a temporary folder each.

``KOMBULITE_TEST_PROGRAMS`` names a folder of programs (``redis-server``, ``rabbitmq-server``, ``rabbitmqctl``) that
are used instead of those on the PATH, so that the same tests run on another version of a broker.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

__all__ = ["RabbitMQServer", "RedisServer", "Server", "Unavailable"]

S = TypeVar("S", bound="Server")

START_TIMEOUT = 100.0  # seconds: RabbitMQ takes 5 on an idle machine
STOP_TIMEOUT = 20.0
DEBIAN_SCRIPTS = Path("/usr/lib/rabbitmq/bin")
LOWEST_PORT = 15_000  # most well-known services listen below
_given_ports: set[int] = set()


class Unavailable(Exception):
    """A broker's program that is not installed."""


def free_port() -> int:
    """Return a TCP port of the loopback interface that no process uses at the moment, another one each time.

    It is below those that the system gives to connections and to listeners that ask for any port. So it is still free
    when a server takes it some seconds later, and when the server has been killed and is started again.
    """
    ports = _ports()
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", secrets.choice(ports) if ports else 0))
            port: int = probe.getsockname()[1]
            if port not in _given_ports:
                _given_ports.add(port)
                return port


def _ports() -> range:
    """Return the ports to choose from: where pytest-xdist runs several workers, those of this one alone.

    Another worker would take a port between the choice and the start of the server, or while a server is down.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return range(LOWEST_PORT + number, _lowest_ephemeral_port(), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def _lowest_ephemeral_port() -> int:
    """Return the lowest port that the system gives to connections: as Linux says, or its default."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32_768


def program(name: str) -> str:
    """Return the path of a broker's program.

    If ``KOMBULITE_TEST_PROGRAMS`` names a folder, the program has to be in it: another version would pass for that one.

    Args:
        name: Name of the program, such as ``redis-server``.

    Raises:
        Unavailable: The program is not there.
    """
    folder = os.environ.get("KOMBULITE_TEST_PROGRAMS")
    # What Debian puts on the PATH only works for root and the user rabbitmq; the script behind it for everybody.
    path = shutil.which(name, path=folder) if folder else shutil.which(name, path=DEBIAN_SCRIPTS) or shutil.which(name)
    if path is None:
        raise Unavailable(f"{name} is not {f'in {folder}' if folder else 'on the PATH'}")
    return str(Path(path).absolute())


class Server:
    """A private broker: a process and a temporary folder, both gone at the end of a ``with`` block.

    Attributes:
        port: The TCP port on 127.0.0.1 that it listens on.
        folder: The temporary folder with its data, configuration and log.

    Raises:
        Unavailable: Its program is not installed.
    """

    program: ClassVar[str]
    user: str | None = None  # who runs it, if not the user of the tests

    def __init__(self) -> None:
        self._path = program(self.program)
        self.folder = Path(tempfile.mkdtemp(prefix="kombulite-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    # --- what a kind of broker says

    def command(self) -> list[str]:
        """Return the command line that runs it."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Return the environment variables that it needs."""
        return {}

    def is_ready(self) -> bool:
        """Return whether it answers."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """The URL for ``Connection``."""
        raise NotImplementedError

    # --- its life

    @property
    def log(self) -> Path:
        """The file that has its output."""
        return self.folder / "log"

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            RuntimeError: Its process ended; the error has the end of its log.
            TimeoutError: It did not answer within 100 seconds; the error has the end of its log.
        """
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self.user,
                start_new_session=True,  # so that signals reach all of its processes, and Ctrl-C none of them
            )
        wait_until(self._is_up, START_TIMEOUT, f"{self.program} does not answer; its log ends:\n{{}}", self.log)

    def _is_up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.program} ended with {self.process.returncode}:\n{tail(self.log)}")
        return self.is_ready()

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes.

        Args:
            number: The signal's number.
        """
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it by SIGKILL, as a power cut does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it by SIGTERM, and wait."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self.process is None:
            return
        self.signal(number)
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait()
        self.signal(signal.SIGKILL)  # its children, if it left any
        self.process = None

    def restart(self) -> None:
        """Stop it, and start it with the data that it kept."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Suspend it: it keeps its connections and does not answer.

        Raises:
            TimeoutError: It is not suspended within 20 seconds.
        """
        self.signal(signal.SIGSTOP)
        # On a busy machine a thread may run on until another one, which has the signal, has its turn.
        wait_until(self._is_suspended, STOP_TIMEOUT, f"{self.program} is not suspended")

    def _is_suspended(self) -> bool:
        """Return whether no thread of its processes runs, as far as the system says so (Linux)."""
        return self.process is None or all(state in "TtZX" for group, state in _threads() if group == self.process.pid)

    def resume(self) -> None:
        """Resume it after ``pause()``."""
        self.signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, and remove its folder."""
        self.resume()
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self: S) -> S:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class RedisServer(Server):
    """A private Redis, without persistence by default.

    Args:
        options: Directives of its configuration file, such as ``appendonly="yes"``.
    """

    program = "redis-server"

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = {
            "bind": "127.0.0.1",
            "port": self.port,
            "dir": self.folder,
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            **{name.replace("_", "-"): value for name, value in options.items()},
        }

    def command(self) -> list[str]:
        """Return the command line that runs it, after writing its configuration."""
        lines = [f'{name} "{value}"' for name, value in self.options.items()]
        path = self.folder / "redis.conf"
        path.write_text("\n".join(lines) + "\n")
        return [self._path, str(path)]

    def is_ready(self) -> bool:
        """Return whether it answers."""
        # Asked without a client library; one that wants a password or is loading answers too, but not with PONG.
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    @property
    def url(self) -> str:
        """The URL for ``Connection``."""
        return f"redis://127.0.0.1:{self.port}/0"


class RabbitMQServer(Server):
    """A private RabbitMQ, with an Erlang port mapper of its own.

    Args:
        options: Lines of its rabbitmq.conf, by name.
        plugins: Plugins to enable.
    """

    program = "rabbitmq-server"

    def __init__(self, options: Mapping[str, Any] | None = None, plugins: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._options = dict(options or {})
        self._plugins = plugins
        self._epmd_port, self._dist_port = free_port(), free_port()

    def command(self) -> list[str]:
        """Return the command line that runs it, after writing its configuration."""
        lines = {"loopback_users.guest": "false", "log.file.level": "warning", **self._options}
        (self.folder / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in lines.items()))
        (self.folder / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        return [self._path]

    def environment(self) -> Mapping[str, str]:
        """Return the environment variables that keep it apart from other nodes."""
        folder = str(self.folder)
        return {
            "PATH": f"{Path(self._path).parent}:{os.environ['PATH']}",  # where RabbitMQ looks for Erlang
            "HOME": folder,  # for Erlang's cookie
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log.d",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/rabbitmq-env.conf",
        }

    def is_ready(self) -> bool:
        """Return whether it answers."""
        # It listens before it serves, so ask for the first answer of the handshake.
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.settimeout(5)
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(8).startswith(b"\x01\x00\x00")
        except OSError:
            return False

    def control(self, *arguments: str, timeout: float = 100) -> str:
        """Run ``rabbitmqctl`` and return its output.

        Args:
            arguments: The command and its arguments.
            timeout: Seconds until it counts as hanging.

        Raises:
            RuntimeError: The command failed; the error has its output.
        """
        result = subprocess.run(
            [program("rabbitmqctl"), "-q", *arguments],
            env={**os.environ, **self.environment()},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {result.stdout}{result.stderr}")
        return result.stdout

    def close(self) -> None:
        """End it and its Erlang port mapper, and remove its folder."""
        super().close()
        wait_until(self._epmd_is_gone, STOP_TIMEOUT, "epmd does not end")

    def _epmd_is_gone(self) -> bool:
        """End epmd: the node starts it in a session of its own, and it stays until it has noticed the node's end."""
        environment = {**os.environ, **self.environment()}
        epmd = shutil.which("epmd", path=environment["PATH"])
        if epmd is None:  # without Erlang neither the node nor epmd has started
            return True
        _, names = (
            subprocess.run([epmd, what], env=environment, capture_output=True, timeout=10, check=False)
            for what in ("-kill", "-names")
        )
        return names.returncode != 0

    @property
    def url(self) -> str:
        """The URL for ``Connection``."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"


def _threads() -> Iterator[tuple[int, str]]:
    """Return the process group and the state of each thread that the system shows in ``/proc``."""
    for path in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group, *_ = path.read_text(errors="replace").rpartition(")")[2].split()
            yield int(group), state


def tail(path: Path, size: int = 3000) -> str:
    """Return the end of a file as text, ``""`` if it cannot be read.

    Args:
        path: The file.
        size: Number of bytes.
    """
    with contextlib.suppress(OSError):
        return path.read_bytes()[-size:].decode("utf-8", "replace")
    return ""


def wait_until(ready: Callable[[], object], timeout: float, complaint: str, log: Path | None = None) -> None:
    """Wait until a condition holds.

    Args:
        ready: Returns a true value once it does.
        timeout: Seconds to wait.
        complaint: Text of the error, with ``{}`` where the end of the log belongs.
        log: File of the log; None: there is none.

    Raises:
        TimeoutError: The condition does not hold in time.
    """
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint.format(tail(log) if log else ""))
        time.sleep(0.05)
