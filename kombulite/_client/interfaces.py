"""What connections, channels, messages and hooks are to the modules below them. Imported by all, importing none.

Entities, hooks and retries call connections and channels, and those are made of them: so the floors below know these
protocols, and the classes that fulfil them stand above.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, Union


class Message(Protocol):
    """A received message."""

    body: Any
    headers: dict[str, Any]
    properties: dict[str, Any]
    delivery_info: dict[str, Any]
    content_type: Any
    content_encoding: Any
    channel: Any

    @property
    def delivery(self) -> Any:
        """The delivery that it came in; None if a transport of others made it."""

    @property
    def delivery_count(self) -> int:
        """How often it was delivered before."""


class DeclaredQueue(Protocol):
    """A queue that was declared: its name and counts, as a tuple too."""

    def __iter__(self) -> Iterator[Any]:
        """Give the three."""

    def __getitem__(self, index: Any) -> Any:
        """Return one of the three."""

    @property
    def queue(self) -> str:
        """Its name."""

    @property
    def message_count(self) -> int:
        """How many messages wait in it."""

    @property
    def consumer_count(self) -> int:
        """How many consumers it has."""


class Consuming(Protocol):
    """A consumer of a channel."""

    queue: str  #: which the broker may name anew when the connection is restored


class Hook(Protocol):
    """What is called when messages are published and consumed."""

    def installed(self, connection: Any) -> None:
        """Note that it was installed on a connection."""

    def publish(self, outgoing: Any) -> Any:
        """Return a context for the publishing of one message."""

    def publish_many(self, outgoing: Any) -> Any:
        """Return a context for the sending of messages."""

    def collect(self, outgoing: Any) -> None:
        """See a message that is put into a batch."""

    def consume(self, message: Any, queue: str) -> Any:
        """Return a context for a consumer's callback."""

    def get(self, message: Any, queue: str) -> None:
        """See a message that was fetched."""


class Channel(Protocol):
    """The verbs of AMQP, as entities call them: on a channel of kombulite's, or of a transport of others."""

    channel_id: Any
    connection: Any

    def prepare_message(self, *args: Any, **kwargs: Any) -> Any:
        """Make a message for ``basic_publish``."""

    def basic_publish(self, *args: Any, **kwargs: Any) -> Any:
        """Publish a message."""

    def basic_get(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch a message."""

    def basic_consume(self, *args: Any, **kwargs: Any) -> Any:
        """Start a consumer."""

    def basic_cancel(self, consumer_tag: str) -> Any:
        """End a consumer."""

    def exchange_declare(self, *args: Any, **kwargs: Any) -> Any:
        """Declare an exchange."""

    def exchange_bind(self, *args: Any, **kwargs: Any) -> Any:
        """Bind an exchange to an exchange."""

    def exchange_unbind(self, *args: Any, **kwargs: Any) -> Any:
        """Take such a binding away."""

    def exchange_delete(self, *args: Any, **kwargs: Any) -> Any:
        """Delete an exchange."""

    def prepare_queue_arguments(self, *args: Any, **kwargs: Any) -> Any:
        """Return the arguments of a queue's declaration."""

    def queue_declare(self, *args: Any, **kwargs: Any) -> Any:
        """Declare a queue."""

    def queue_bind(self, *args: Any, **kwargs: Any) -> Any:
        """Bind a queue to an exchange."""

    def queue_unbind(self, *args: Any, **kwargs: Any) -> Any:
        """Take such a binding away."""

    def queue_purge(self, *args: Any, **kwargs: Any) -> Any:
        """Remove the messages of a queue."""

    def queue_delete(self, *args: Any, **kwargs: Any) -> Any:
        """Delete a queue."""


class ChannelOwner(Protocol):
    """A connection, as what takes a channel takes it too: for its default channel."""

    @property
    def default_channel(self) -> Any:
        """One channel for all who do not want their own."""


#: What entities, producers and consumers are bound to.
Bindable = Union[Channel, ChannelOwner]  # noqa: UP007 - Python 3.10 evaluates it


class SessionChannel(Protocol):
    """A channel as the session of its connection knows it: it is suspended, opened again and resumed with that."""

    channel_id: Any
    failure: Any  #: what the broker closed it for
    unreported: set[str]  #: tags of the consumers that have not been told so

    @property
    def is_open(self) -> bool:
        """Whether it is open."""

    @property
    def collectors(self) -> Iterable[Any]:
        """What its consumers collect for batches."""

    def observe(self, hooks: Any) -> None:
        """Put these hooks around what is published and consumed."""

    def consumes_from(self, queue: str) -> bool:
        """Return whether it has a consumer of that queue."""

    def suspend(self, reason: object) -> None:
        """Keep what is needed to go on with another connection."""

    def reopen(self, transport: Any) -> None:
        """Be opened on a new connection."""

    def resume(self, renamed: Mapping[str, str]) -> None:
        """Start the consumers again."""

    def detach(self) -> None:
        """Be closed, without a word to the broker."""


class Connection(Protocol):
    """A connection of either facade."""

    def as_uri(self) -> str:
        """Return the URL without its password."""

    def add_hook(self, hook: Any) -> None:
        """Install a hook."""

    def remove_hook(self, hook: Any) -> None:
        """Take a hook away."""

    def after_fork(self) -> None:
        """Forget, in a forked child, what is the parent's."""


class BlockingConnection(Connection, Protocol):
    """A connection of the synchronous facade, as what is tried again on it needs it."""

    session: Any

    @property
    def state(self) -> Any:
        """Where it stands."""

    @property
    def hooks(self) -> Any:
        """What is around its publishing and consuming, if anything."""

    @property
    def client(self) -> Any:
        """The connection of the application."""

    @property
    def transport(self) -> Any:
        """The transport that programs see."""

    @property
    def default_channel(self) -> Any:
        """One channel for all who do not want their own."""

    @property
    def recoverable_connection_errors(self) -> Any:
        """Errors of the connection after which trying again may do."""

    @property
    def recoverable_channel_errors(self) -> Any:
        """Errors of a channel after which trying again may do."""

    def abandon(self, transport: Any, reason: object) -> None:
        """Be ready to connect anew after a failure on that transport."""

    def _ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Connect, as often as the arguments say."""

    def call_insured(self, obj: Any, policy: Any, fun: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function, and again after a failure."""

    def maybe_declare(self, entity: Any, channel: Any = None, retry: bool = False, **retry_policy: Any) -> bool:
        """Declare an entity unless that was done."""
