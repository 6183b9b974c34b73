"""What a client is told to do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bench.workloads import SMALL

EXCHANGE, KEY = "bench", "order.created"

Work = Literal[
    "publish", "consume", "round trip", "publish at a rate", "consume and note latencies", "publish from many, consume"
]


@dataclass(frozen=True)
class Task:
    """One work for one client.

    ``size``: bytes of the body, which is sent as it is; None for a small dict, which is sent as JSON. ``text``: a
    document of about that size instead, to be serialised. ``queues``: how many are consumed, and have the messages
    among them. ``connections``: that publish, in turn, or each in a thread. ``bindings``: how many the exchange has.
    ``batch``: messages that are sent together, 0 for one at a time. ``rate``: messages in a second that are offered.
    ``connection``: options of the transport; ``publishing``: keywords of each publish.
    """

    client: str
    work: Work
    transport: str = "memory"
    messages: int = 1000
    size: int | None = None
    text: bool = False
    queues: int = 1
    connections: int = 1
    bindings: int = 1
    kind: str = "direct"
    prefetch: int = 1000
    no_ack: bool = False
    batch: int = 0
    rate: float = 0
    heartbeat: float = 0
    connection: dict[str, Any] = field(default_factory=dict)
    publishing: dict[str, Any] = field(default_factory=dict)
    url: str = "memory://"

    @property
    def body(self) -> Any:
        """What is sent."""
        if self.size is None:
            return SMALL
        if self.text:  # like what programs send: it compresses
            return {"lines": [{**SMALL, "id": i} for i in range(self.size // 110)]}
        return b"x" * self.size

    @property
    def names(self) -> list[str]:
        """Names of the queues."""
        return [f"bench.{i}" for i in range(self.queues)]

    def to_json(self) -> str:
        """For the command line of the client's process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """What ``to_json`` wrote."""
        return cls(**json.loads(text))
