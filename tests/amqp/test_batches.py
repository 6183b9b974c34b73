"""Batches are acknowledged with one frame where that acknowledges nothing else."""

from __future__ import annotations

from kombulite import Consumer, Producer, Queue

FRAME = 21  # bytes of basic.ack with its frame


def test_one_ack_for_a_batch_unless_others_are_out(connect, name, monkeypatch):
    connection = connect()
    channel = connection.channel()
    queue, other = Queue(name("batch"))(channel), Queue(name("other"))(channel)
    batches, sent = [], []
    consumer = Consumer(channel, queue, on_batch=batches.append, batch_size=10)
    consumer.consume()
    other.declare()
    producer = Producer(channel)

    def ack_a_batch():
        producer.publish_many(range(10), routing_key=queue.name)
        connection.drain_events(timeout=10)
        sent.clear()
        batches[-1].ack()
        return sum(sent)

    link = connection.transport._opened().stream
    send = link.send
    monkeypatch.setattr(link, "send", lambda data, *rest, **more: (sent.append(len(data)), send(data, *rest, **more)))

    assert ack_a_batch() == FRAME
    producer.publish("held", routing_key=other.name)
    held = other.get()
    assert ack_a_batch() == 10 * FRAME
    held.reject()
    assert ack_a_batch() == FRAME
    producer.publish_many(range(10), routing_key=queue.name)
    connection.drain_events(timeout=10)
    batches[-1][4].ack()
    sent.clear()
    batches[-1].requeue(failed=False)
    assert sum(sent) == FRAME
    connection.drain_events(timeout=10)  # nine come again
    batches[-1].ack(), batches[-1].ack()
    assert queue.queue_declare(passive=True).message_count == 0
