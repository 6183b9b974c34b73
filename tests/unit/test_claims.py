# ruff: noqa: E501 - names of tests, and sentences as the pages have them
"""Each promise of the manual names the tests that hold it: all rows of the tables below, and the sentences.

A row or sentence without a test fails here; so does a test that is named and does not exist. ``docs/security.md`` names
its tests in the text, ``docs/errors.md`` and the table of features are run row by row by ``tests/contract``.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

#: By page and heading: the first cell of each row of the table there, and the tests that hold the row.
TABLES: dict[tuple[str, str], dict[str, list[str]]] = {
    ("guarantees.md", "When may a message be lost, or come twice?"): {
        "RabbitMQ, `confirm_publish=True`, durable queue, persistent message": [
            "faults/test_ledger.py::test_one_thing_and_another",
            "amqp/test_broker_faults.py::test_broker_restarted",
            "cluster/test_cluster.py::test_leader_killed",
            "amqp/test_joined_acks.py::test_acks_leave_before_a_program_ends_that_closes_nothing",
        ],
        "RabbitMQ, `confirm_publish=True`, transient": [
            "faults/test_cuts.py::test_publish",
            "faults/test_ledger.py::test_one_thing_and_another",
        ],
        "RabbitMQ without confirms": [
            "amqp/test_publish_errors.py::test_exchange_deleted_later",
            "amqp/test_publish_errors.py::test_missing_exchange_is_an_error_of_that_very_publish",
        ],
        "Redis, `appendfsync always`": [
            "faults/test_ledger.py::test_one_thing_and_another",
            "faults/test_recovery_redis.py::test_consumer_goes_on_after_a_restart_with_what_it_had_not_acknowledged",
            "redis/test_faults.py::test_consumer_killed_at_any_step_loses_nothing",
        ],
        "Redis, other persistence": [
            "redis/test_forgetful.py::test_consumers_of_all_kinds_get_what_is_published_after_the_loss"
        ],
        "Redis with a failover (Sentinel)": ["redis/test_sentinel_ledger.py::test_master_killed"],
        "PostgreSQL": [
            "sql/test_faults.py::test_server_is_killed_under_load",
            "sql/test_faults.py::test_publishers_are_killed_and_all_that_they_noted_is_there",
            "sql/test_faults.py::test_consumers_are_killed_and_nothing_is_lost",
        ],
        "SQLite, `synchronous=FULL`": [
            "sql/test_faults.py::test_publishers_are_killed_and_all_that_they_noted_is_there",
            "sql/test_databases.py::test_a_commit_on_sqlite_waits_for_the_disk",
        ],
        "filesystem, `fsync=True`": ["unit/test_filesystem_transport.py::test_a_publish_waits_for_the_disk"],
        "memory": [
            "unit/test_memory_transport.py::test_dropped_connections_leave_nothing_behind",
            "unit/test_memory_transport.py::test_interrupted_consumer_leaves_the_message_to_others",
        ],
        "any, `no_ack=True` consumer": ["contract/test_publish_consume.py::test_no_ack_consumer"],
    },
    ("guarantees.md", "What a handler's outcome does"): {
        "`ack()`": ["contract/test_publish_consume.py::test_media_example"],
        "`reject()`": [
            "contract/test_publish_consume.py::test_rejected_message_is_gone",
            "contract/test_limits.py::test_rejected_messages_become_dead_letters",
        ],
        "`requeue()`": [
            "contract/test_publish_consume.py::test_requeued_message_comes_first_and_is_marked",
            "contract/test_poison.py::test_deliveries_are_counted",
        ],
        "`requeue(failed=False)`": ["amqp/test_orderly_ends.py::test_an_orderly_end_is_no_failed_delivery"],
        "nothing, and the channel or connection closes": [
            "contract/test_publish_consume.py::test_what_is_not_acknowledged_comes_back_when_the_channel_closes",
            "contract/test_publish_consume.py::test_what_is_not_acknowledged_comes_back_when_the_connection_closes",
            "amqp/test_orderly_ends.py::test_the_message_whose_callback_raised_counts_as_failed_and_the_others_do_not",
        ],
        "nothing, and the process is killed": [
            "faults/test_ledger.py::test_one_thing_and_another",
            "sql/test_faults.py::test_messages_of_a_lost_connection_come_back_in_their_order_and_count",
        ],
        "it kills its process again and again": [
            "redis/test_faults.py::test_message_that_kills_its_consumers_ends_in_the_dead_letters",
            "contract/test_poison.py::test_a_message_that_comes_back_too_often_goes_to_the_dead_letters",
        ],
    },
    ("reliability.md", "What consumers survive"): {
        "the broker restarts, the operator closes the connection, `CLIENT KILL`": [
            "faults/test_recovery.py::test_consumer_goes_on_after_a_restart_of_the_broker",
            "faults/test_recovery.py::test_consumer_goes_on_after_the_operator_closed_the_connection",
            "faults/test_recovery_redis.py::test_consumer_goes_on_after_its_connections_were_killed",
            "faults/test_recovery.py::test_worker_goes_on",
        ],
        "failover: Sentinel, or the next URL of a list": [
            "redis/test_sentinel.py::test_news_of_our_master_end_the_connections_to_the_old_one",
            "redis/test_sentinel.py::test_master_that_hangs_is_left_in_the_middle_of_a_command",
            "faults/test_failover.py::test_consumers_of_all_kinds",
            "faults/test_failover.py::test_mixin",
        ],
        "`SCRIPT FLUSH`": ["redis/test_faults.py::test_scripts_that_the_server_forgot_are_taught_again"],
        "Redis, or a proxy, closes idle connections": [
            "redis/test_idle.py::test_idle_consumer_goes_on",
            "redis/test_idle.py::test_proxy_that_forgets_an_idle_connection_is_found_out_by_a_ping",
            "redis/test_idle.py::test_task_that_takes_longer_than_the_server_waits_is_done_once",
        ],
        "`maxmemory`": ["redis/test_faults.py::test_server_without_memory_refuses_publishes_and_lets_consumers_drain"],
        "memory alarm": [
            "amqp/test_broker_faults.py::test_publish_to_a_full_broker",
            "amqp/test_broker_faults.py::test_first_publish_of_a_connection_to_a_full_broker",
        ],
        "its queue is deleted": [
            "contract/test_poison.py::test_plain_loop_goes_on_after_its_queue_was_deleted",
            "contract/test_entities.py::test_consumer_of_a_deleted_queue_raises_where_nobody_asked",
        ],
        "a message is kept longer than RabbitMQ's `consumer_timeout` (30 min)": [
            "faults/test_recovery.py::test_consumer_that_keeps_a_message_too_long_is_told_and_may_go_on",
            "faults/test_recovery.py::test_worker_goes_on_after_it_kept_a_message_too_long",
        ],
    },
    ("reliability.md", "Poison messages"): {
        "RabbitMQ, quorum queues": [
            "amqp/test_counting.py::test_all_deliveries_count_whether_they_failed_or_not",
            "amqp/test_counting.py::test_what_consumers_gave_back_in_order_is_not_held_against_a_message",
            "amqp/test_counting.py::test_a_limit_that_is_never_reached_is_logged",
        ],
        "RabbitMQ, classic queues": ["contract/test_poison.py::test_deliveries_are_counted"],
        "Redis": [
            "redis/test_faults.py::test_message_that_kills_its_consumers_ends_in_the_dead_letters",
            "redis/test_leases.py::test_count_of_deliveries_outlives_a_kombu_consumer",
        ],
        "PostgreSQL, SQLite": [
            "sql/test_faults.py::test_messages_of_a_lost_connection_come_back_in_their_order_and_count"
        ],
        "memory, filesystem, other stores": ["contract/test_poison.py::test_deliveries_are_counted"],
    },
    ("reliability.md", "Backlogs"): {
        "`batch()`": ["contract/test_publish_consume.py::test_full_batch_is_sent_at_once_and_flush_sends_the_rest"],
        "`publish_many`": [
            "contract/test_publish_many.py::test_memory_does_not_grow_with_the_number",
            "amqp/test_bodies.py::test_more_messages_than_the_window",
        ],
        "a single `publish`": ["amqp/test_broker_faults.py::test_write_to_a_paused_broker"],
        "deliveries": ["contract/test_publish_consume.py::test_prefetch_bounds_what_is_outstanding"],
    },
    ("reliability.md", "Deadlines"): {
        "connect, TLS, login (AMQP: all together; Redis: each step, and each sentinel until one answers)": [
            "amqp/test_broker_faults.py::test_connecting_to_a_paused_broker",
            "amqp/test_garbage.py::test_a_tls_handshake_that_drips_ends_in_time",
            "amqp/test_connecting.py::test_no_address_answers_in_time",
            "faults/test_recovery_redis.py::test_peer_that_says_nothing_is_tried_again_in_time",
        ],
        "the default channel's connection, tries included": [
            "unit/test_connection.py::test_default_channel_takes_its_retries_from_the_transport_options"
        ],
        "`ensure_connection`": ["faults/test_recovery.py::test_retry_does_what_the_policy_says_and_leaves_no_trace"],
        "answer to a request (declare, bind, qos, consume, get, …)": [
            "amqp/test_broker_faults.py::test_request_to_a_paused_broker",
            "amqp/test_garbage.py::test_a_silent_peer_ends_each_request_by_its_deadline",
        ],
        "`publish`: the broker reads it, also while it is blocked": [
            "amqp/test_broker_faults.py::test_write_to_a_paused_broker",
            "amqp/test_broker_faults.py::test_publish_to_a_full_broker",
        ],
        "`publish` with confirms": ["amqp/test_broker_faults.py::test_confirm_of_a_paused_broker"],
        "`close`, `release`": [
            "amqp/test_broker_faults.py::test_close_of_a_paused_broker",
            "faults/test_recovery_redis.py::test_release_of_a_connection_to_a_server_that_hangs",
            "sql/test_deadlines.py::test_release",
        ],
        "`drain_events`": [
            "contract/test_publish_consume.py::test_waiting_ends_in_time",
            "contract/test_errors.py::test_the_table",
        ],
        "a broker that hangs, to a consumer": [
            "amqp/test_broker_faults.py::test_drain_of_a_paused_broker",
            "redis/test_sentinel.py::test_master_that_hangs_is_left_in_the_middle_of_a_command",
        ],
        "Redis has no master: a new one is being chosen (Sentinel)": [
            "redis/test_sentinel.py::test_first_try_to_connect_waits_for_the_new_master"
        ],
        "a host that has vanished (no RST, no FIN), AMQP without heartbeats": [
            "amqp/test_connecting.py::test_socket_settings"
        ],
        "an answer of Redis": ["redis/test_faults.py::test_server_that_hangs_ends_every_call_in_time"],
        "a statement on PostgreSQL": [
            "sql/test_deadlines.py::test_publish",
            "sql/test_deadlines.py::test_declarations",
        ],
        "a verb of `kombulite.aio`, all of it": [
            "aio/test_faults.py::test_a_silent_broker_ends_each_wait_by_its_deadline",
        ],
        "a pool that is used up: `acquire(block=True)`": ["unit/test_pools.py::test_waiting_ends_in_time"],
        "`Mailbox.call`": ["unit/test_helpers.py::test_call_waits_from_one_answer_to_the_next"],
    },
    ("reliability.md", "Threads, forks and loops"): {
        "`Connection`": [
            "amqp/test_threads.py::test_publishers_consumers_and_declarers_share_a_connection",
            "faults/test_recovery_redis.py::test_eight_threads_share_a_connection",
            "faults/test_forks_and_heartbeats.py::test_child_connects_anew_and_the_parent_goes_on",
        ],
        "`Channel`": [
            "amqp/test_publish_errors.py::test_threads_that_publish_while_their_channel_is_closed",
            "faults/test_forks_and_heartbeats.py::test_child_connects_anew_and_the_parent_goes_on",
        ],
        "`Producer`": ["amqp/test_publish_errors.py::test_one_connection_many_confirming_threads"],
        "`Consumer`, `Message`": ["redis/test_held.py::test_a_forked_child_settles_nothing"],
        "pools": [
            "unit/test_pools.py::test_limit_is_kept_whatever_threads_do",
            "unit/test_pools.py::test_forked_child_starts_with_an_empty_pool",
        ],
        "`Hub`": [
            "unit/test_event_loop.py::test_call_from_another_thread_wakes_it",
            "unit/test_event_loop.py::test_what_a_forked_child_forgets_its_parent_still_hears_of",
        ],
        "`memory://`": ["unit/test_memory_transport.py::test_forked_child_has_a_broker_that_works"],
        "`aio.Connection`": ["aio/test_cancellation.py::test_another_loop_or_thread_is_refused_at_once"],
        # The threads are listed by tests/unit/test_tables.py.
    },
    ("guide/consumers.md", "Many messages at a time"): {
        "one cannot be decoded": [
            "contract/test_batches.py::test_what_cannot_be_decoded_is_in_no_batch",
            "contract/test_batches.py::test_what_cannot_be_decoded_is_raised",
        ],
        "the callback raises": ["contract/test_batches.py::test_a_callback_that_raises_leaves_its_batch_outstanding"],
        "`cancel()`, or the end of the `with` block": [
            "contract/test_batches.py::test_cancelling_puts_back_what_was_gathered",
            "contract/test_batches.py::test_without_acks_what_was_gathered_is_handed_over_at_the_end",
        ],
        "the channel closes, the connection is lost": [
            "contract/test_batches.py::test_closing_the_channel_puts_back_what_was_gathered",
            "faults/test_recovery.py::test_a_batch_leaves_out_what_came_on_the_lost_connection",
        ],
        "several threads drain": ["contract/test_batches.py::test_threads_share_a_consumer"],
        "in an event loop": ["contract/test_event_loop.py::test_a_batch_that_is_not_complete_wakes_the_loop"],
    },
}

#: Rows that no test holds yet.
WITHOUT_A_TEST = {
    "mandatory messages that came back, on a connection that is not drained",
    "acks on Redis without a reply",
    "fanout messages on Redis for a consumer that is slow",
    "a `drain_events` that has to connect first",
}

#: Sentences, as the pages have them, and the tests that hold them.
SENTENCES: dict[str, dict[str, list[str]]] = {
    "../README.md": {
        "Every message that `publish()` accepted is either consumed or still in the broker, and every blocking call has a"
        " deadline.": [
            "faults/test_ledger.py::test_one_thing_and_another",
            "amqp/test_garbage.py::test_a_silent_peer_ends_each_request_by_its_deadline",
            "redis/test_faults.py::test_server_that_hangs_ends_every_call_in_time",
            "sql/test_deadlines.py::test_publish",
            "aio/test_faults.py::test_a_silent_broker_ends_each_wait_by_its_deadline",
        ],
        "`import kombulite as kombu`, or run a program that you cannot edit after `kombulite.as_kombu()`": [
            "unit/test_aliasing.py::test_children_have_it_too_however_they_start",
            "celery/test_scenarios.py::test_scenario",
            "transports/test_third_parties.py::test_kombu_pyamqp_threadsafe",
        ],
        "A kombulite process and a kombu process share a broker.": [
            "amqp/test_interop.py::test_bodies_to_kombu",
            "amqp/test_interop.py::test_acks_and_requeues_between_kombu_and_us",
            "redis/test_leases.py::test_count_of_deliveries_outlives_a_kombu_consumer",
        ],
        "Thousands of tasks share one connection; publishes are [pipelined and confirmed]": [
            "aio/test_cancellation.py::test_ten_thousand_publishers_share_a_window",
            "aio/test_facade.py::test_many_tasks_share_a_connection",
        ],
        "messages that exist if and only if your transaction commits": [
            "sql/test_outbox.py::test_message_exists_if_the_transaction_commits",
            "sql/test_outbox.py::test_message_exists_if_the_transaction_of_django_commits",
            "sql/test_outbox.py::test_message_exists_if_the_transaction_on_the_loop_commits",
        ],
    },
    "guarantees.md": {
        "A queue delivers in the order of publishing, for one publisher and one consumer.": [
            "contract/test_publish_consume.py::test_order_is_kept",
            "amqp/test_threads.py::test_order_is_kept_while_another_thread_publishes",
        ],
        "`aio`'s `serve(key=...)` handles messages of one key in order.": [
            "aio/test_facade.py::test_serve_keeps_the_order_of_a_key"
        ],
        "All others refuse a value that they cannot write with `EncodeError`": [
            "contract/test_unwritable.py::test_headers_that_cannot_be_written_are_refused",
            "contract/test_unwritable.py::test_in_a_batch_only_the_message_that_cannot_be_written_is_refused",
        ],
    },
    "reliability.md": {
        "The channels come back as the same objects, with their prefetch limits, their confirm mode and their consumers": [
            "faults/test_recovery.py::test_prefetch_limit_comes_back",
            "faults/test_recovery.py::test_confirms_that_a_channel_asked_for_are_in_force_again",
        ],
        "not a channel that was closed meanwhile, nor a consumer that was cancelled": [
            "unit/test_connection.py::test_a_channel_that_is_closed_while_its_connection_is_lost_does_not_come_back",
            "faults/test_recovery_redis.py::test_consumer_that_is_cancelled_while_the_connection_is_lost_does_not_come_back",
        ],
        "exclusive, auto-delete, expiring and not durable queues and exchanges.": [
            "faults/test_recovery.py::test_what_goes_with_a_connection_is_declared_again"
        ],
        "A connection that cannot be restored as it was (a consumer's queue was deleted) raises the broker's error, each"
        " time it is tried.": ["faults/test_recovery.py::test_connection_that_cannot_be_restored_says_so_each_time"],
        "A queue that the broker named gets a new name; consumers (`consumer.queues`) and bindings follow": [
            "faults/test_recovery.py::test_queue_that_the_broker_named_gets_a_new_name_and_keeps_its_bindings",
            "faults/test_recovery.py::test_consumer_knows_the_new_name_of_its_queue",
        ],
        "their tags never mean a message of the new connection": [
            "faults/test_recovery.py::test_ack_of_a_message_of_the_lost_connection_acknowledges_no_other"
        ],
        "the application keeps the messages that it still holds, and settles them over the next connection": [
            "redis/test_held.py::test_is_settled_after_the_connection_came_back",
            "sql/test_held.py::test_is_settled_after_the_connection_came_back",
        ],
        "one background thread for all connections of the process sends what is due, also while a callback runs for"
        " minutes.": [
            "faults/test_forks_and_heartbeats.py::test_heartbeats_go_on_while_a_callback_runs",
            "faults/test_forks_and_heartbeats.py::test_heartbeat_thread_ends_with_the_connections",
        ],
        "A signal handler may raise, on every version of CPython: no lock of kombulite stays taken": [
            "unit/test_interrupts.py::test_a_call_leaves_no_lock_taken",
            "contract/test_interrupts.py::test_others_publish_after_an_interrupted_publish",
        ],
        "A signal handler may close and cancel, also what its own thread waits for.": [
            "contract/test_publish_consume.py::test_signal_handler_may_close_what_the_thread_waits_for"
        ],
        "Green threads (gevent, eventlet) are threads here": [
            "contract/test_green_threads.py::test_waiting_lets_others_work_and_several_settle_at_once"
        ],
        "An element of a Redis list that is no message is moved to": [
            "redis/test_memory.py::test_element_that_is_no_message_is_kept"
        ],
        "nothing is bound to the exchange, the queue is full) the error is raised and the message stays": [
            "contract/test_poison.py::test_a_dead_letter_that_nobody_takes_keeps_the_message"
        ],
    },
    "guide/producers.md": {
        "If the broker refuses some, `BatchPublishError` is raised; its `refused` has pairs of index and exception.": [
            "contract/test_limits.py::test_batch_names_the_messages_that_were_refused"
        ],
        "`on_return` of the producer is called": [
            "contract/test_publish_consume.py::test_returned_message_comes_to_on_return"
        ],
        "Without `on_return` the same calls raise `MessageReturned`.": [
            "contract/test_publish_consume.py::test_returned_message_without_listener_raises"
        ],
    },
    "guide/command-line.md": {
        "if the reader closes the pipe, the rest stays in the queue": [
            "unit/test_cli_messages.py::test_reader_that_goes_away_loses_nothing"
        ],
        "if it is interrupted, no message is lost, and one may be in both queues": [
            "unit/test_cli_messages.py::test_move_that_is_interrupted_loses_nothing"
        ],
        "Passwords are never shown.": ["unit/test_cli_messages.py::test_passwords_are_never_shown"],
        "every request needs the token": ["unit/test_web.py::test_nothing_is_shown_without_the_token"],
        "By default it is read-only": ["unit/test_web.py::test_nothing_is_changed_unless_allowed"],
        "| 130 | Ctrl-C |": ["unit/test_cli_mistakes.py::test_ctrl_c_ends_a_command_that_waits_for_a_broker"],
    },
}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def rows_of(name: str, heading: str) -> list[str]:
    """Return the first cells of all tables of a section, without those of the threads."""
    section = page(name).partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = []
    for row, following in zip(lines := section.splitlines(), [*lines[1:], ""], strict=True):
        is_heading = following.startswith("|--")
        if row.startswith("| ") and not is_heading:
            found.append(row.split(" | ")[0].removeprefix("| "))
    return [cell for cell in found if not cell.startswith("`kombulite-")]


@cache
def names_in(path: str) -> frozenset[str]:
    return frozenset(re.findall(r"^(?:async )?def (test_\w+)\(", (ROOT / "tests" / path).read_text(), re.MULTILINE))


@pytest.mark.parametrize(("name", "heading"), TABLES)
def test_each_row_names_its_tests(name, heading):
    rows, held = rows_of(name, heading), TABLES[name, heading]
    assert rows
    assert [row for row in rows if row not in WITHOUT_A_TEST] == list(held)


def test_rows_without_a_test_are_rows():
    assert set().union(*(rows_of(*where) for where in TABLES)) >= WITHOUT_A_TEST


@pytest.mark.parametrize("name", SENTENCES)
def test_each_sentence_is_on_its_page(name):
    text = " ".join(page(name).split())
    assert [sentence for sentence in SENTENCES[name] if sentence not in text] == []


def test_each_test_that_holds_a_claim_exists():
    held = [tests for claims in (*TABLES.values(), *SENTENCES.values()) for tests in claims.values()]
    named = {test for tests in held for test in tests}
    assert all(held)
    assert {test for test in named if test.partition("::")[2] not in names_in(test.partition("::")[0])} == set()
