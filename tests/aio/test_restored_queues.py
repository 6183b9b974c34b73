"""Which queues are declared again after a loss of the connection."""

from __future__ import annotations

import uuid

import pytest

from kombulite import Queue, aio, exceptions
from tests.aio.conftest import run


async def lose(connection):
    session = connection.session
    session._lost(session.transport, exceptions.RecoverableConnectionError("cut"))
    await session.ensure(session.waits.deadline(None))


@pytest.mark.parametrize("how", ["end", "stop"])
def test_an_auto_delete_queue_is_restored_as_long_as_it_has_a_consumer(how):
    async def main():
        queue = Queue("q", auto_delete=True)
        async with aio.connect(f"memory:///{uuid.uuid4().hex}") as connection:
            async with connection.consume(queue) as first:
                async with connection.consume(queue) as second:
                    if how == "stop":
                        await second.stop()
                await lose(connection)
                assert (await connection.status(queue)).consumer_count == 1
                if how == "stop":
                    await first.stop()
            await lose(connection)
            with pytest.raises(exceptions.NotFound):
                await connection.status(queue)

    run(main)
