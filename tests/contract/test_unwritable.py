"""Headers, properties and text that a broker's format has no form for: one typed error, and nothing else is lost."""

from __future__ import annotations

import pickle

import pytest

from kombulite import Producer, exceptions
from tests.contract.conftest import take

UNWRITABLE_HEADERS = {
    "an object": ({"h": object()}, TypeError),
    "deep inside": ({"h": {"list": [1, {"deep": object()}]}}, TypeError),
    "a name that is no text": ({"h": {(1, 2): 3}}, TypeError),
}


@pytest.mark.needs("written headers")
@pytest.mark.parametrize(("headers", "error"), UNWRITABLE_HEADERS.values(), ids=UNWRITABLE_HEADERS)
def test_headers_that_cannot_be_written_are_refused(channel, queue, headers, error):
    producer = Producer(channel)
    with pytest.raises(exceptions.EncodeError) as caught:
        producer.publish("lost", routing_key=queue.name, headers=headers)
    assert isinstance(caught.value, error)  # which kombu's users catch
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), error)
    producer.publish("kept", routing_key=queue.name)
    assert [message.payload for message in take(queue, 1)] == ["kept"]


@pytest.mark.needs("written headers")
def test_a_property_that_cannot_be_written_is_refused(channel, queue):
    producer = Producer(channel)
    with pytest.raises(exceptions.EncodeError):
        producer.publish("lost", routing_key=queue.name, correlation_id=object())
    assert queue.get() is None


@pytest.mark.needs("written headers")
def test_in_a_batch_only_the_message_that_cannot_be_written_is_refused(channel, queue):
    producer = Producer(channel)
    with pytest.raises(exceptions.BatchPublishError) as caught, producer.batch():
        for number in range(5):
            producer.publish(number, routing_key=queue.name, headers={"h": object() if number == 2 else number})
    assert [(index, type(error).__name__) for index, error in caught.value.refused] == [(2, "EncodeError")]
    assert isinstance(caught.value.refused[0][1], TypeError)
    assert [message.payload for message in take(queue, 4)] == [0, 1, 3, 4]


@pytest.mark.needs("written headers")
def test_publish_many_with_headers_that_cannot_be_written(channel, queue):
    with pytest.raises(exceptions.BatchPublishError) as caught:
        Producer(channel).publish_many([1, 2], routing_key=queue.name, headers={"h": object()})
    assert [index for index, _ in caught.value.refused] == [0, 1]
    assert all(isinstance(error, exceptions.EncodeError) for _, error in caught.value.refused)
    assert queue.get() is None


@pytest.mark.parametrize(
    ("encoding", "error"), [("ascii", UnicodeEncodeError), ("no-such", LookupError), ("base64", LookupError)]
)
def test_text_that_its_content_encoding_lacks_is_refused(channel, queue, encoding, error):
    publishing = {"content_type": "text/plain", "content_encoding": encoding}
    for attempt in (
        lambda: Producer(channel).publish("é", routing_key=queue.name, **publishing),
        lambda: channel.prepare_message("é", **publishing),
    ):
        with pytest.raises(exceptions.EncodeError) as caught:
            attempt()
        assert isinstance(caught.value, error)
        assert isinstance(pickle.loads(pickle.dumps(caught.value)), error)
    with pytest.raises(exceptions.BatchPublishError):
        Producer(channel).publish_many(["é"], routing_key=queue.name, **publishing)
    assert queue.get() is None
