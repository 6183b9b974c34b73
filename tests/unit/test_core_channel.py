"""The compiled way of a message through a channel, without a transport."""

from collections import namedtuple

import pytest

from kombulite._core import (
    GATHERED,
    BaseChannel,
    BaseMessage,
    BaseSession,
    BaseSubscription,
    CounterBlock,
    Delivery,
    Properties,
    UnackedDeliveries,
)

Notice = namedtuple("Notice", ["channel"])


class Message(BaseMessage):
    def refuse(self, state):
        raise RuntimeError(state)


class Channel(BaseChannel):
    """Keeps what comes to the methods that the facade has."""

    def __init__(self, **verbs):
        super().__init__(1, CounterBlock(), "ack")
        self.seen = []
        self.asked = []
        self.failing = None
        self.use(self.ask, self.ask, verbs.get("acknowledge"), verbs.get("confirmed", False))

    def ask(self, *arguments):
        self.asked.append(arguments)
        if self.failing is not None:
            raise self.failing

    def handle(self, event):
        self.seen.append(event)
        return False

    def publish_raised(self, error, delivery):
        self.seen.append(error)

    def tell_returned(self):
        self.seen.append("returned")

    def ack_raised(self, error):
        self.seen.append(error)

    def consume(self, tag, run, no_ack=False):
        self._subscriptions[tag] = BaseSubscription(Message, self, self._tally, no_ack, run)


def delivery(tag="tag", channel=1):
    made = Delivery("", "", Properties(), b"body")
    made.consumer_tag, made.channel, made.delivery_tag = tag, channel, 7
    return made


def numbers(channel):
    """Published, confirmed, consumed, acked."""
    values = channel._tally.values()
    return values[0], values[1], values[3], values[5]


# --- in


def test_a_message_comes_to_its_consumer():
    channel, got = Channel(), []
    channel.consume("other", lambda message: pytest.fail("not for this one"))
    channel.consume("tag", got.append, no_ack=True)
    assert channel.dispatch(delivery()) is False
    (message,) = got
    assert isinstance(message, Message)
    assert (message.body, message.delivery_tag, message.no_ack, message.channel) == (b"body", 7, True, channel)
    assert numbers(channel) == (0, 0, 1, 0)


def test_what_a_callback_keeps_is_told():
    channel = Channel()
    channel.consume("tag", lambda message: GATHERED)
    assert channel.dispatch(delivery()) is True


def test_what_is_for_no_consumer_is_handled():
    channel = Channel()
    stray, notice = delivery("gone"), Notice(1)
    assert channel.dispatch(stray) is False
    assert channel.dispatch(notice) is False
    assert channel.seen == [stray, notice]
    assert numbers(channel) == (0, 0, 0, 0)


def test_errors_of_a_callback_pass():
    channel = Channel()

    def callback(message):
        raise LookupError("mine")

    channel.consume("tag", callback)
    with pytest.raises(LookupError, match="mine"):
        channel.dispatch(delivery())
    assert numbers(channel) == (0, 0, 1, 0)


class Inbox(BaseSession):
    def __init__(self):
        super().__init__()
        self.missed = []

    def on_unknown_channel(self, event):
        self.missed.append(event)


def test_events_go_to_their_channels():
    inbox, channel, got = Inbox(), Channel(), []
    inbox.channels[1] = channel
    channel.consume("tag", lambda message: got.append(message) or GATHERED)
    lost = delivery(channel=2)
    assert inbox.dispatch([lost, delivery()]) is True  # of the last
    assert inbox.dispatch([delivery(), lost]) is False
    assert inbox.dispatch([]) is False
    assert len(got) == 2
    assert inbox.missed == [lost, lost]


def test_one_event_at_hand_at_a_time():
    inbox, channel, got = Inbox(), Channel(), []
    inbox.channels[1] = channel
    channel.consume("tag", got.append)
    assert inbox.dispatch_ready() is False  # nobody can tell
    events = [delivery(), delivery()]
    inbox.poll_ready = lambda: events.pop() if events else None
    assert inbox.dispatch_ready() is True
    assert len(got) == 1
    assert inbox.dispatch_ready() is True
    assert inbox.dispatch_ready() is False
    assert len(got) == 2


def test_what_is_at_hand_and_kept_is_followed_by_the_next():
    inbox, channel, got = Inbox(), Channel(), []
    inbox.channels[1] = channel

    def callback(message):
        got.append(message)
        return GATHERED if len(got) % 3 else None

    channel.consume("tag", callback)
    events = [delivery() for _ in range(5)]
    inbox.poll_ready = lambda: events.pop() if events else None
    assert inbox.dispatch_ready() is True
    assert len(got) == 3
    assert inbox.dispatch_ready() is False
    assert len(got) == 5


def test_what_is_no_channel_is_refused():
    inbox = Inbox()
    inbox.channels[1] = object()
    with pytest.raises(TypeError):
        inbox.dispatch([delivery()])


# --- out, and settled


@pytest.mark.parametrize("confirmed", [False, True])
def test_publishing_counts(confirmed):
    channel = Channel(confirmed=confirmed)
    sent = delivery()
    channel.publish(sent, timeout=3)
    assert channel.asked == [(1, sent, False, 3, None)]
    assert channel.seen == []
    channel.publish(sent, True, None, 4)
    assert channel.asked[1:] == [(1, sent, True, None, 4)]
    assert channel.seen == ["returned"]
    assert numbers(channel) == (2, 2 * confirmed, 0, 0)


def test_what_was_not_published_is_not_counted():
    channel = Channel()
    channel.failing = KeyError("no exchange")
    channel.publish(delivery())
    assert channel.seen == [channel.failing]
    assert numbers(channel) == (0, 0, 0, 0)


def test_acks_go_the_quick_way_where_there_is_one():
    ledger = UnackedDeliveries()
    ledger.hand_over(delivery(), None, 1, "tag", False)
    channel = Channel(acknowledge=ledger)
    channel.basic_ack(1)
    assert channel.asked == []
    channel.basic_ack(2)  # not outstanding
    channel.basic_ack(5, multiple=True)  # never
    assert channel.asked == [(1, 2, "ack", False), (1, 5, "ack", True)]
    assert numbers(channel) == (0, 0, 0, 3)


def test_errors_of_an_ack_are_noted_and_raised():
    channel = Channel()
    channel.failing = LookupError("unknown tag")
    with pytest.raises(LookupError, match="unknown tag"):
        channel.basic_ack(3)
    assert channel.seen == [channel.failing]
    assert numbers(channel) == (0, 0, 0, 0)
