"""A RabbitMQ cluster of three nodes on the loopback interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from tests.servers import RabbitMQServer, evaluate, free_port, wait_until

SIZE = 3
FORM_TIMEOUT = 120.0  # seconds
COOKIE = "kombulite"


class Node(RabbitMQServer):
    """A node: a broker that shares its Erlang cookie and port mapper with the other nodes."""

    def __init__(self, epmd_port: int) -> None:
        super().__init__()
        self._epmd_port = epmd_port
        self.address = "127.0.0.1"  # from which it connects to the others

    @property
    def mapper_port(self) -> int:
        """The port of the port mapper."""
        return self._epmd_port

    @property
    def distribution_port(self) -> int:
        """The port at which it waits for the others."""
        return self._dist_port

    def environment(self) -> Mapping[str, str]:
        """Return the environment variables that make it a node of the cluster."""
        found = dict(super().environment())
        source = f"[{{ip,{{{self.address.replace('.', ',')}}}}}]"
        found["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"] += f" -kernel inet_dist_connect_options {source}"
        return found

    @property
    def name(self) -> str:
        """The name of the node in the cluster."""
        return self.environment()["RABBITMQ_NODENAME"]

    def join(self, names: list[str]) -> None:
        """Set the node up to form a cluster of these names."""
        self._options["cluster_formation.peer_discovery_backend"] = "classic_config"
        self._options["net_ticktime"] = 8  # seconds until a silent node counts as down; 60 by default
        self._options |= {
            f"cluster_formation.classic_config.nodes.{number}": name for number, name in enumerate(names, 1)
        }
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(COOKIE)
        cookie.chmod(0o400)


class Cluster:
    """Three nodes, of which each may be killed, paused, stopped and started."""

    def __init__(self) -> None:
        epmd_port = free_port()
        self.nodes = [Node(epmd_port) for _ in range(SIZE)]
        for node in self.nodes:
            node.join([each.name for each in self.nodes])

    @property
    def url(self) -> str:
        """The nodes' URLs as a failover list."""
        return ";".join(node.url for node in self.nodes)

    def start(self) -> None:
        """Start all nodes, and wait until they are a cluster."""
        with ThreadPoolExecutor(SIZE) as pool:
            list(pool.map(Node.start, self.nodes))
        wait_until(lambda: self.running() == SIZE, FORM_TIMEOUT, "the nodes do not form a cluster")

    def running(self, node: Node | None = None) -> int:
        """Return how many nodes one, or an arbitrary live one, sees running."""
        return int(evaluate(node or self.alive(), "length(rabbit_nodes:list_running())."))

    def alive(self) -> Node:
        """Return a node that was not stopped."""
        return next(node for node in self.nodes if node.process is not None)

    def leader(self, queue: str) -> Node:
        """Return the node that leads a quorum queue or a stream."""
        question = (
            f'case rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)) of '
            "{ok, Q} -> rabbit_amqqueue:info(Q, [leader]); _ -> [] end."
        )
        found: list[Node] = []

        def ask() -> bool:
            answer = evaluate(self.alive(), question)  # for a moment it may still name a node that was killed
            found[:] = [node for node in self.nodes if node.name in answer and node.process is not None]
            return bool(found)

        wait_until(ask, FORM_TIMEOUT, f"{queue} has no leader")
        return found[0]

    def isolate(self, node: Node) -> None:
        """Part a node from the others, as a network does, though clients reach all: no connection between them."""
        part = "erlang:set_cookie(N, parted), erlang:disconnect_node(N)"
        evaluate(node, f"[begin {part} end || N <- {self._others(node)}].")
        wait_until(lambda: evaluate(node, "nodes().") == "[]", FORM_TIMEOUT, "the nodes do not part")

    def unite(self) -> None:
        """Let the nodes be a cluster again."""
        join = f"erlang:set_cookie(N, {COOKIE}), net_kernel:connect_node(N)"
        for node in self.nodes:
            if node.process is not None:
                evaluate(node, f"[begin {join} end || N <- {self._others(node)}].")
        wait_until(self.is_whole, FORM_TIMEOUT, "the nodes do not come together")

    def _others(self, node: Node) -> str:
        """Return the names of the other nodes as a term of Erlang."""
        return f"[{', '.join(repr(each.name) for each in self.nodes if each is not node)}]"

    def is_whole(self) -> bool:
        """Return whether each node sees all."""
        return all(node.process is not None and self.running(node) == SIZE for node in self.nodes)

    def for_each_in_turn(self, act: Callable[[Node], None]) -> None:
        """Do something to one node after the other, each time to a whole cluster."""
        for node in self.nodes:
            act(node)
            wait_until(lambda: self.running() == SIZE, FORM_TIMEOUT, "the node does not come back")

    def close(self) -> None:
        """End all nodes, and remove their folders."""
        for node in self.nodes:
            node.resume()
            node.kill()
        for node in self.nodes:  # the port mapper ends when the last node has
            node.close()

    def __enter__(self) -> Cluster:
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
