"""Plans of several queues, done together."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

from kombulite import exceptions
from kombulite.brokers.redis.leases import logger
from kombulite.brokers.redis.plans import LOST, Exchange, Plan

T = TypeVar("T")


def together(plans: Mapping[str, Plan[T]], patience: float | None = None) -> Plan[dict[str, T]]:
    """Perform a plan for each queue, and return their results: the commands of all are sent at once.

    ``patience``: seconds to wait for a slot that is not served, at most.

    So a slot that is not served is waited for once, not once for each of its queues, and keeps no other queue waiting
    longer. Refusals are logged; of the errors of connections the first is raised when all plans have ended.
    """
    results: dict[str, T] = {}
    failures: dict[str, Exception] = {}
    steps: dict[str, tuple[Any, Any]] = {queue: (plan.send, None) for queue, plan in plans.items()}
    while steps:
        requests: dict[str, Exchange] = {}
        for queue, (step, argument) in steps.items():
            try:
                requests[queue] = step(argument)
            except StopIteration as end:
                results[queue] = end.value
            except (exceptions.ConnectionError, OSError) as error:
                failures[queue] = error
            except (exceptions.ChannelError, exceptions.MessageNacked) as error:
                logger.warning("Queue %r could not be looked after: %s", queue, error)
        steps = (yield from _exchange(plans, requests, patience)) if requests else {}
    if failures:
        failure = next(iter(failures.values()))
        logger.info("Queues %s could not be looked after: %s", reprlib.repr(list(failures)), failure)
        raise failure
    return results


def _exchange(
    plans: Mapping[str, Plan[Any]], requests: Mapping[str, Exchange], patience: float | None
) -> Plan[dict[str, tuple[Any, Any]]]:
    """Send the commands of all plans; returns how each goes on: by its replies, or by the loss of its connection."""
    commands = [command for request in requests.values() for command in request.commands]
    count = sum(request.replies for request in requests.values())
    partial: list[Any] = []
    lost: Exception | None = None
    try:
        replies = yield Exchange(commands, count, partial, patience)
    except (exceptions.ConnectionError, OSError) as error:
        lost, replies = error, partial or [LOST] * count
    steps: dict[str, tuple[Any, Any]] = {}
    at = 0
    for queue, request in requests.items():
        mine, at = replies[at : at + request.replies], at + request.replies
        is_lost = any(reply is LOST for reply in mine)
        steps[queue] = (plans[queue].throw, lost) if is_lost else (plans[queue].send, mine)
    return steps
