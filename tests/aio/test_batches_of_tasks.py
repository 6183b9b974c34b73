"""Tasks that share a batch."""

from __future__ import annotations

import asyncio

from kombulite import Queue
from tests.aio.conftest import run

MESSAGES = 500


def test_what_tasks_put_into_one_batch_is_sent_once_each(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            async with connection.producer().batch(max_size=10) as batch:
                await asyncio.gather(*(batch.publish(number, queue.name) for number in range(MESSAGES)))
            assert len(batch) == 0
            found = [(await connection.get(queue, no_ack=True)).payload for _ in range(MESSAGES)]
            assert sorted(found) == list(range(MESSAGES))
            assert await connection.get(queue) is None
            await connection.delete(queue)

    run(main)
