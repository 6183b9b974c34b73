"""The servers of kombu's own transports, as far as Debian has them."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

from tests.servers import Server, Unavailable, free_port


class EtcdServer(Server):
    """An etcd with the second version of its interface, which kombu's transport speaks."""

    program = "etcd"

    def command(self) -> list[str]:
        self.peer_port = free_port()
        client, peer = (f"http://127.0.0.1:{port}" for port in (self.port, self.peer_port))
        return [
            *(self._path, "--enable-v2", "--unsafe-no-fsync", "--data-dir", "data"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *(
                "--listen-peer-urls",
                peer,
                "--initial-advertise-peer-urls",
                peer,
                "--initial-cluster",
                f"default={peer}",
            ),
        ]

    def is_ready(self) -> bool:
        asked = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            asked.request("GET", "/health")
            return b"true" in asked.getresponse().read()
        except OSError:
            return False
        finally:
            asked.close()

    @property
    def url(self) -> str:
        return f"etcd://127.0.0.1:{self.port}/"


class ZooKeeperServer(Server):
    """A ZooKeeper of its own."""

    program = "java"
    jar = Path("/usr/share/java/zookeeper.jar")

    def __init__(self) -> None:
        if not self.jar.exists():
            raise Unavailable("zookeeper is not installed")
        super().__init__()

    def command(self) -> list[str]:
        (self.folder / "data").mkdir(exist_ok=True)
        # The folder is the first place where it looks for settings, and has none: it logs errors only.
        options = ("-Xmx128m", "-XX:TieredStopAtLevel=1", "-Dzookeeper.admin.enableServer=false")
        main = "org.apache.zookeeper.server.ZooKeeperServerMain"
        return [self._path, "-cp", f"{self.folder}:{self.jar}", *options, main, str(self.port), "data"]

    def is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as asked:
                asked.sendall(b"srvr")
                return b"Mode: standalone" in asked.recv(4096)
        except OSError:
            return False

    @property
    def url(self) -> str:
        return f"zookeeper://127.0.0.1:{self.port}/"
