"""Cases of the contract suite on a Redis Cluster, in both layouts: those that go other ways there. The soak has all."""

from __future__ import annotations

import pytest

from tests.contract.conftest import BROKERS, Broker, channel, connection, queue
from tests.contract.test_entities import test_unbound_queue_gets_nothing_more
from tests.contract.test_publish_consume import (
    test_ack_multiple,
    test_batch_is_sent_together,
    test_consumers_of_one_queue_on_one_connection_share_it,
    test_no_ack_consumer,
    test_one_consumer_of_several_queues,
    test_order_is_kept,
    test_prefetch_bounds_what_is_outstanding,
    test_publish_many_says_how_far_it_came,
    test_recover_delivers_again,
    test_rejected_message_is_gone,
    test_requeued_message_comes_first_and_is_marked,
    test_returned_message_without_listener_raises,
    test_waiting_consumer_is_woken,
    test_what_is_not_acknowledged_comes_back_when_the_connection_closes,
    test_what_was_deleted_is_declared_again,
)

__all__ = [
    "channel",
    "connection",
    "queue",
    "test_ack_multiple",
    "test_batch_is_sent_together",
    "test_consumers_of_one_queue_on_one_connection_share_it",
    "test_no_ack_consumer",
    "test_one_consumer_of_several_queues",
    "test_order_is_kept",
    "test_prefetch_bounds_what_is_outstanding",
    "test_publish_many_says_how_far_it_came",
    "test_recover_delivers_again",
    "test_rejected_message_is_gone",
    "test_requeued_message_comes_first_and_is_marked",
    "test_returned_message_without_listener_raises",
    "test_unbound_queue_gets_nothing_more",
    "test_waiting_consumer_is_woken",
    "test_what_is_not_acknowledged_comes_back_when_the_connection_closes",
    "test_what_was_deleted_is_declared_again",
]


@pytest.fixture(params=["rediscluster", "rediscluster-tagged"])
def broker(request, cluster_url):
    kind = BROKERS[request.param]
    broker = Broker("rediscluster", cluster_url, kind.transport_options)
    yield broker
    broker.close()
