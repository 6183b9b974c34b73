"""Queues, ledgers and the rota of consumers."""

import sys
import tracemalloc
import weakref
from collections import Counter, deque
from threading import Barrier, Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kombulite._core import (
    AckWatermark,
    ConsumerRing,
    ConsumerSlot,
    Delivery,
    FastPath,
    MessageQueue,
    Properties,
    UnackedDeliveries,
)


def message(body=b"body", priority=None):
    return Delivery("e", "k", Properties(priority=priority), body)


def bodies(queue):
    found = []
    while (delivery := queue.pop()) is not None:
        found.append(delivery.body)
    return found


def filled(count, max_priority=0):
    queue = MessageQueue(max_priority)
    for number in range(count):
        queue.add(message(b"%d" % number))
    return queue


def in_threads(*runs):
    barrier, failures = Barrier(len(runs)), []

    def guarded(run):
        barrier.wait()
        try:
            run()
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=guarded, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- queue


def test_first_in_first_out():
    assert bodies(filled(5)) == [b"0", b"1", b"2", b"3", b"4"]


def test_empty_queue_gives_none():
    queue = MessageQueue()
    assert (queue.pop(), len(queue), queue.size, queue.next_expiry()) == (None, 0, 0, None)


@pytest.mark.parametrize("expires_at", [0, 5])
@pytest.mark.parametrize("body", [b"bytes", "text", bytearray(b"other bytes")])
def test_what_comes_out_is_the_message_and_not_the_publishers_object(body, expires_at):
    queue, properties = MessageQueue(), Properties(headers={"a": 1})
    sent = Delivery("e", "k", properties, body)
    sent.delivery_tag, sent.position, sent.redelivered, sent.delivery_count = 7, 9, True, 3
    queue.add(sent, expires_at)
    queue.add(sent, expires_at)
    for position in (1, 2):
        found = queue.pop()
        assert found is not sent
        assert (found.exchange, found.routing_key, found.body) == ("e", "k", body)
        assert found.properties is properties
        assert (found.position, found.expires_at) == (position, expires_at)
        assert (found.delivery_tag, found.redelivered, found.delivery_count) == (None, False, 0)
    assert (sent.delivery_tag, sent.position, sent.redelivered, sent.delivery_count) == (7, 9, True, 3)


def test_neighbours_that_differ_in_one_thing_keep_it():
    shared, queue = Properties(), MessageQueue()
    sent = [
        Delivery(exchange, routing_key, properties, b"%d" % number)
        for number, (exchange, routing_key, properties) in enumerate(
            [("e", "k", shared), ("e", "k", shared), ("f", "k", shared), ("f", "l", shared), ("f", "l", Properties())]
        )
    ]
    for delivery in sent:
        queue.add(delivery)
    for delivery in sent:
        found = queue.pop()
        assert (found.exchange, found.routing_key, found.body) == (
            delivery.exchange,
            delivery.routing_key,
            delivery.body,
        )
        assert found.properties is delivery.properties


def test_waiting_message_takes_two_words_and_its_body():
    properties, bodies_ = Properties(), [b"%06d" % number for number in range(100_000)]
    queue = MessageQueue()
    tracemalloc.start()
    try:
        for body in bodies_:
            queue.add(Delivery("e", "k", properties, body))
        taken, _ = tracemalloc.get_traced_memory()
        queue.clear()
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 32 * len(bodies_) + 10_000
    assert left < 20_000


def test_messages_go_with_their_queue():
    class Body(bytearray):
        pass

    gone = [Body(b"a"), Body(b"b")]
    watched = [weakref.ref(body) for body in gone]
    queue, properties = MessageQueue(), Properties(headers={})
    queue.add(Delivery("e", "k", properties, gone.pop()))
    queue.add(Delivery("e", "k", properties, b"plain"))
    queue.add(Delivery("e", "k", properties, gone.pop()))
    held = sys.getrefcount(properties)
    del queue
    assert [ref() for ref in watched] == [None, None]
    assert sys.getrefcount(properties) < held


def test_queue_that_is_used_while_it_is_cleared():
    class Body(bytearray):
        def __del__(self):
            queue.add(message(b"while it is cleared"))

    queue = MessageQueue()
    for _ in range(3):
        queue.add(message(Body(b"x")))
    assert queue.clear() == 3
    assert bodies(queue) == [b"while it is cleared"] * 3
    assert queue.size == 0


def test_highest_priority_first():
    queue = MessageQueue(5)
    for body, priority in ((b"a", 0), (b"b", 5), (b"c", 3), (b"d", 5), (b"e", None)):
        queue.add(message(body, priority))
    assert bodies(queue) == [b"b", b"d", b"c", b"a", b"e"]


@pytest.mark.parametrize(
    ("priority", "level"),
    [(None, 0), (-1, 0), (0, 0), (1, 1), (3, 3), (4, 3), (2**80, 3), (-(2**80), 0), ("2", 0), (2.5, 0), (True, 1)],
)
def test_priority_is_clamped(priority, level):
    queue = MessageQueue(3)
    for other in range(4):
        queue.add(message(b"before %d" % other, other))
    queue.add(message(b"it", priority))
    for other in range(4):
        queue.add(message(b"after %d" % other, other))
    found = bodies(queue)
    place = found.index(b"it")
    assert (found[place - 1], found[place + 1]) == (b"before %d" % level, b"after %d" % level)


def test_priorities_are_ignored_without_max_priority():
    queue = MessageQueue()
    queue.add(message(b"a", 0))
    queue.add(message(b"b", 9))
    assert bodies(queue) == [b"a", b"b"]


def test_size_is_that_of_the_bodies():
    for max_priority in (0, 2):
        queue = MessageQueue(max_priority)
        queue.add(message(b"12345", 1))
        queue.add(message(b"123"))
        assert (queue.size, len(queue)) == (8, 2)
        taken = queue.pop()
        assert (queue.size, len(queue)) == (3, 1)
        queue.put_back(taken)
        assert (queue.size, len(queue)) == (8, 2)


def test_clear():
    queue = filled(3, max_priority=2)
    queue.add(message(b"urgent", 2))
    assert queue.clear() == 4
    assert (queue.pop(), len(queue), queue.size) == (None, 0, 0)
    assert queue.clear() == 0


def test_what_is_put_back_is_a_copy_and_redelivered():
    queue = filled(1)
    first = queue.pop()
    first.delivery_tag, first.consumer_tag = 7, "c"
    queue.put_back(first)
    again = queue.pop()
    assert again is not first
    assert (again.redelivered, again.body, again.properties) == (True, b"0", first.properties)
    assert (again.delivery_tag, again.consumer_tag) == (None, None)
    assert first.redelivered is False


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_what_is_put_back_finds_its_place(order):
    queue = filled(5)
    taken = [queue.pop() for _ in range(3)]
    for number in order:
        queue.put_back(taken[number])
    assert bodies(queue) == [b"0", b"1", b"2", b"3", b"4"]


actions = st.one_of(
    st.tuples(st.just("add"), st.none() | st.integers(-1, 5)),
    st.tuples(st.just("pop"), st.none()),
    st.tuples(st.just("put back"), st.integers(0, 50)),
    st.tuples(st.just("clear"), st.none()),
)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 3), st.lists(actions, max_size=40))
def test_queue_is_a_list_sorted_by_priority_and_age(max_priority, actions):
    queue, waiting, taken = MessageQueue(max_priority), [], []
    for age, (action, argument) in enumerate(actions):
        if action == "add":
            body = b"x" * (age % 7)
            queue.add(message(body, argument))
            waiting.append((-max(0, min(argument or 0, max_priority)), age, body, False))
            waiting.sort()
        elif action == "pop":
            delivery = queue.pop()
            expected = waiting.pop(0) if waiting else None
            assert (delivery is None) == (expected is None)
            if delivery is not None:
                assert (delivery.body, delivery.redelivered) == expected[2:]
                taken.append((delivery, expected))
        elif action == "put back" and taken:
            delivery, expected = taken.pop(argument % len(taken))
            queue.put_back(delivery)
            waiting.append((*expected[:3], True))
            waiting.sort()
        elif action == "clear":
            assert queue.clear() == len(waiting)
            waiting = []
        assert len(queue) == len(waiting)
        assert queue.size == sum(len(entry[2]) for entry in waiting)
    assert bodies(queue) == [entry[2] for entry in waiting]


# --- expiry


def test_messages_expire_at_the_head_only():
    queue = MessageQueue()
    for body, expires_at in ((b"a", 10), (b"b", 5), (b"c", 0), (b"d", 1)):
        queue.add(message(body), expires_at)
    assert queue.pop_expired(4.9) == []
    assert queue.pop_expired(9.9) == []
    assert [delivery.body for delivery in queue.pop_expired(10)] == [b"a", b"b"]
    assert queue.pop_expired(1e9) == []
    assert (len(queue), queue.size) == (2, 2)
    assert bodies(queue) == [b"c", b"d"]


def test_each_priority_has_its_head():
    queue = MessageQueue(2)
    for body, priority, expires_at in ((b"a", 0, 1), (b"b", 2, 0), (b"c", 2, 1), (b"d", 1, 1)):
        queue.add(message(body, priority), expires_at)
    assert {delivery.body for delivery in queue.pop_expired(1)} == {b"a", b"d"}
    assert bodies(queue) == [b"b", b"c"]


def test_next_expiry_is_the_soonest_of_the_heads():
    queue = MessageQueue(1)
    queue.add(message(priority=0), 7)
    queue.add(message(priority=1), 9)
    queue.add(message(priority=1), 3)
    assert queue.next_expiry() == 7
    queue.pop()
    assert queue.next_expiry() == 3
    queue.clear()
    queue.add(message())
    assert queue.next_expiry() is None


def test_may_expire():
    queue = MessageQueue()
    queue.add(message())
    assert queue.may_expire is False
    queue.add(message(), 1)
    assert queue.may_expire is True


def test_what_is_put_back_expires_as_before():
    queue = MessageQueue()
    queue.add(message(), 5)
    queue.put_back(queue.pop())
    assert queue.next_expiry() == 5
    assert [delivery.redelivered for delivery in queue.pop_expired(5)] == [True]


# --- ledger


SOURCES = [MessageQueue() for _ in range(10)]


def handed(count):
    ledger = UnackedDeliveries()
    for number in range(count):
        ledger.hand_over(message(b"%d" % number), SOURCES[number], 3, "consumer", False)
    return ledger


def told(settled):
    return [(SOURCES.index(delivery.source), delivery.body) for delivery in settled]


def test_hand_over_fills_in_the_delivery():
    ledger = UnackedDeliveries()
    for tag, consumer_tag in ((1, "consumer"), (2, None)):
        delivery = message()
        ledger.hand_over(delivery, None, 3, consumer_tag, False)
        assert (delivery.delivery_tag, delivery.channel, delivery.consumer_tag) == (tag, 3, consumer_tag)
    assert len(ledger) == 2


def test_no_ack_is_numbered_but_not_noted():
    ledger, first, second = UnackedDeliveries(), message(), message()
    ledger.hand_over(first, None, 1, "c", True)
    ledger.hand_over(second, None, 1, "c", False)
    assert (first.delivery_tag, second.delivery_tag, len(ledger)) == (1, 2, 1)
    with pytest.raises(KeyError):
        ledger.settle(1)


def test_settle():
    ledger = handed(3)
    assert told([ledger.settle(2)]) == [(1, b"1")]
    assert len(ledger) == 2


@pytest.mark.parametrize("tag", [0, 2, 4, -1, 2**70, None, "1"])
def test_settling_what_is_not_outstanding(tag):
    ledger = handed(3)
    ledger.settle(2)
    with pytest.raises(KeyError):
        ledger.settle(tag)
    assert len(ledger) == 2


def test_acknowledge_is_for_what_has_no_other_consequence():
    ledger = handed(3)
    assert ledger.acknowledge(2)
    assert len(ledger) == 2
    for tag in (0, 2, 4, -1, 2**70, None, "1"):
        assert not ledger.acknowledge(tag)
    ledger.stalled.append("a consumer that waits for credit")
    assert not ledger.acknowledge(1)
    assert len(ledger) == 2
    with pytest.raises(TypeError):
        handed(1).acknowledge([])


def test_settle_up_to():
    ledger = handed(5)
    ledger.settle(2)
    assert told(ledger.settle_up_to(4)) == [(0, b"0"), (2, b"2"), (3, b"3")]
    assert told(ledger.settle_up_to(4)) == []
    assert len(ledger) == 1


def test_settle_up_to_0_is_all():
    ledger = handed(3)
    assert told(ledger.settle_up_to(0)) == [(0, b"0"), (1, b"1"), (2, b"2")]
    assert (len(ledger), ledger.settle_up_to(0)) == (0, [])


def test_credit():
    ledger = UnackedDeliveries()
    assert ledger.has_credit()
    ledger.prefetch_count = 2
    for credit in (True, False):
        ledger.hand_over(message(), None, 1, "c", False)
        assert ledger.has_credit() is credit
    ledger.hand_over(message(), None, 1, "c", True)
    ledger.settle(1)
    assert ledger.has_credit() is True
    ledger.active = False
    assert ledger.has_credit() is False
    ledger.active, ledger.prefetch_count = True, 1
    assert ledger.has_credit() is False
    ledger.prefetch_count = 0
    assert ledger.has_credit() is True


def test_close_strikes_all():
    ledger = handed(3)
    ledger.settle(2)
    assert told(ledger.close()) == [(0, b"0"), (2, b"2")]
    assert (len(ledger), ledger.close()) == (0, [])


# --- rota


class Consumer(ConsumerSlot):
    pass


def consumer(queue, tag="c", ledger=None, no_ack=False, channel=1):
    return Consumer(queue, UnackedDeliveries() if ledger is None else ledger, channel, tag, no_ack)


def rota_of(*claimants):
    rota = ConsumerRing()
    for claimant in claimants:
        rota.add(claimant)
    return rota


def claim(rota, count, now=0):
    return [(delivery.consumer_tag, delivery.body) for delivery in (rota.next(now) for _ in range(count)) if delivery]


def test_empty_rota():
    rota = ConsumerRing()
    assert (rota.next(0), list(rota), rota.take_left()) == (None, [], ([], [], []))


def test_claiming_hands_over():
    claimant = consumer(filled(1), "c", channel=5)
    delivery = rota_of(claimant).next(0)
    assert (delivery.body, delivery.channel, delivery.consumer_tag, delivery.delivery_tag) == (b"0", 5, "c", 1)
    assert delivery.source is claimant.messages
    assert claimant.ledger.settle(1) is delivery


def test_claimant_tells_what_it_was_made_of():
    queue, ledger = MessageQueue(), UnackedDeliveries()
    claimant = Consumer(queue, ledger, 5, "tag", True)
    assert (claimant.messages, claimant.ledger) == (queue, ledger)
    assert (claimant.channel_number, claimant.tag, claimant.no_ack, claimant.listed) == (5, "tag", True, False)


def test_consumers_take_turns():
    rota = rota_of(*(consumer(filled(3), tag) for tag in "abc"))
    assert claim(rota, 9) == [(tag, b"%d" % number) for number in range(3) for tag in "abc"]


def test_consumers_of_one_queue_share_it():
    queue = filled(6)
    rota = rota_of(consumer(queue, "a"), consumer(queue, "b"))
    assert claim(rota, 6) == [(tag, b"%d" % number) for number, tag in enumerate("ababab")]


def test_turns_go_on_where_one_runs_dry():
    rota = rota_of(consumer(filled(3), "a"), consumer(filled(1), "b"), consumer(filled(3), "c"))
    assert [tag for tag, _ in claim(rota, 7)] == list("abcacac")


def test_a_late_comer_gets_its_turn():
    rota = rota_of(consumer(filled(9), "a"), consumer(filled(9), "b"))
    claim(rota, 3)
    rota.add(consumer(filled(9), "c"))
    assert sorted(tag for tag, _ in claim(rota, 3)) == ["a", "b", "c"]


def test_one_that_leaves_costs_nobody_a_turn():
    claimants = [consumer(filled(9), tag) for tag in "abc"]
    for taken in range(4):
        rota = rota_of(*claimants)
        order = [tag for tag, _ in claim(rota, taken)]
        rota.remove(claimants[0])
        following = claim(rota, 2)
        expected = ["c", "b"] if order[-1:] == ["b"] else ["b", "c"]
        assert [tag for tag, _ in following] == expected, f"after {order}"
        for claimant in claimants:
            rota.remove(claimant)


def test_listed_once():
    claimant = consumer(filled(2))
    rota = rota_of(claimant, claimant)
    assert (list(rota), claimant.listed) == ([claimant], True)
    rota.remove(claimant)
    assert (list(rota), claimant.listed, rota.next(0)) == ([], False, None)
    rota.remove(claimant)
    assert len(claimant.messages) == 2


def test_emptied_are_told():
    claimant = consumer(filled(1))
    rota = rota_of(claimant)
    assert rota.next(0) is not None
    assert rota.take_left() == ([], [], [])
    assert rota.next(0) is None
    assert (claimant.listed, list(rota)) == (False, [])
    assert rota.take_left() == ([claimant], [], [])
    assert rota.take_left() == ([], [], [])


def test_stalled_are_told():
    claimant = consumer(filled(3))
    claimant.ledger.prefetch_count = 2
    rota = rota_of(claimant)
    assert len(claim(rota, 5)) == 2
    assert rota.take_left() == ([], [claimant], [])
    assert (claimant.may_claim(), claimant.listed, len(claimant.messages)) == (False, False, 1)
    claimant.ledger.settle(1)
    assert claimant.may_claim() is True
    rota.add(claimant)
    assert claim(rota, 5) == [("c", b"2")]


def test_prefetch_counts_for_the_whole_channel():
    ledger = UnackedDeliveries()
    ledger.prefetch_count = 3
    claimants = [consumer(filled(5), tag, ledger) for tag in "ab"]
    rota = rota_of(*claimants)
    assert [tag for tag, _ in claim(rota, 10)] == ["a", "b", "a"]
    assert set(rota.take_left()[1]) == set(claimants)


def test_prefetch_is_nothing_to_no_ack():
    claimant = consumer(filled(5), no_ack=True)
    claimant.ledger.prefetch_count = 1
    assert len(claim(rota_of(claimant), 10)) == 5
    assert (len(claimant.ledger), claimant.may_claim()) == (0, True)


@pytest.mark.parametrize("no_ack", [False, True])
def test_inactive_channel_gets_nothing(no_ack):
    claimant = consumer(filled(1), no_ack=no_ack)
    claimant.ledger.active = False
    rota = rota_of(claimant)
    assert claimant.may_claim() is False
    assert rota.next(0) is None
    assert rota.take_left() == ([], [claimant], [])


@pytest.mark.parametrize("no_ack", [False, True])
def test_closed_channel_gets_nothing(no_ack):
    claimant = consumer(filled(1), no_ack=no_ack)
    rota = rota_of(claimant)
    claimant.ledger.close()
    assert rota.next(0) is None
    assert (len(claimant.messages), list(rota)) == (1, [])


def test_expired_are_told():
    claimant = consumer(MessageQueue())
    for body, expires_at in ((b"a", 1), (b"b", 2), (b"c", 9)):
        claimant.messages.add(message(body), expires_at)
    rota = rota_of(claimant)
    assert rota.next(5).body == b"c"
    emptied, stalled, expired = rota.take_left()
    assert (emptied, stalled) == ([], [])
    assert [(source, late.body) for source, late in expired] == [(claimant.messages, b"a"), (claimant.messages, b"b")]


def test_nothing_expires_at_time_0():
    claimant = consumer(MessageQueue())
    claimant.messages.add(message(), 1)
    assert rota_of(claimant).next(0) is not None


def test_all_expired_is_empty():
    claimant = consumer(MessageQueue())
    claimant.messages.add(message(), 1)
    rota = rota_of(claimant)
    assert rota.next(2) is None
    emptied, _, expired = rota.take_left()
    assert (emptied, len(expired)) == ([claimant], 1)


def test_who_is_removed_is_told_no_more():
    empty, stalled = consumer(MessageQueue(), "e"), consumer(filled(1), "s")
    stalled.ledger.prefetch_count = 1
    stalled.ledger.hand_over(message(), None, 1, "s", False)
    rota = rota_of(empty, stalled)
    assert rota.next(0) is None
    rota.remove(empty)
    rota.remove(stalled)
    assert rota.take_left() == ([], [], [])


@pytest.mark.parametrize("call", [lambda: MessageQueue().add(None), lambda: MessageQueue().put_back(None)])
def test_only_deliveries_can_be_queued(call):
    with pytest.raises(TypeError):
        call()


# --- threads


@pytest.mark.parametrize("max_priority", [0, 3])
def test_threads_lose_and_double_nothing(max_priority):
    queue, found, each = MessageQueue(max_priority), [[] for _ in range(4)], 5000

    def produce(number):
        for i in range(each):
            queue.add(message(b"%d-%d" % (number, i), i % 5))

    def consume(into):
        while len(into) < each:
            delivery = queue.pop()
            if delivery is None:
                continue
            if len(into) % 10 == 3 and not delivery.redelivered:
                queue.put_back(delivery)
            else:
                into.append(delivery.body)

    in_threads(
        *(lambda number=number: produce(number) for number in range(4)),
        *(lambda into=into: consume(into) for into in found),
    )
    assert Counter(body for into in found for body in into) == Counter(
        b"%d-%d" % (number, i) for number in range(4) for i in range(each)
    )
    assert (len(queue), queue.size) == (0, 0)


def test_order_of_one_producer_survives_threads():
    queue, each = MessageQueue(), 5000

    def produce(number):
        for i in range(each):
            queue.add(message(b"%d %d" % (number, i)))

    in_threads(*(lambda number=number: produce(number) for number in range(4)))
    seen = {}
    for body in bodies(queue):
        number, i = map(int, body.split())
        assert seen.get(number, -1) == i - 1
        seen[number] = i
    assert seen == dict.fromkeys(range(4), each - 1)


def test_threads_hand_over_and_settle():
    ledger, each = UnackedDeliveries(), 5000
    tags = deque()

    def hand_over():
        for _ in range(each):
            delivery = message()
            ledger.hand_over(delivery, None, 1, "c", False)
            tags.append(delivery.delivery_tag)

    def settle():
        settled = 0
        while settled < each:
            try:
                tag = tags.popleft()
            except IndexError:
                continue
            ledger.settle(tag)
            settled += 1

    in_threads(*[hand_over] * 4, *[settle] * 4)
    assert len(ledger) == 0


def test_threads_share_a_rota():
    queues, each, found = [MessageQueue() for _ in range(3)], 3000, [[] for _ in range(3)]
    claimants = [consumer(queue, str(number), no_ack=True) for number, queue in enumerate(queues)]
    rota, done = rota_of(*claimants), []

    def produce(number):
        for i in range(each):
            queues[number].add(message(b"%d-%d" % (number, i)))
            rota.add(claimants[number])
        done.append(number)

    def consume(into):
        while True:
            finished = len(done) == 3
            delivery = rota.next(0)
            if delivery is not None:
                into.append((delivery.consumer_tag, delivery.body))
            elif finished:
                return

    in_threads(
        *(lambda number=number: produce(number) for number in range(3)),
        *(lambda into=into: consume(into) for into in found),
    )
    assert Counter(entry for into in found for entry in into) == Counter(
        (str(number), b"%d-%d" % (number, i)) for number in range(3) for i in range(each)
    )


def test_a_ledger_strikes_all_or_none():
    ledger = UnackedDeliveries()
    for body in (b"1", b"2", b"3"):
        ledger.hand_over(Delivery("", "", Properties(), body), None, 1, "tag", False)
    with pytest.raises(KeyError):
        ledger.settle_all([1, 4])
    assert len(ledger) == 3
    assert [delivery.body for delivery in ledger.settle_all([3, 1])] == [b"3", b"1"]
    assert len(ledger) == 1


@pytest.mark.parametrize(
    ("settled", "tags", "completes"),
    [
        ([], [1, 2, 3], True),
        ([], [2, 3], False),
        ([1], [2, 3], True),
        ([2], [1, 3], True),
        ([2, 4], [1, 3], False),  # it cannot tell those above
        ([4], [1, 2], False),
        ([5, 1], [2, 3, 4], False),
        ([1], [2, 4], False),
    ],
)
def test_settled_knows_whether_a_batch_completes_what_is_settled(settled, tags, completes):
    settlement = AckWatermark()
    for tag in settled:
        settlement.add(tag)
    assert settlement.completes(tags) is completes


def test_settled_of_all_up_to_a_tag():
    settlement = AckWatermark()
    settlement.add(2)
    settlement.add(5, multiple=True)
    assert settlement.completes([6, 7])
    settlement.add(3, multiple=True)  # nobody knows how many those were
    assert settlement.completes([6])


@given(st.permutations(range(1, 9)), st.integers(0, 7), st.sets(st.integers(1, 8), min_size=1))
def test_settled_never_claims_too_much(order, count, wanted):
    settled = set(order[:count])
    settlement = AckWatermark()
    for tag in order[:count]:
        settlement.add(tag)
    batch = sorted(wanted - settled)
    if batch and settlement.completes(batch):
        assert settled.union(batch) >= set(range(1, batch[-1] + 1))


@pytest.fixture
def tap():
    """A tap on a rota of one consumer with a message, and what it is told to look at."""
    notices, expiring, tidied = deque(), {}, []
    rota, queue = ConsumerRing(), filled(1)
    rota.add(ConsumerSlot(queue, UnackedDeliveries(), 1, "tag", True))
    return FastPath(rota, notices, expiring, lambda: tidied.append(rota.take_left())), notices, expiring, tidied


def test_a_tap_gives_what_a_rota_has(tap):
    tap, _, _, tidied = tap
    assert tap.next().body == b"0"
    assert not tidied
    assert tap.next() is None
    ((emptied, stalled, expired),) = tidied
    assert [claimant.tag for claimant in emptied] == ["tag"]
    assert not stalled
    assert not expired


def test_a_tap_is_closed_as_long_as_there_is_something_else_to_see_to(tap):
    tap, notices, expiring, _ = tap
    notices.append("a notice")
    assert tap.next() is None
    notices.clear()
    expiring["queue"] = 1
    assert tap.next() is None
    del expiring["queue"]
    assert tap.next().body == b"0"


def test_what_a_tap_gives_is_not_lost_when_tidying_fails():
    def tidy():
        raise OSError("no")

    rota, queue, ledger = ConsumerRing(), filled(2), UnackedDeliveries()
    ledger.prefetch_count = 1
    rota.add(ConsumerSlot(queue, ledger, 1, "tag", False))  # the message takes its last credit: it leaves the rota
    with pytest.raises(OSError, match="no"):
        FastPath(rota, (), (), tidy).next()
    assert [delivery.body for delivery in ledger.close()] == [b"0"]
