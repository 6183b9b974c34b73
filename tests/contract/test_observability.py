"""What is counted and traced is what happened, on every transport."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kombulite import exceptions
from kombulite.contrib.opentelemetry import OpenTelemetryHook
from kombulite.hooks import Hook
from tests.contract.conftest import Inbox, drain, soon

BODY = "grüße"  # more bytes than characters
SIZE = len(BODY.encode())


def receive(connection, inbox, count):
    """The next messages of a consumer, so many."""
    drain(connection, lambda: len(inbox.messages) >= count)
    messages, inbox.messages = inbox.messages[:count], inbox.messages[count:]
    return messages


def test_counters_count_what_happened(broker, connection, channel, queue):
    sender, receiver = connection, broker.connect()
    producer = sender.Producer(channel, routing_key=queue.name)
    for _ in range(2):
        producer.publish(BODY, serializer="raw", content_type="text/plain")
    assert producer.publish_many([BODY, BODY], content_type="text/plain") == 2
    with producer.batch():
        producer.publish(BODY, content_type="text/plain")
    with pytest.raises(exceptions.ChannelError):
        sender.Producer(sender.channel(), exchange=broker.name("nowhere"), auto_declare=False).publish(BODY)
    sent = sender.counters
    assert (sent.published, sent.bytes_sent) == (5, 5 * SIZE)
    assert sent.confirmed == (0 if broker.kind == "amqp" else 5)
    assert sent.consumed == sent.acked == sent.reconnects == 0

    inbox = Inbox(receiver.channel(), queue, ack=False)
    first, second, third, fourth, fifth = receive(receiver, inbox, 5)
    first.ack()
    second.reject()
    third.requeue()
    fourth.ack(multiple=True)
    (again,) = receive(receiver, inbox, 1)
    again.ack()
    fifth.ack()
    got = receiver.counters
    assert (got.consumed, got.redelivered, got.bytes_received) == (6, 1, 6 * SIZE)
    assert (got.acked, got.rejected, got.requeued) == (4, 1, 1)
    assert (got.published, got.bytes_sent) == (0, 0)


def test_what_is_fetched_counts_as_consumed(connection, channel, queue):
    connection.Producer(channel).publish(BODY, routing_key=queue.name)
    message = soon(lambda: queue.get(no_ack=True))
    assert message.payload == BODY
    assert (connection.counters.consumed, connection.counters.acked) == (1, 0)
    assert queue.get() is None
    assert connection.counters.consumed == 1


@pytest.mark.parametrize("listens", [True, False])
def test_returned_messages_are_counted(broker, connection, channel, listens):
    returned = []
    on_return = (lambda *args: returned.append(args)) if listens else None
    producer = connection.Producer(channel, exchange="amq.direct", auto_declare=False, on_return=on_return)
    channel.exchange_declare("amq.direct", "direct", passive=broker.kind.startswith("amqp"))
    for number in (1, 2):
        try:
            producer.publish({}, routing_key=broker.name("nobody"), mandatory=True)
        except exceptions.MessageReturned:
            assert not listens
        for _ in range(50):
            if connection.counters.returned == number:
                break
            try:
                connection.drain_events(timeout=0.1)
            except (TimeoutError, exceptions.MessageReturned):
                continue
        if not listens:
            break
    expected = 2 if listens else 1
    assert (connection.counters.published, connection.counters.returned) == (expected, expected)
    assert len(returned) == (2 if listens else 0)


def test_refused_acknowledgements_do_not_count(connection, channel, queue):
    connection.Producer(channel).publish({}, routing_key=queue.name)
    message = soon(queue.get)
    message.ack()
    with pytest.raises(message.MessageStateError):
        message.ack()
    with pytest.raises(exceptions.PreconditionFailed):
        channel.basic_ack(10**6 if isinstance(message.delivery_tag, int) else "unknown")
    assert connection.counters.acked == 1


def test_threads_lose_no_count(broker, connection, queue):
    each, threads = 50, 4

    def publish():
        producer = connection.Producer(connection.channel(), routing_key=queue.name)
        for _ in range(each):
            producer.publish({})

    workers = [threading.Thread(target=publish) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert connection.counters.published == each * threads


class Witness(Hook):
    """Writes down what it sees, and marks what is published."""

    def __init__(self):
        self.seen = []

    def note(self, *what):
        self.seen.append(what)

    @contextmanager
    def publish(self, outgoing):
        outgoing.headers["mark"] = "one"
        try:
            yield
        except Exception as error:
            self.note("publish", outgoing.exchange, outgoing.routing_key, outgoing.size, type(error))
            raise
        self.note("publish", outgoing.exchange, outgoing.routing_key, outgoing.size, None)

    @contextmanager
    def publish_many(self, outgoing):
        for each in outgoing:
            each.headers.setdefault("mark", "many")
        yield
        self.note("publish_many", [each.headers["mark"] for each in outgoing], [each.error for each in outgoing])

    def collect(self, outgoing):
        outgoing.headers["mark"] = "batch"

    @contextmanager
    def consume(self, message, queue):
        yield
        self.note("consume", queue, message.headers["mark"], message.state)

    def get(self, message, queue):
        self.note("get", queue, message.headers["mark"])

    def take(self):
        seen, self.seen = self.seen, []
        return seen


def test_hooks_see_all_and_mark_all(connection, channel, queue):
    hook = Witness()
    producer = connection.Producer(channel, routing_key=queue.name)  # there before the hook is
    inbox = Inbox(channel, queue, ack=False)
    connection.add_hook(hook)
    name = queue.name
    producer.publish(BODY, content_type="text/plain", headers={"mine": 1})
    assert hook.take() == [("publish", "", name, SIZE, None)]
    producer.publish_many([BODY, BODY])
    with producer.batch():
        producer.publish(BODY)
        assert hook.take() == [("publish_many", ["many", "many"], [None, None])]
    assert hook.take() == [("publish_many", ["batch"], [None])]

    messages = receive(connection, inbox, 4)
    assert messages[0].headers["mine"] == 1
    assert hook.take() == [("consume", name, mark, "RECEIVED") for mark in ("one", "many", "many", "batch")]
    for message in messages:
        message.ack()

    inbox.consumer.cancel()
    producer.publish(BODY)
    soon(queue.get).ack()
    assert hook.take() == [("publish", "", name, SIZE, None), ("get", name, "one")]

    connection.remove_hook(hook)
    producer.publish(BODY)
    message = soon(queue.get)
    message.ack()
    assert "mark" not in message.headers
    assert hook.take() == []


def test_hooks_see_errors(broker, connection, queue):
    hook = Witness()
    connection.add_hook(hook)
    nowhere = broker.name("nowhere")
    with pytest.raises(exceptions.NotFound):
        connection.Producer(exchange=nowhere, auto_declare=False, routing_key="k").publish("x")
    assert hook.take() == [("publish", nowhere, "k", 1, exceptions.NotFound)]


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    exporter.tracer = provider.get_tracer("test")
    exporter.hook = OpenTelemetryHook(tracer_provider=provider)
    return exporter


def by_name(exporter):
    spans = {span.name.partition(" ")[0]: span for span in exporter.get_finished_spans()}
    exporter.clear()
    return spans


def test_a_trace_goes_through_the_broker(broker, connection, channel, queue, spans):
    receiver = broker.connect()
    for each in (connection, receiver):
        each.add_hook(spans.hook)
    inside = []

    def on_message(message):
        inside.append(trace.get_current_span().get_span_context())
        message.ack()

    with spans.tracer.start_as_current_span("order"):
        connection.Producer(channel, routing_key=queue.name).publish(
            {"id": 7}, correlation_id="c-1", headers={"mine": "1"}
        )
    with receiver.Consumer([queue], on_message=on_message):
        receiver.drain_events(timeout=10)
    found = by_name(spans)
    order, send, process = (found[name] for name in ("order", "send", "process"))
    assert send.parent.span_id == order.context.span_id
    assert process.parent.span_id == send.context.span_id
    assert process.context.trace_id == order.context.trace_id
    assert inside[0].span_id == process.context.span_id

    names = {"amqp-confirms": "rabbitmq", "amqp": "rabbitmq", "example": "sqlite", "rediscluster": "redis"}
    system = names.get(broker.kind, broker.kind)
    assert send.kind is trace.SpanKind.PRODUCER
    assert process.kind is trace.SpanKind.CONSUMER
    for span, operation in ((send, "send"), (process, "process")):
        assert span.name == f"{operation} {queue.name}"
        assert span.attributes["messaging.system"] == system
        assert span.attributes["messaging.destination.name"] == queue.name
        assert span.attributes["messaging.operation.name"] == operation
        assert span.attributes["messaging.operation.type"] == operation
        assert span.attributes["messaging.message.conversation_id"] == "c-1"
    assert send.attributes["messaging.message.body.size"] == len(b'{"id": 7}')
    if system in ("rabbitmq", "redis"):
        assert send.attributes["server.address"] in ("127.0.0.1", "localhost")


def test_messages_of_a_batch_carry_the_span_that_they_were_made_in(connection, channel, queue, spans):
    connection.add_hook(spans.hook)
    producer = connection.Producer(channel, routing_key=queue.name)
    with producer.batch():
        with spans.tracer.start_as_current_span("order"):
            producer.publish({})
    found = by_name(spans)
    order, send = found["order"], found["send"]
    assert [link.context.span_id for link in send.links] == [order.context.span_id]
    assert send.attributes["messaging.batch.message_count"] == 1
    message = soon(queue.get)
    message.ack()
    assert message.headers["traceparent"].split("-")[2] == f"{order.context.span_id:016x}"
    receive = by_name(spans)["receive"]
    assert [link.context.span_id for link in receive.links] == [order.context.span_id]

    producer.publish_many([{}, {}])
    send = by_name(spans)["send"]
    assert send.attributes["messaging.batch.message_count"] == 2
    message = soon(queue.get)
    message.ack()
    assert message.headers["traceparent"].split("-")[2] == f"{send.context.span_id:016x}"


def test_spans_tell_of_errors(broker, connection, channel, queue, spans):
    connection.add_hook(spans.hook)
    connection.Producer(channel, routing_key=queue.name).publish({}, headers={"traceparent": 5})

    def callback(body, message):
        message.ack()
        raise ZeroDivisionError

    with connection.Consumer([queue], callbacks=[callback]):
        with pytest.raises(ZeroDivisionError):
            connection.drain_events(timeout=10)
    with pytest.raises(exceptions.NotFound):
        connection.Producer(exchange=broker.name("nowhere"), auto_declare=False, routing_key="k").publish("x")
    found = by_name(spans)
    assert found["process"].attributes["error.type"] == "ZeroDivisionError"
    assert found["send"].attributes["error.type"] == "NotFound"
    assert not found["send"].status.is_ok
