"""Receiving messages.

The class is wider than others: kombu's users find all of this on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any, TypedDict

from kombulite import exceptions
from kombulite._client.batching import BatchCollector, MessageBatch
from kombulite._client.dead_letters import DeadLetterRule, Verdict, dead_letter_rule
from kombulite._client.interfaces import Bindable
from kombulite._client.queue_kind import with_kind
from kombulite._client.streams import OffsetKeeper, OffsetStore, StreamPositions
from kombulite._core import BaseConsumer
from kombulite._sync.channel import Channel
from kombulite._sync.steps import Step
from kombulite.abstract import is_connection, maybe_channel
from kombulite.entity import Exchange, Queue
from kombulite.message import Message
from kombulite.serialization import prepare_accept_content, registry
from kombulite.transport.adapter import AdaptedChannel, facade_channel
from kombulite.utils.functional import maybe_list


def _arguments_of(queue: Queue) -> Mapping[str, Any]:
    """Return the arguments with which a queue is declared, as far as its kind and the program name them."""
    kind = {} if queue.kind is None else queue.kind.queue_arguments()
    return with_kind(queue.queue_arguments, kind) or {}


class ConsumerArguments(TypedDict, total=False):
    """Keywords of ``Consumer`` behind ``queues``, for those who pass them on."""

    no_ack: bool | None
    auto_declare: bool | None
    callbacks: Iterable[Callable[[Any, Message], Any]] | None
    on_decode_error: Callable[[Message, Exception], Any] | None
    on_message: Callable[[Message], Any] | None
    accept: Iterable[str] | None
    prefetch_count: int | None
    tag_prefix: str | None
    max_deliveries: int | None
    dead_letter: Queue | Exchange | str | None
    on_batch: Callable[[MessageBatch], Any] | None
    batch_size: int
    batch_timeout: float
    offsets: OffsetStore | None


class Consumer(BaseConsumer):
    """Consumer: receives messages from one or several queues.

    With ``on_batch`` it is called with a ``MessageBatch``: a list of messages that can be decoded, of all queues, with
    an ``ack()`` for all of them. A batch is complete when it has ``batch_size`` messages, or as many as the prefetch
    count allows, or when its first message has waited for ``batch_timeout`` seconds.

    Args:
        channel: A channel, or a connection for its default channel.
        queues: A queue, or several.
        no_ack: If True, a message counts as acknowledged when the broker sends it.
        auto_declare: If True (default), the queues are declared first.
        callbacks: Functions called with (body, message).
        on_decode_error: Called with (message, exception) instead of raising the error.
        on_message: Called with each message, not decoded, instead of the callbacks.
        accept: Serializer names or content types that may be decoded (None: all that are not disabled).
        prefetch_count: Largest number of messages in flight, delivered and not acknowledged.
        tag_prefix: Prefix of the consumer tags.
        max_deliveries: With ``dead_letter``: a message that was delivered so often and came back is dead-lettered.
        dead_letter: A queue, its name, or an exchange for those messages.
        on_batch: Called with each ``MessageBatch``, instead of the callbacks.
        batch_size: Messages of a complete batch, from 1.
        batch_timeout: Seconds that the first message of a batch may wait; 0 ends a batch as soon as no more have
            arrived.
        offsets: The place where offsets of streams are kept (RabbitMQ), such as
            ``contrib.stream_offsets.OffsetFile(path)``.

    Raises:
        ValueError: Callbacks of both kinds are given, only one of ``max_deliveries`` and ``dead_letter`` is given,
            or a number is out of range.

    Example:
        ```py
        def handle(body, message):
            print(body)
            message.ack()

        with connection.Consumer(queue, callbacks=[handle], prefetch_count=100):
            while True:
                connection.drain_events()
        ```
    """

    ContentDisallowed = exceptions.ContentDisallowed

    _tags = count(1)

    no_ack: bool | None = None
    auto_declare = True
    channel: Any = None
    on_decode_error: Callable[[Message, Exception], Any] | None = None
    prefetch_count: int | None = None
    _queues: Any = None
    _replaced: Mapping[str, Any] = MappingProxyType({})  # methods that a program has set on this consumer

    def __init__(
        self,
        channel: Bindable | None,
        queues: Queue | Iterable[Queue] | None = None,
        no_ack: bool | None = None,
        auto_declare: bool | None = None,
        callbacks: Iterable[Callable[[Any, Message], Any]] | None = None,
        on_decode_error: Callable[[Message, Exception], Any] | None = None,
        on_message: Callable[[Message], Any] | None = None,
        accept: Iterable[str] | None = None,
        prefetch_count: int | None = None,
        tag_prefix: str | None = None,
        max_deliveries: int | None = None,
        dead_letter: Queue | Exchange | str | None = None,
        on_batch: Callable[[MessageBatch], Any] | None = None,
        batch_size: int = 100,
        batch_timeout: float = 1.0,
        offsets: OffsetStore | None = None,
    ) -> None:
        super().__init__(registry, Message.loads)
        self.channel: Any = channel
        given = list(maybe_list(queues) or ())
        are_named = all(queue.name for queue in given)
        self._queues = {queue.name: queue for queue in given} if are_named else {}
        self._unnamed = [] if are_named else given
        self._active_tags: dict[str, str] = {}
        self._active_queue_no_ack: dict[str, bool | None] = {}
        self._offsets = None if offsets is None else OffsetKeeper(offsets)
        self._cancelled: set[str] = set()  # queues whose consumers the broker ended
        self.no_ack = self.no_ack if no_ack is None else no_ack
        self.auto_declare = self.auto_declare if auto_declare is None else auto_declare
        if callbacks is not None:
            self.callbacks = callbacks if isinstance(callbacks, list) else list(callbacks)
        elif self.callbacks is None:
            self.callbacks = []
        self.on_message = on_message or self.on_message
        self.on_decode_error = on_decode_error or self.on_decode_error
        self.accept = prepare_accept_content(accept)
        self.prefetch_count = prefetch_count
        self.tag_prefix = tag_prefix
        self._rule = dead_letter_rule(max_deliveries, dead_letter)
        self._dead_letter_channel: Channel | None = None  # with confirms, and nothing else on it
        self._note_replaced()
        if on_batch is not None and (self.callbacks or self.on_message is not None):
            raise ValueError("a consumer has on_batch, or callbacks for single messages")
        self._collector = None if on_batch is None else BatchCollector(on_batch, batch_size, batch_timeout)
        if channel is not None:
            self.revive(channel)

    def _note_replaced(self) -> None:
        """Note what a subclass overrides, or a program has set on this consumer."""
        self._overrides_fields = any(
            getattr(type(self), name, None) is not getattr(BaseConsumer, name) for name in FIELDS
        )
        self._overrides_receive, self._overrides_callback = (
            name in self._replaced or getattr(type(self), name) is not method for name, method in REPLACEABLE.items()
        )

    # --- queues

    @property
    def queues(self) -> list[Queue]:
        """The queues that the consumer consumes from, or will consume from."""
        return [*self._queues.values(), *self._unnamed]

    @queues.setter
    def queues(self, queues: Any) -> None:
        self._queues = {queue.name: queue for queue in maybe_list(queues) or []}

    def add_queue(self, queue: Queue) -> Queue:
        """Add a queue, declaring it if ``auto_declare``. ``consume`` starts it.

        Args:
            queue: The queue.
        """
        queue = queue(self.channel)
        if self.auto_declare:
            queue.declare()
        self._queues[queue.name] = queue
        return queue

    def consuming_from(self, queue: Queue | str) -> bool:
        """Return True if a queue is being consumed.

        Args:
            queue: The queue, or its name.
        """
        return (queue.name if isinstance(queue, Queue) else queue) in self._active_tags

    def declare(self) -> None:
        """Declare the queues with their exchanges and bindings."""
        for queue in self._queues.values():
            queue.declare()

    def purge(self) -> int:
        """Remove the waiting messages of all queues. Return their number."""
        return sum(queue.purge() for queue in self._queues.values())

    # --- lifetime

    def revive(self, channel: Bindable | None) -> None:
        """Continue on another channel after the old one was lost: declare, set the prefetch count, consume again.

        Args:
            channel: A channel, or a connection for its default channel.
        """
        facade = None if is_connection(self.channel) else self._facade
        if facade is not None:
            facade.disown(self._active_tags.values())
        resumed = dict(self._active_queue_no_ack)
        positions = self.stream_offsets
        self._cancelled.clear()
        for tag in self._active_tags.values():
            if facade is not None and facade.is_consuming(tag):  # it was not lost, or came back with its connection
                self._end(tag)
        tags = list(self._active_tags.values())
        self._active_tags.clear()
        self._active_queue_no_ack.clear()
        self._stop_collecting(tags)
        self.channel = maybe_channel(channel)
        queues, unnamed = [[queue(self.channel) for queue in each] for each in (self._queues.values(), self._unnamed)]
        self._queues, self._unnamed = {queue.name: queue for queue in queues}, []
        if self.auto_declare:
            self.declare()
        for queue in unnamed:
            if self.auto_declare:
                queue.declare()  # now the broker has named it
            self._queues[queue.name] = queue
        if self.prefetch_count is not None:
            self.qos(prefetch_count=self.prefetch_count)
        self.go_on(positions)
        self._consume_previously_active(resumed)

    def consume(self, no_ack: bool | None = None) -> None:
        """Start consuming from all queues that are not being consumed.

        Args:
            no_ack: As for the class; None for its value.
        """
        no_ack = self.no_ack if no_ack is None else no_ack
        self._consume_queues(dict.fromkeys(self._queues, no_ack))

    def _consume_previously_active(self, active_no_ack: Mapping[str, bool | None]) -> None:
        """Consume again from the queues, by their names, that were consumed before the channel changed."""
        self._consume_queues(active_no_ack)

    def _consume_queues(self, no_ack_by_queue: Mapping[str, bool | None]) -> None:
        """Consume from queues, by their names, where that is not so already."""
        due = [name for name in no_ack_by_queue if name in self._queues and name not in self._active_tags]
        for name in due:
            self._basic_consume(self._queues[name], no_ack=no_ack_by_queue[name], nowait=name is not due[-1])

    def _add_tag(self, queue: Queue, consumer_tag: str | None = None) -> str:
        tag = consumer_tag or self._new_tag()
        self._active_tags[queue.name] = tag
        return tag

    def _basic_consume(
        self, queue: Queue, consumer_tag: str | None = None, no_ack: bool | None = None, nowait: bool = True
    ) -> str:
        """Consume from a queue, unless that is so already. Returns the consumer tag."""
        known = self._active_tags.get(queue.name)
        if known is not None:
            return known
        no_ack = queue.no_ack if no_ack is None else no_ack
        tag = self._add_tag(queue, consumer_tag)
        try:
            self._start(queue, tag, no_ack, nowait and not isinstance(self.channel, Channel))
        except BaseException:
            self._active_tags.pop(queue.name, None)
            self._active_queue_no_ack.pop(queue.name, None)
            raise
        return tag

    def _start(self, queue: Queue, tag: str, no_ack: bool, nowait: bool) -> None:
        self._active_queue_no_ack[queue.name] = no_ack
        self._cancelled.discard(queue.name)
        if not isinstance(queue, Queue):  # a stand-in of a test, which has kombu's keywords
            queue.consume(tag, self._receive_callback, no_ack=no_ack, nowait=nowait)
            return
        receive: Callable[[Message], Any] = self._receive_callback if self._overrides_callback else self._receive
        if self._offsets is not None:
            kept = self._offsets.offsets.get(queue.name)
            if kept is not None and queue.name not in self._facade.stream_positions.to_go_on:
                self.go_on({queue.name: kept})
        facade = self._facade
        if not isinstance(self.channel, Channel):
            receive = self._receive_callback
        if self._collector is not None:
            receive = partial(self._collect, tag)
        if self._rule is not None:
            facade.check_delivery_limit(queue.name, _arguments_of(queue), self._rule.max_deliveries)
            receive = partial(self._receive_or_dead_letter, self._rule, queue, receive)
        if self._offsets is not None:
            receive = partial(self._receive_and_save, self._offsets, receive)
        is_borrowed = isinstance(facade, AdaptedChannel) and facade.is_borrowed
        if is_borrowed and self._collector is None:  # nothing arrives there but by itself
            queue.consume(tag, receive, no_ack=no_ack, nowait=nowait)
            return
        receive = facade.receiver(self, tag, queue.name, bool(no_ack), receive)
        if self._collector is not None:
            facade.add_collector(self._collector)
        try:
            queue.consume(tag, receive, no_ack=no_ack, nowait=nowait, on_cancel=self._on_cancelled)
        except BaseException:
            facade.forget(tag)
            raise
        facade.tell_renames(tag, self._on_renamed)

    @property
    def _facade(self) -> Channel:
        return facade_channel(self.channel)

    def _end(self, consumer_tag: str) -> None:
        facade = self._facade
        facade.public.basic_cancel(consumer_tag)
        facade.forget(consumer_tag)

    def _on_cancelled(self, consumer_tag: str) -> None:
        """Note that the broker ended a consumer; ``consume`` and ``revive`` start it again."""
        for name, tag in list(self._active_tags.items()):
            if tag == consumer_tag:
                self.go_on(self._offsets_of({name: tag}))
                del self._active_tags[name]
                self._cancelled.add(name)
        raise exceptions.ConsumerCancelled(f"the broker cancelled consumer {consumer_tag}")

    def _on_renamed(self, before: str, now: str) -> None:
        """Note that the broker gave a queue another name when the connection was restored."""
        queue = self._queues[now] = self._queues.pop(before)
        queue.name = now
        self._active_tags[now] = self._active_tags.pop(before)
        self._active_queue_no_ack[now] = self._active_queue_no_ack.pop(before)

    @property
    def stream_offsets(self) -> dict[str, int]:
        """Offsets at which consuming would continue, by stream.

        Each is behind the last message up to which all are acknowledged.
        """
        if self.channel is None or is_connection(self.channel):
            return {}
        positions = self._facade.positions
        waiting = {} if positions is None else positions.to_go_on
        cancelled = {name: waiting[name] for name in self._cancelled if name in waiting}
        return {**cancelled, **self._offsets_of(self._active_tags)}

    def _offsets_of(self, tags: Mapping[str, str]) -> dict[str, int]:
        positions: StreamPositions | None = self._facade.positions
        if positions is None:
            return {}
        return positions.offsets_of({tag: name for name, tag in tags.items()})

    def go_on(self, offsets: Mapping[str, int]) -> None:
        """Start the next ``consume`` at given offsets, whatever the arguments of the queues say.

        Args:
            offsets: Offsets by stream.
        """
        for name, offset in offsets.items():
            self._facade.stream_positions.go_on(name, offset)

    def cancel(self) -> None:
        """Stop consuming.

        Delivered messages remain to be acknowledged; those of an incomplete batch return to their queues.
        """
        tags = list(self._active_tags.values())
        if self._offsets is not None:
            self._offsets.update(self.stream_offsets, at_once=True)
        self._cancelled.clear()
        self._active_queue_no_ack.clear()
        with ExitStack() as stack:  # if a callback raises meanwhile, the others are cancelled all the same
            stack.callback(self._stop_collecting, tags)
            for name in reversed(list(self._active_tags)):
                stack.callback(self._end, self._active_tags.pop(name))

    close = cancel

    def cancel_by_queue(self, queue: Queue | str) -> None:
        """Stop consuming from one queue, and remove it from the consumer.

        Args:
            queue: The queue, or its name.
        """
        name = queue.name if isinstance(queue, Queue) else queue
        self._queues.pop(name, None)
        self._cancelled.discard(name)
        self._active_queue_no_ack.pop(name, None)
        tag = self._active_tags.pop(name, None)
        if tag is not None:
            self._end(tag)
            self._stop_collecting([tag])

    def _stop_collecting(self, consumer_tags: list[str]) -> None:
        if self._collector is not None and consumer_tags:
            self._collector.give_back(set(consumer_tags))
            if not self._active_tags:
                self._facade.remove_collector(self._collector)

    def __enter__(self) -> Consumer:
        self.consume()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc_val: Any, exc_tb: Any) -> None:
        if not self.channel or not self.channel.connection:
            return
        channel = self.channel if isinstance(self.channel, Channel) else None
        is_lost = exc_type is not None and issubclass(exc_type, self.channel.connection.client.connection_errors)
        if is_lost and not (channel is not None and channel.is_lost):
            return  # as kombu's; but what is lost would come back with the next connection
        # What goes wrong after that, or on a transport of others, is no news: the program is done with the consumer.
        with nullcontext() if channel is not None and not is_lost else suppress(Exception):
            self.cancel()

    # --- limits

    def qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        """Limit the messages in flight: delivered and not acknowledged.

        If the broker accepts a limit for new consumers only (RabbitMQ, and since version 4 for ``apply_global`` too), a
        running consumer is replaced by a new one, with the same messages in the same order. On quorum queues messages
        that arrive at that moment may change places.

        Args:
            prefetch_size: Bytes in flight; RabbitMQ requires 0.
            prefetch_count: Largest number of messages; 0 for no limit.
            apply_global: If True, the limit is for all consumers of the channel together.
        """
        facade = self._facade
        facade.basic_qos(prefetch_size, prefetch_count, apply_global)
        if self._collector is not None:
            return
        for name, tag in list(self._active_tags.items()):
            if _arguments_of(self._queues[name]).get("x-single-active-consumer"):
                continue  # the next one in the broker's line, in another process, would have the queue
            successor = self._new_tag()
            if facade.resize_consumer(tag, successor, prefetch_count or 0, apply_global):
                self._active_tags[name] = successor

    def _new_tag(self) -> str:
        return f"{self.tag_prefix or ''}{next(self._tags)}"

    def flow(self, active: bool) -> None:
        """Pause or resume deliveries.

        Args:
            active: False pauses, True resumes.
        """
        self.channel.flow(active)

    def recover(self, requeue: bool = False) -> None:
        """Redeliver all messages that are not acknowledged.

        Args:
            requeue: Passed to the channel; kombulite's own channels return them to their queues in any case.
        """
        self.channel.basic_recover(requeue=requeue)

    # --- messages

    def register_callback(self, callback: Callable[[Any, Message], Any]) -> None:
        """Add a callback.

        Args:
            callback: Called with (body, message).
        """
        self.callbacks.append(callback)

    def receive(self, body: Any, message: Message) -> None:
        """Pass a decoded message to the callbacks. Subclasses may override it.

        Args:
            body: The decoded body.
            message: The message.

        Raises:
            NotImplementedError: There are no callbacks.
        """
        if not self.callbacks:
            raise NotImplementedError("Consumer does not have any callbacks")
        for callback in self.callbacks:
            callback(body, message)

    def _receive_callback(self, message: Any) -> Any:
        """Receive a message of a transport of others, or what its channel makes one of."""
        on_message = self.on_message
        try:
            if not isinstance(message, Message):
                convert = getattr(self.channel, "message_to_python", None)
                message = convert(message) if convert else message
            if self.accept is not None:
                message.accept = self.accept
            if message.errors:
                return message._reraise_error(self.on_decode_error)
            body = None if on_message is not None else message.decode()
        except Exception as error:
            self._decoding_failed(message, error)
            return None
        return on_message(message) if on_message is not None else self.receive(body, message)

    def _receive_and_save(self, keeper: OffsetKeeper, receive: Callable[[Message], Any], message: Message) -> object:
        result = receive(message)
        if keeper.is_due():
            keeper.update(self.stream_offsets)
        return result

    def _collect(self, consumer_tag: str, message: Message) -> object:
        assert self._collector is not None
        if not isinstance(message.channel, Channel):  # batches are the facade's, not the transport's
            message.channel = facade_channel(message.channel)
            message.delivery_info = {**message.delivery_info, "consumer_tag": consumer_tag}
        try:
            message.unpack(self.accept)
        except Exception as error:
            self._decoding_failed(message, error)
            return None
        return self._collector.add(message)

    def _decoding_failed(self, message: Message, error: Exception) -> None:
        if self.on_decode_error is None:
            raise error
        self.on_decode_error(message, error)

    def _receive_or_dead_letter(
        self, rule: DeadLetterRule, queue: Queue, receive: Callable[[Message], Any], message: Message
    ) -> object:
        verdict = rule.judge(message)
        if verdict is Verdict.RECEIVE:
            return receive(message)
        if verdict is Verdict.COUNT_AGAIN:
            message.requeue(failed=False)
        else:
            self._dead_letter(rule, queue, message)
        return None

    def _dead_letter(self, rule: DeadLetterRule, queue: Queue, message: Message) -> None:
        """Send a message to the dead letters, and acknowledge it once the broker has it there.

        Raises MessageReturned where nothing takes dead letters, MessageNacked, and errors of connection and channel.
        The message is not acknowledged then.
        """
        own = facade_channel(message.channel)
        channel = self._dead_letter_channel
        if channel is None or not channel.is_open or channel.connection is not own.connection:
            channel = facade_channel(own.connection.client.channel())
            channel.confirm_select()
            rule.destination(channel.public).declare()
            self._dead_letter_channel = channel
        channel.publish(rule.letter(message, queue.name), mandatory=True)
        message.ack()
        rule.report(message, queue.name)

    @property
    def connection(self) -> Any:
        """The connection of the consumer's channel."""
        try:
            return self.channel.connection.client
        except AttributeError:  # no channel, or one that is closed
            return None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.queues}>"


#: What the core has as fields, unless a subclass has it in its own way.
FIELDS = ("accept", "callbacks", "on_message")
#: What a subclass may override; a program may replace it on a consumer or, as tracers do, on the class.
REPLACEABLE = {name: getattr(Consumer, name) for name in ("receive", "_receive_callback")}
for _name, _method in REPLACEABLE.items():  # not in the class, where checkers would take overriding for an error
    setattr(Consumer, _name, Step(_method))
    vars(Consumer)[_name].__set_name__(Consumer, _name)
