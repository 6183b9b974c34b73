"""Private brokers: started on free ports of the loopback interface for the tests and benchmarks, and ended with them.

A broker that runs already may be named by ``KOMBULITE_TEST_REDIS`` or ``KOMBULITE_TEST_AMQP`` (a URL). Only tests that
leave it running use it; the others start one of their own.

``KOMBULITE_TEST_PROGRAMS`` names a folder of programs (``redis-server``, ``rabbitmq-server``, ``rabbitmqctl``) that
are used instead of those on the PATH, so that the same tests run on another version of a broker.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import psycopg
import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS

START_TIMEOUT = 60.0  # seconds
STOP_TIMEOUT = 20.0
DEBIAN_SCRIPTS = Path("/usr/lib/rabbitmq/bin")


class Unavailable(Exception):
    """The broker's program is not installed."""


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def quiet_ports(count: int) -> list[int]:
    """Return different TCP ports that no connection is given by chance: for nodes that start one after the other."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(15000, 32000)  # below those that Linux gives out
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.add(port)
    return list(found)


def program(name: str) -> str:
    """Return the path of a broker's program.

    If ``KOMBULITE_TEST_PROGRAMS`` names a folder, the program has to be in it: another version would pass for that one.

    Raises:
        Unavailable: The program is not there.
    """
    folder = os.environ.get("KOMBULITE_TEST_PROGRAMS")
    # What Debian puts on the PATH only works for root and the user rabbitmq; the script behind it for everybody.
    path = shutil.which(name, path=folder) if folder else shutil.which(name, path=DEBIAN_SCRIPTS) or shutil.which(name)
    if path is None:
        raise Unavailable(f"{name} is not {f'in {folder}' if folder else 'on the PATH'}")
    return str(Path(path).absolute())


def version(name: str) -> str:
    """Return the version of a broker's program, such as ``8.0.6``. Raises Unavailable."""
    return _version_of(program(name))


@cache  # rabbitmqctl takes a second to say
def _version_of(path: str) -> str:
    question = {"rabbitmqctl": "version"}.get(Path(path).name, "--version")
    answer = subprocess.run([path, question], capture_output=True, text=True, timeout=60, check=False).stdout
    found = re.search(r"\d+(\.\d+)+", answer)
    if found is None:
        raise Unavailable(f"{path} does not tell its version, but {answer!r:.80}")
    return found[0]


class Server:
    """A broker of our own: a process and a folder. ``start`` it, then ``kill``, ``pause``, ``restart`` it at will."""

    program: ClassVar[str]
    user: str | None = None  # who runs it, if not the user of the tests

    def __init__(self) -> None:
        self._path = program(self.program)
        self.folder = Path(tempfile.mkdtemp(prefix="kombulite-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    # --- what a kind of broker says

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return {}

    def is_ready(self) -> bool:
        raise NotImplementedError

    @property
    def url(self) -> str:
        raise NotImplementedError

    # --- its life

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self) -> None:
        """Start it, and wait until it answers."""
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
        """Send a signal to all of its processes."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it without a warning, as a power cut does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order."""
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
        """End it in good order, and start it with what it kept."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Let it hang: it keeps its connections, and says nothing."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, and remove its folder."""
        self.resume()
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class RedisServer(Server):
    """A Redis. ``options``: directives of its configuration file (``appendonly="yes"``)."""

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
        lines = [f'{name} "{value}"' for name, value in self.options.items()]
        path = self.folder / "redis.conf"
        path.write_text("\n".join(lines) + "\n")
        return [self._path, str(path)]

    def is_ready(self) -> bool:
        # Asked without a client library; one that wants a password or is loading answers too, but not with PONG.
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


class RedisNode(RedisServer):
    """A node of a Redis Cluster: it notices within half a second that another is gone."""

    def __init__(self, **options: Any) -> None:
        port, self.bus_port = quiet_ports(2)
        super().__init__(
            port=port, cluster_enabled="yes", cluster_port=self.bus_port, cluster_node_timeout=500,
            cluster_replica_validity_factor=0, repl_diskless_sync_delay=0, **options,
        )  # fmt: skip
        self.port = port

    def ask(self, *command: Any) -> Any:
        """What the node answers."""
        with redis.Redis(port=self.port, decode_responses=True, protocol=2, socket_timeout=20) as client:
            return client.execute_command(*command)

    @property
    def node_id(self) -> str:
        return str(self.ask("CLUSTER", "MYID"))


class RedisCluster:
    """A Redis Cluster: masters that share the slots evenly, and replicas of the first, the second, ... of them."""

    def __init__(self, masters: int = 3, replicas: int = 0, **options: Any) -> None:
        self.nodes = [RedisNode(**options) for _ in range(masters + replicas)]
        self.masters = self.nodes[:masters]

    def start(self) -> None:
        """Start the nodes, and have them make a cluster."""
        for node in self.nodes:
            node.start()
        first, *others = self.nodes
        for number, node in enumerate(self.nodes, 1):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number)
        step = SLOTS / len(self.masters)
        for place, node in enumerate(self.masters):
            node.ask("CLUSTER", "ADDSLOTSRANGE", round(place * step), round((place + 1) * step) - 1)
        for node in others:
            first.ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
        self.wait_for(lambda node: len(self.known(node)) == len(self.nodes), "the nodes do not know each other")
        for place, node in enumerate(self.nodes[len(self.masters) :]):
            node.ask("CLUSTER", "REPLICATE", self.masters[place % len(self.masters)].node_id)
        self.wait_until_ok()

    def known(self, node: RedisNode) -> list[str]:
        """The lines that a node has on all nodes, after their handshakes."""
        lines = node.ask("CLUSTER", "NODES")
        lines = lines.items() if isinstance(lines, dict) else str(lines).splitlines()
        return [str(line) for line in lines if "handshake" not in str(line)]

    def wait_for(self, is_so: Callable[[RedisNode], object], complaint: str) -> None:
        """Wait until something holds on all nodes that run."""
        nodes = [node for node in self.nodes if node.process is not None]
        wait_until(lambda: all(is_so(node) for node in nodes), START_TIMEOUT, complaint)

    def wait_until_ok(self) -> None:
        """Wait until all nodes that run say that all slots are served, and replicas are in step."""
        self.wait_for(self._is_ok, "the cluster is not whole")

    @staticmethod
    def _is_ok(node: RedisNode) -> bool:
        state = node.ask("CLUSTER", "INFO")
        text = str(state)
        role = node.ask("ROLE")
        return ("cluster_state:ok" in text or "'cluster_state': 'ok'" in text) and (
            role[0] == "master" or role[3] == "connected"
        )

    def master_of(self, slot: int) -> RedisNode:
        """The node that has a slot, as a node that runs says."""
        node = next(node for node in self.nodes if node.process is not None)
        for first, last, master, *_ in node.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(each for each in self.nodes if each.port == int(master[1]))
        raise LookupError(f"no master for slot {slot}")

    def replicas_of(self, master: RedisNode) -> list[RedisNode]:
        """The replicas of a node that runs, as it says."""
        if master.process is None or master.ask("ROLE")[0] != "master":
            return []
        ports = {int(port) for _, port, _ in master.ask("ROLE")[2]}
        return [node for node in self.nodes if node.port in ports]

    def serving(self, asked: RedisNode) -> set[int]:
        """The ports of the nodes that have slots, as one node says."""
        return {int(master[1]) for _, _, master, *_ in asked.ask("CLUSTER", "SLOTS")}

    def join(self, node: RedisNode) -> None:
        """Add a master without slots."""
        node.start()
        self.nodes.append(node)
        self.masters.append(node)
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", 1000 + len(self.nodes))
        self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
        self.wait_for(lambda each: len(self.known(each)) == len(self.nodes), "the new node is not known")
        self.wait_until_ok()

    def retire(self, node: RedisNode, heir: RedisNode) -> None:
        """Move all slots of a master to another, and end it."""
        for first, last, master, *_ in node.ask("CLUSTER", "SLOTS"):
            if int(master[1]) != node.port:
                continue
            empty, heir_id = [], heir.node_id
            for slot in range(first, last + 1):
                if node.ask("CLUSTER", "COUNTKEYSINSLOT", slot):
                    self.move_slot(slot, heir)
                else:
                    empty.append(slot)
            for each in (heir, *(other for other in self.masters if other is not heir)):
                with redis.Redis(port=each.port, protocol=2) as client, client.pipeline(transaction=False) as pipe:
                    for slot in empty:
                        pipe.execute_command("CLUSTER", "SETSLOT", slot, "NODE", heir_id)
                    pipe.execute()
        self.nodes.remove(node)
        self.masters.remove(node)
        gone = node.node_id
        for each in self.nodes:
            each.ask("CLUSTER", "FORGET", gone)
        node.close()

    def move_slot(self, slot: int, target: RedisNode) -> None:
        """Move a slot with its keys to another node, as redis-cli does."""
        source = self.master_of(slot)
        if source is target:
            return
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        self.finish_move(slot, target)

    def finish_move(self, slot: int, target: RedisNode) -> None:
        """Have all masters know that a slot has moved."""
        source = self.master_of(slot)
        for node in (target, source, *(node for node in self.nodes if node not in (target, source))):
            if node.process is not None and node.ask("ROLE")[0] == "master":
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.node_id)

    def close(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.close()

    @property
    def url(self) -> str:
        return f"rediscluster://127.0.0.1:{self.nodes[0].port}/0"

    def __enter__(self) -> RedisCluster:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class RabbitMQServer(Server):
    """A RabbitMQ. ``options``: lines of its rabbitmq.conf; ``plugins``: those to enable."""

    program = "rabbitmq-server"

    def __init__(self, options: Mapping[str, Any] | None = None, plugins: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._options = dict(options or {})
        self._plugins = plugins
        self._epmd_port, self._dist_port = free_port(), free_port()

    def command(self) -> list[str]:
        lines = {"loopback_users.guest": "false", "log.file.level": "warning", **self._options}
        (self.folder / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in lines.items()))
        (self.folder / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        return [self._path]

    def environment(self) -> Mapping[str, str]:
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
        # It listens before it serves, so ask for the first answer of the handshake.
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.settimeout(5)
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(8).startswith(b"\x01\x00\x00")
        except OSError:
            return False

    def control(self, *arguments: str, timeout: float = 60) -> str:
        """What rabbitmqctl answers."""
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
        super().close()
        wait_until(self._epmd_is_gone, STOP_TIMEOUT, "epmd does not end")

    def _epmd_is_gone(self) -> bool:
        """Ends epmd, which the node starts in a session of its own, and which stays until it has noticed its end."""
        environment = {**os.environ, **self.environment()}
        epmd = shutil.which("epmd", path=environment["PATH"])
        assert epmd is not None
        _, names = (
            subprocess.run([epmd, what], env=environment, capture_output=True, timeout=10, check=False)
            for what in ("-kill", "-names")
        )
        return names.returncode != 0

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"


class PostgreSQLServer(Server):
    """A PostgreSQL, run by an ordinary user: it refuses root. Always that of the machine."""

    program = "postgres"

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        path = str(found[-1]) if found else shutil.which(self.program)
        if path is None:
            raise Unavailable("postgres is not installed")
        self._path = path
        self.folder = Path(tempfile.mkdtemp(prefix="kombulite-"))
        self.port = free_port()
        self.process = None
        self.user = "nobody" if os.geteuid() == 0 else None
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        self.create()

    def create(self) -> None:
        """Make its files."""
        self.run("initdb", "-D", "data", "-U", "kombulite", "-A", "trust", "-E", "UTF8")

    def run(self, name: str, *arguments: str) -> None:
        """Run another program of PostgreSQL in its folder."""
        subprocess.run(
            [Path(self._path).with_name(name), *arguments],
            cwd=self.folder, user=self.user, check=True, capture_output=True, timeout=60,
        )  # fmt: skip

    def command(self) -> list[str]:
        return [self._path, "-D", "data", "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder)]

    def is_ready(self) -> bool:
        try:
            with psycopg.connect(self.conninfo, connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False

    def stop(self) -> None:
        self._end(signal.SIGINT)  # without waiting for its clients

    def signal(self, number: int) -> None:
        """Send a signal; what no process survives, or notices, goes to those of its connections too: a session each."""
        backends = []
        if self.process is not None and number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT):
            with contextlib.suppress(OSError):
                pid = self.process.pid
                backends = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        super().signal(number)
        for backend in backends:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(backend), number)

    def kill(self) -> None:
        """End it, and wait until the processes of its connections are gone too: no other starts beside them."""
        super().kill()
        wait_until(lambda: not self._is_at_work(), STOP_TIMEOUT, "processes of a killed PostgreSQL do not end")

    def _is_at_work(self) -> bool:
        folder = str(self.folder / "data")
        for link in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):
                if str(link.readlink()) == folder:
                    return True
        return False

    @property
    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=kombulite dbname=postgres"

    @property
    def url(self) -> str:
        return f"postgresql://kombulite@127.0.0.1:{self.port}/postgres"


def tail(path: Path, size: int = 3000) -> str:
    """The end of a file."""
    with contextlib.suppress(OSError):
        return path.read_bytes()[-size:].decode("utf-8", "replace")
    return ""


def wait_until(ready: Callable[[], object], timeout: float, complaint: str, log: Path | None = None) -> None:
    """Wait until something holds. Raises TimeoutError with the complaint, which may have a place for the log."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint.format(tail(log) if log else ""))
        time.sleep(0.05)
