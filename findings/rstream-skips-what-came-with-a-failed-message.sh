#!/bin/sh
# If the callback of a consumer of rstream raises, the rest of the message's chunk is never passed to it: rstream logs
# the exception and continues with the next chunk, so with messages that were published later. RabbitMQ stores a batch
# of messages as one chunk, so one bad message costs up to hundreds of good ones (491 in one run). run() does not end,
# and a program that stores the offset of what it handled resumes after the gap: the messages are in the stream, but
# no restart brings them back.
# Predicted: the callback is called for the next message, or run() raises. The documentation of rstream describes no
# failure of a callback; it describes chunks only for filters.
# What helps: catch each exception inside of the callback, and stop the consumer there if the message must not be lost.
# Run by hand, as root on Debian: needs debootstrap, PyPI, some minutes, and 500 MB. The broker runs in name spaces of
# its own.
# Seen with RabbitMQ 4.3.6 (Debian unstable) and rstream 1.1.1 on 2026-11-29:
#   callback raises at offset 500 of 1000, published as one batch
#   handled before: 500, directly after: False
#   handled of the batch: fewer than 999: True
#   published later: handled 10 of 10
#   run() ended: False
#   restarted after the stored offset: handled of the batch: 0
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unshare --mount debootstrap --variant=minbase --include=rabbitmq-server,iproute2 sid "$work/tree" >"$work/log"
echo 127.0.0.1 localhost >"$work/tree/etc/hosts"
echo '[rabbitmq_stream].' >"$work/tree/etc/rabbitmq/enabled_plugins"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install rstream==1.1.1
cat >"$work/run.py" <<'PY'
import asyncio
import contextlib
import logging

from rstream import AMQPMessage, Consumer, ConsumerOffsetSpecification, OffsetType, Producer, amqp_decoder

logging.disable()
USER = {"username": "guest", "password": "guest"}


async def publish(numbers):
    async with Producer("127.0.0.1", **USER) as producer:
        await producer.create_stream("orders", exists_ok=True)
        await producer.send_batch("orders", [AMQPMessage(body=str(number).encode()) for number in numbers])
        await asyncio.sleep(2)


@contextlib.asynccontextmanager
async def consume(callback, kind, offset=None):
    consumer = Consumer("127.0.0.1", **USER)
    await consumer.start()
    where = ConsumerOffsetSpecification(kind, offset)
    await consumer.subscribe("orders", callback, decoder=amqp_decoder, offset_specification=where)
    running = asyncio.create_task(consumer.run())
    yield consumer, running
    await consumer.close()
    running.cancel()


async def run():
    for _ in range(300):
        try:
            await publish(range(1000))
            break
        except OSError:
            await asyncio.sleep(0.2)
    handled, restarted = [], []

    async def handle(message, context):
        if context.offset == 500:
            raise ValueError("a bad message")
        handled.append(context.offset)

    async def handle_again(message, context):
        restarted.append(context.offset)

    print("callback raises at offset 500 of 1000, published as one batch")
    async with consume(handle, OffsetType.FIRST) as (consumer, running):
        await asyncio.sleep(5)
        await publish(range(10))
        while not handled or handled[-1] < 1009:
            await asyncio.sleep(0.1)
        await consumer.store_offset("orders", "worker", handled[-1])
        stored = await consumer.query_offset("orders", "worker")
        print(f"handled before: {sum(offset < 500 for offset in handled)}, directly after: {501 in handled}")
        print(f"handled of the batch: fewer than 999: {sum(offset < 1000 for offset in handled) < 999}")
        print(f"published later: handled {sum(offset >= 1000 for offset in handled)} of 10")
        print(f"run() ended: {running.done()}")
    async with consume(handle_again, OffsetType.OFFSET, stored + 1):
        await publish(range(10))
        while not restarted:
            await asyncio.sleep(0.1)
        missing = sum(offset < 1000 for offset in restarted)
        print(f"restarted after the stored offset: handled of the batch: {missing}")


asyncio.run(asyncio.wait_for(run(), 180))
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server
unshare --mount --pid --net --fork --kill-child sh -c '
mount -t proc proc "$0/tree/proc"
chroot "$0/tree" ip link set lo up
chroot "$0/tree" env RABBITMQ_NODENAME=rabbit@localhost HOME=/root /usr/lib/rabbitmq/bin/rabbitmq-server >"$0/broker" 2>&1 &
timeout 300 "$0/venv/bin/python" "$0/run.py"' "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
