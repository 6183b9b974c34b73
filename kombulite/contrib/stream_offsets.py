"""Places where consumers keep their offsets in streams (RabbitMQ): ``Consumer(..., offsets=OffsetFile(path))``.

A store has ``load()``, which returns the offsets to go on at by the name of the stream, and ``save(offsets)``. It
belongs to one consumer: two consumers of one store would overwrite each other's offsets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from kombulite._client.interfaces import Channel
from kombulite._client.streams import checked_offsets
from kombulite._sync.producer import Producer
from kombulite.abstract import maybe_channel
from kombulite.entity import Queue

__all__ = ["OffsetFile", "OffsetQueue"]


class OffsetFile:
    """A file with offsets, as JSON. It is replaced in one step, so that a crash leaves the old or the new ones.

    Args:
        path: Of the file; its folder must exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def load(self) -> dict[str, int]:
        """Return the offsets by stream; an empty dict if there is no file yet.

        Raises:
            ValueError: The file has other content.
        """
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return {}
        return checked_offsets(json.loads(text))

    def save(self, offsets: Mapping[str, int]) -> None:
        """Write the offsets.

        Args:
            offsets: Offsets by stream.
        """
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        beside.write_text(json.dumps(dict(offsets)))
        beside.replace(self.path)


class OffsetQueue:
    """A queue of the broker that holds one message: the offsets, as JSON.

    Args:
        channel: A channel or connection, of its own if its publishes must be confirmed.
        name: Of the queue, which is declared as durable, for one message.
    """

    def __init__(self, channel: Channel, name: str) -> None:
        self._channel = maybe_channel(channel)
        self._queue = Queue(name, queue_arguments={"x-max-length": 1})(self._channel)
        self._queue.declare()
        self._producer = Producer(self._channel)

    def load(self) -> dict[str, int]:
        """Return the offsets by stream; an empty dict if there is no message.

        Raises:
            ValueError: The message has other content.
        """
        message = self._queue.get()
        if message is None:
            return {}
        message.requeue(failed=False)
        return checked_offsets(message.payload)

    def save(self, offsets: Mapping[str, int]) -> None:
        """Publish the offsets, in place of the last ones.

        Args:
            offsets: Offsets by stream.
        """
        self._producer.publish(dict(offsets), routing_key=self._queue.name, serializer="json")
