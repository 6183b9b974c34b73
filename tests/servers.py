"""The brokers that tests and benchmarks start for themselves: those of the package, PostgreSQL, and their versions.

A broker that runs already may be named by ``KOMBULITE_TEST_REDIS`` or ``KOMBULITE_TEST_AMQP`` (a URL). Only tests that
leave it running use it; the others start one of their own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS

from kombulite.contrib.servers import (
    START_TIMEOUT,
    STOP_TIMEOUT,
    RabbitMQServer,
    RedisServer,
    Server,
    Unavailable,
    free_port,
    program,
    tail,
    wait_until,
)

__all__ = [
    "OrdinaryUser",
    "PostgreSQLServer",
    "RabbitMQServer",
    "RedisCluster",
    "RedisNode",
    "RedisServer",
    "Server",
    "Unavailable",
    "add_user",
    "add_virtual_host",
    "close_connections",
    "evaluate",
    "free_port",
    "keep_declarations",
    "program",
    "set_memory_limit",
    "tail",
    "version",
    "wait_for_connections",
    "wait_until",
]


def version(name: str) -> str:
    """Return the version of a broker's program, such as ``8.0.6``. Raises Unavailable."""
    return _version_of(_postgres() if name == "postgres" else program(name))


def _postgres() -> str:
    """Return the path of PostgreSQL's server, which Debian has where no PATH leads: of the newest one there.

    Raises:
        Unavailable: It is not there.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return program("postgres") if os.environ.get("KOMBULITE_TEST_PROGRAMS") or not found else str(found[-1])


@cache  # rabbitmqctl takes a second to say
def _version_of(path: str) -> str:
    question = {"rabbitmqctl": "version"}.get(Path(path).name, "--version")
    answer = subprocess.run([path, question], capture_output=True, text=True, timeout=100, check=False).stdout
    found = re.search(r"\d+(\.\d+)+", answer)
    if found is None:
        raise Unavailable(f"{path} does not tell its version, but {answer!r:.80}")
    return found[0]


def evaluate(server: RabbitMQServer, expression: str) -> str:
    """Have RabbitMQ evaluate an Erlang expression, which ends in a full stop. Return its value as Erlang writes it.

    erl_call does so in 20 ms; ``rabbitmqctl eval``, which is asked where erl_call is not there, takes a second.
    """
    environment, cookie = {**os.environ, **server.environment()}, server.folder / ".erlang.cookie"
    erl_call = shutil.which("erl_call", path=environment["PATH"])
    if erl_call is not None and cookie.exists():
        command = [erl_call, "-sname", environment["RABBITMQ_NODENAME"], "-c", cookie.read_text(), "-e"]
        done = subprocess.run(
            command, input=f"{expression}\n", env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        found = re.fullmatch(r"\{ok, (.*)\}", done.stdout.strip(), re.DOTALL)
        if found is not None:
            return found[1]
    return server.control("eval", expression).strip()


def add_virtual_host(server: RabbitMQServer, name: str) -> None:
    """Add a virtual host to RabbitMQ."""
    evaluate(server, f"ok = rabbit_vhost:add({_binary(name)}, {_binary('test')}).")


def add_user(
    server: RabbitMQServer, name: str, password: str, rights: tuple[str, str, str], hosts: Sequence[str] = ("/",)
) -> None:
    """Add a user to RabbitMQ who may configure, write and read what these patterns match, in some virtual hosts."""
    user, tester, internal = _binary(name), _binary("test"), "rabbit_auth_backend_internal"
    patterns = ", ".join(map(_binary, rights))
    calls = [f"ok = {internal}:add_user({user}, {_binary(password)}, {tester})"]
    calls += [f"ok = {internal}:set_permissions({user}, {_binary(host)}, {patterns}, {tester})" for host in hosts]
    evaluate(server, f"{', '.join(calls)}.")


def _binary(text: str) -> str:
    """Return a text as a binary of Erlang."""
    return f"<<{','.join(map(str, text.encode()))}>>"


def wait_for_connections(server: RabbitMQServer) -> None:
    """Wait until RabbitMQ has all connections in its list.

    A node serves clients before it counts as running, and the list of 4.3 is of nodes that do: until then an operator
    who closes all connections closes none, and is not told. A connection, too, is open before it is in the list.
    """
    evaluate(
        server,
        "Wait = fun Again() -> case rabbit:is_running() of true -> ok; false -> timer:sleep(20), Again() end end, "
        "Wait(), pg_local:sync().",
    )


def close_connections(server: RabbitMQServer, reason: str) -> None:
    """Close all connections to RabbitMQ, as its operator does with ``rabbitmqctl close_all_connections``."""
    wait_for_connections(server)
    evaluate(server, f'rabbit_networking:close_connections(rabbit_networking:connections(), "{reason}").')


def set_memory_limit(server: RabbitMQServer, share: float) -> None:
    """Let RabbitMQ take so much of the machine's memory, as with ``rabbitmqctl set_vm_memory_high_watermark``."""
    evaluate(server, f"vm_memory_monitor:set_vm_memory_high_watermark({share:f}).")


def keep_declarations(server: RabbitMQServer) -> None:
    """Have RabbitMQ write to disk what was declared, before it is killed.

    3.10.8 forgets a durable queue, with the confirmed messages in it, if it is killed just after the declaration: 5 of
    33 times on a loaded machine, with pika. 4.3.6 forgot none of 31. But if a node of its cluster is killed just after
    the first stream was declared, it forgets for ever that it takes part in the election of streams' leaders (3 of 3
    times): then no stream elects a leader while one of the others is down.
    """
    evaluate(server, "mnesia:sync_log(), lists:foreach(fun dets:sync/1, dets:all()).")


class RedisNode(RedisServer):
    """A node of a Redis Cluster: it notices within half a second that another is gone."""

    def __init__(self, **options: Any) -> None:
        self.bus_port = free_port()
        super().__init__(
            cluster_enabled="yes", cluster_port=self.bus_port, cluster_node_timeout=500,
            cluster_replica_validity_factor=0, repl_diskless_sync_delay=0, **options,
        )  # fmt: skip

    @contextlib.contextmanager
    def asking(self) -> Iterator[Callable[..., Any]]:
        """Yield what asks the node over one connection, which is open."""
        with redis.Redis(port=self.port, decode_responses=True, protocol=2, socket_timeout=20) as client:
            client.ping()
            yield client.execute_command

    def ask(self, *command: Any) -> Any:
        """What the node answers."""
        with self.asking() as ask:
            return ask(*command)

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
                found = [each for each in self.nodes if each.port == int(master[1])]
                # It may be announced at the port of a proxy.
                return found[0] if found else next(each for each in self.nodes if each.node_id == master[2])
        raise LookupError(f"no master for slot {slot}")

    def replicas_of(self, master: RedisNode) -> list[RedisNode]:
        """The replicas of a node that runs, as it says."""
        if master.process is None or master.ask("ROLE")[0] != "master":
            return []
        ports = {int(port) for _, port, _ in master.ask("ROLE")[2]}
        return [node for node in self.nodes if node.port in ports]

    def promote(self, replica: RedisNode) -> None:
        """Have a replica take over from its master, which agrees; on a machine with other work it may take several."""

        def is_master() -> bool:
            if replica.ask("ROLE")[0] != "master":
                with contextlib.suppress(redis.ResponseError):
                    replica.ask("CLUSTER", "FAILOVER")
                time.sleep(0.5)
            return bool(replica.ask("ROLE")[0] == "master")

        wait_until(is_master, START_TIMEOUT, "the replica does not take over")

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
            heir_id, slots = heir.node_id, range(first, last + 1)
            with redis.Redis(port=node.port, protocol=2) as client, client.pipeline(transaction=False) as pipe:
                for slot in slots:
                    pipe.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot)
                counts = pipe.execute()
            for slot, count in zip(slots, counts, strict=True):
                if count:
                    self.move_slot(slot, heir)
            empty = [slot for slot, count in zip(slots, counts, strict=True) if not count]
            for each in (heir, *(other for other in self.masters if other is not heir)):
                with redis.Redis(port=each.port, protocol=2) as client, client.pipeline(transaction=False) as pipe:
                    for slot in empty:
                        pipe.execute_command("CLUSTER", "SETSLOT", slot, "NODE", heir_id)
                    # The node refuses once it has heard that it has no slots: it is a replica then.
                    pipe.execute(raise_on_error=each is not node)
        self.nodes.remove(node)
        self.masters.remove(node)
        gone = node.node_id
        for each in self.nodes:
            each.ask("CLUSTER", "FORGET", gone)
        node.close()

    def move_slot(self, slot: int, target: RedisNode) -> None:
        """Move a slot with its keys to another node, as redis-cli does: over connections that are open before."""
        source = self.master_of(slot)
        if source is target:
            return
        ids = source.node_id, target.node_id
        with source.asking() as ask_source, target.asking() as ask_target, self._ending(slot, target) as end:
            ask_target("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            ask_source("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            while keys := ask_source("CLUSTER", "GETKEYSINSLOT", slot, 100):
                ask_source("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            end()

    def move_slot_at_once(self, slot: int, target: RedisNode) -> None:
        """Have a slot's master (Valkey 9) copy it to another node, to which it belongs once that has all of it."""
        source = self.master_of(slot)
        source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.node_id)

        def is_over() -> bool:
            job = source.ask("CLUSTER", "GETSLOTMIGRATIONS")[0]
            state = dict(zip(job[::2], job[1::2], strict=True))
            assert state["state"] not in ("failed", "cancelled"), state
            return bool(state["state"] == "success")

        wait_until(is_over, START_TIMEOUT, "the slot is not moved")

    def finish_move(self, slot: int, target: RedisNode) -> None:
        """Have all masters know that a slot has moved."""
        with self._ending(slot, target) as end:
            end()

    @contextlib.contextmanager
    def _ending(self, slot: int, target: RedisNode) -> Iterator[Callable[[], None]]:
        source, target_id = self.master_of(slot), target.node_id
        others = [node for node in self.nodes if node not in (target, source)]
        with contextlib.ExitStack() as opened:
            running = [node for node in (target, source, *others) if node.process is not None]
            asks = [opened.enter_context(node.asking()) for node in running]
            masters = [ask for ask in asks if ask("ROLE")[0] == "master"]

            def end() -> None:
                for ask in masters:
                    ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)

            yield end

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


class OrdinaryUser:
    """Who runs a broker that refuses root: if root runs the tests, the user ``nobody``.

    A program of ``KOMBULITE_TEST_PROGRAMS`` is started as it is, and has to become that user by itself: it may be a
    script that enters another file system first, which only root may do.

    Attributes:
        name: The owner of the broker's files; None: the user of the tests.
        starter: Who starts its programs; None: the user of the tests.
    """

    def __init__(self) -> None:
        self.name = "nobody" if os.geteuid() == 0 else None
        self.starter = None if os.environ.get("KOMBULITE_TEST_PROGRAMS") else self.name

    def own(self, folder: Path) -> None:
        """Give a folder to that user."""
        if self.name is not None:
            shutil.chown(folder, self.name)


class PostgreSQLServer(Server):
    """A PostgreSQL, run by an ordinary user: it refuses root.

    ``settings``: those of its configuration. With ``fsync="off"`` it does not wait for the disk: then a crash of the
    machine may lose what was committed, but the end of its own processes may not.
    """

    program = "postgres"

    def __init__(self, **settings: str) -> None:
        self._settings = settings
        self._path = _postgres()
        self.folder = Path(tempfile.mkdtemp(prefix="kombulite-"))
        self.port = free_port()
        self.process = None
        self.owner = OrdinaryUser()
        self.owner.own(self.folder)
        self.user = self.owner.starter
        self.create()

    @property
    def data(self) -> Path:
        """The folder of its files, by a path that holds wherever its programs begin."""
        return self.folder / "data"

    def create(self) -> None:
        """Make its files."""
        self.run("initdb", "-D", str(self.data), "-U", "kombulite", "-A", "trust", "-E", "UTF8", "--no-sync")

    def run(self, name: str, *arguments: str) -> None:
        """Run another program of PostgreSQL in its folder."""
        subprocess.run(
            [Path(self._path).with_name(name), *arguments],
            cwd=self.folder, user=self.user, check=True, capture_output=True, timeout=100,
        )  # fmt: skip

    def command(self) -> list[str]:
        settings = (part for name, value in self._settings.items() for part in ("-c", f"{name}={value}"))
        place = ["-D", str(self.data), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder)]
        return [self._path, *place, *settings]

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
        for link in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):  # not by its name, which is another in a file system of its own
                if link.samefile(self.data):
                    return True
        return False

    @property
    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=kombulite dbname=postgres"

    @property
    def url(self) -> str:
        return f"postgresql://kombulite@127.0.0.1:{self.port}/postgres"
