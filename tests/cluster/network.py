"""The network between the nodes of a cluster: proxies that pass nothing when told to, and the port mapper.

Erlang's nodes ask a port mapper (epmd) where another node listens. Ours names the proxy before that node. Each node
connects from a loopback address of its own, by which a proxy knows it.
"""

from __future__ import annotations

import socketserver
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress

from tests.cluster.cluster import Cluster, Node
from tests.proxy import Proxy

# The port mapper's requests and answers: "EPMD Protocol" in Erlang's distribution protocol.
ALIVE, ALIVE_ANSWER = 120, 118
PORT, PORT_ANSWER = 122, 119
NAMES, KILL = 110, 107


class PortMapper(socketserver.ThreadingTCPServer):
    """Stands for epmd at a port.

    Args:
        port: Where it listens.
        proxies: Ports to name in place of those of the nodes, by the part of a node's name before the ``@``.
    """

    allow_reuse_address = daemon_threads = True

    def __init__(self, port: int, proxies: Mapping[str, int]) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.proxies = proxies
        self.nodes: dict[str, bytes] = {}  # what a node registered with, in front of its name
        self.registered = 0
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Listen no more."""
        self.shutdown()
        self.server_close()


class _Handler(socketserver.StreamRequestHandler):
    server: PortMapper

    def handle(self) -> None:
        with suppress(OSError, struct.error):
            (size,) = struct.unpack(">H", self.rfile.read(2))
            request = self.rfile.read(size)
            kind, content = request[0], request[1:]
            if kind == ALIVE:
                self._register(content)
            elif kind == PORT:
                self._tell(content)
            elif kind == NAMES:
                names = "".join(f"name {name} at port {self._port(name)}\n" for name in list(self.server.nodes))
                self.wfile.write(struct.pack(">I", self.server.server_address[1]) + names.encode())
            elif kind == KILL:
                self.wfile.write(b"OK")
                threading.Thread(target=self.server.end, daemon=True).start()

    def _port(self, name: str) -> int:
        (own,) = struct.unpack(">H", self.server.nodes[name][:2])
        return self.server.proxies.get(name, own)

    def _register(self, content: bytes) -> None:
        """Note a node until it closes the connection."""
        (size,) = struct.unpack(">H", content[8:10])
        name = content[10 : 10 + size].decode()
        nodes, registration = self.server.nodes, content[:8]
        nodes[name] = registration
        self.server.registered += 1
        self.wfile.write(bytes([ALIVE_ANSWER, 0]) + struct.pack(">I", self.server.registered))
        try:
            self.rfile.read(1)
        finally:
            if nodes.get(name) is registration:  # else it has come back meanwhile
                del nodes[name]

    def _tell(self, content: bytes) -> None:
        name = content.decode()
        found = self.server.nodes.get(name)
        if found is None:
            self.wfile.write(bytes([PORT_ANSWER, 1]))
            return
        port, size = struct.pack(">H", self._port(name)), struct.pack(">H", len(content))
        self.wfile.write(bytes([PORT_ANSWER, 0]) + port + found[2:] + size + content + bytes(2))


class ProxiedCluster(Cluster):
    """Three nodes whose connections to each other lead through proxies."""

    def __init__(self) -> None:
        super().__init__()
        for number, node in enumerate(self.nodes, 2):
            node.address = f"127.0.0.{number}"
        self._proxies = {node: Proxy(node.distribution_port) for node in self.nodes}
        ports = {node.name.partition("@")[0]: proxy.port for node, proxy in self._proxies.items()}
        self._mapper = PortMapper(self.nodes[0].mapper_port, ports)

    def part(self, node: Node) -> None:
        """Let nothing pass between a node and the others, which does not end their connections."""
        others = [each.address for each in self.nodes if each is not node]
        for each, proxy in self._proxies.items():
            proxy.part(others if each is node else [node.address])

    def unite(self) -> None:
        """Let everything pass again; the connections begin anew."""
        for proxy in self._proxies.values():
            proxy.part(())
            proxy.reset()
        super().unite()

    def close(self) -> None:
        """End all nodes, and what is between them."""
        super().close()
        self._mapper.end()
        for proxy in self._proxies.values():
            proxy.close()
