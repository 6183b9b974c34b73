"""Acks that wait for those of the deliveries that follow."""

import pytest

from kombulite._core import AckWatermark, FrameDecoder, FrameEncoder, HeldAcks
from tests.unit.test_frames import body, deliver, header, message

ENCODER = FrameEncoder()
OFFSET = 100  # of delivery tags


class Stream:
    """What is said of deliveries, and what is asked for."""

    def __init__(self):
        self.followed = True
        self.asked = []
        self.held = HeldAcks(self.is_followed, lambda: self.asked.append("hold"), lambda: self.asked.append("flush"))

    def is_followed(self, channel, tag):
        return self.followed


@pytest.fixture
def stream():
    return Stream()


@pytest.fixture
def failed():
    return set()


@pytest.fixture
def channel(stream, failed):
    return AckWatermark(stream.held, 7, OFFSET, failed)


def acknowledge(channel, *tags):
    return [channel.acknowledge(OFFSET + tag) for tag in tags]


def test_what_comes_in_order_is_one_frame(stream, channel):
    assert not stream.held
    assert acknowledge(channel, 1, 2, 3) == [True, True, True]
    assert stream.held
    assert stream.asked == ["hold"]
    assert stream.held.take() == ENCODER.ack(7, 3, True)
    assert not stream.held
    assert stream.held.take() == b""
    assert acknowledge(channel, 4) == [True]
    assert stream.held.take() == ENCODER.ack(7, 4, False)
    assert stream.asked == ["hold", "hold"]


def test_the_last_one_takes_the_others_along(stream, channel):
    acknowledge(channel, 1, 2)
    stream.followed = False
    assert acknowledge(channel, 3) == [True]
    assert stream.asked == ["hold", "flush"]
    assert stream.held.take() == ENCODER.ack(7, 3, True)
    assert acknowledge(channel, 4) == [False]  # alone, it is no frame for several


def test_channels_have_frames_of_their_own(stream, channel):
    other = AckWatermark(stream.held, 8, 0, set())
    acknowledge(channel, 1, 2)
    assert other.acknowledge(1)
    assert stream.asked == ["hold"]
    assert stream.held.take() == ENCODER.ack(7, 2, True) + ENCODER.ack(8, 1, False)


def test_what_is_out_of_order_is_not_held(channel):
    assert acknowledge(channel, 2, 1, 1, 3) == [False, True, False, False]
    channel.add(2)
    assert acknowledge(channel, 3) == [True]


def test_what_is_settled_out_of_order_stops_it_until_it_is_complete(channel):
    channel.add(2)
    assert acknowledge(channel, 1) == [False]
    channel.add(1)
    assert acknowledge(channel, 3) == [True]


def test_failed_deliveries_stop_it(channel, failed):
    failed.add(1)
    assert acknowledge(channel, 1) == [False]
    failed.clear()
    assert acknowledge(channel, 1) == [True]


def test_nothing_is_held_at_the_end(stream, channel):
    acknowledge(channel, 1)
    channel.close()
    assert acknowledge(channel, 2) == [False]
    assert stream.held.take() == ENCODER.ack(7, 1, False)  # it was acknowledged before
    other = AckWatermark(stream.held, 8, 0, set())
    other.acknowledge(1)
    stream.held.close()
    assert not stream.held
    assert other.acknowledge(2) is False


@pytest.mark.parametrize("tag", [None, "1", 1.0, True, -1, 0, 2**64, 2**70, OFFSET, object()])
def test_other_tags_are_left_to_the_transport(channel, tag):
    assert channel.acknowledge(tag) is False


def test_a_subclass_of_int_is_left_to_the_transport(channel):
    class Tag(int):
        def __eq__(self, other):
            raise AssertionError

        __hash__ = None

    assert channel.acknowledge(Tag(OFFSET + 1)) is False


@pytest.mark.parametrize("arguments", [(object(),), (None, 0, 0, []), (None, 70_000)])
def test_what_a_watermark_is_not_made_of(arguments):
    with pytest.raises((TypeError, OverflowError)):
        AckWatermark(*arguments)


def test_a_watermark_without_a_stream_holds_nothing():
    assert AckWatermark().acknowledge(1) is False


def test_an_error_of_the_stream_is_raised(failed):
    def fail():
        raise ConnectionResetError

    held = HeldAcks(lambda channel, tag: tag < 2, lambda: None, fail)
    channel = AckWatermark(held, 1, 0, failed)
    assert channel.acknowledge(1)
    with pytest.raises(ConnectionResetError):
        channel.acknowledge(2)
    assert held.take() == ENCODER.ack(1, 1, False)  # the second was not made: it may be made again


def test_an_ack_that_nothing_can_wait_for_is_not_made(failed):
    def fail():
        raise RuntimeError("can't start new thread")

    held = HeldAcks(lambda channel, tag: True, fail, lambda: None)
    channel = AckWatermark(held, 1, 0, failed)
    with pytest.raises(RuntimeError):
        channel.acknowledge(1)
    assert not held
    assert held.take() == b""
    assert channel.unsettled(1) == 1


def test_what_was_settled_with_others_is_not_counted_once_more(channel):
    channel.add(5, True)  # while another thread, which has sent the ack of 3, has not noted it yet
    channel.add(3)
    channel.add(7)
    assert acknowledge(channel, 8) == [False]  # 6 is not settled
    assert channel.unsettled(7) == 1


def test_a_delivery_that_was_not_given_out_is_left_to_the_transport(stream, channel):
    assert acknowledge(channel, 1) == [True]
    stream.followed = None
    assert acknowledge(channel, 2) == [False]
    assert stream.held.take() == ENCODER.ack(7, 1, False)


# --- what follows


FIRST, NEXT = message(b"first", tag=1), message(b"next", tag=2)


def fed(data):
    decoder = FrameDecoder()
    decoder.open(1)
    decoder.receive_data(data)
    return decoder


def test_a_delivery_is_followed_by_one_that_is_here_in_whole():
    for size in range(len(FIRST) + len(NEXT) + 1):
        decoder = fed((FIRST + NEXT)[:size])
        assert not decoder.is_followed(1, 1)  # not given out yet
        if decoder.next_event() is not None:
            assert decoder.is_followed(1, 1) == (size == len(FIRST) + len(NEXT))


@pytest.mark.parametrize(
    ("data", "follows"),
    [
        (deliver(tag=2) + header(0), True),
        (deliver(tag=2) + header(4) + body(b"ab") + body(b"cd"), True),
        (deliver(tag=2) + header(4) + body(b"ab") + body(b"") + body(b"c"), False),
        (deliver(tag=2) + header(2) + body(b"abc"), False),
        (deliver(tag=2) + deliver(tag=3), False),
        (deliver(tag=2) + body(b"ab"), False),
        (header(0), False),
        (b"\x08\x00\x00\x00\x00\x00\x00\xce" + NEXT, False),
        (b"\xff" * 64, False),
        (b"\x01\x00\x01\xff\xff\xff\xff" + b"\xce" * 64, False),
        (b"\x01\x00\x01\x00\x00\x00\x00\xce" + NEXT, False),
    ],
)
def test_what_follows_a_delivery(data, follows):
    decoder = fed(FIRST + data)
    decoder.next_event()
    assert decoder.is_followed(1, 1) is follows
    assert not decoder.is_followed(1, 2)
    assert not decoder.is_followed(2, 1)
