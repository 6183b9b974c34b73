#!/bin/sh
# A producer of rstream takes a publisher_name with each message, but for each stream it uses the name of its first
# message alone. Another name that it is given for the same stream later is ignored without an error: RabbitMQ takes
# those messages for ones of the first name, drops each whose publishing id is not above the last one, and confirms it.
# So a process that forwards several numbered sources to one stream loses all that the second one sends, until its ids
# pass those of the first, and each confirmation says that it was stored. If the first message had no name,
# deduplication is off for the producer: what is repeated after a restart of the source is stored twice.
# Predicted: each name has ids of its own, as with one producer for each, or another name is refused. The documentation
# of rstream has all methods that send take a publisher_name, and deduplication rely on it and the publishing id
# (deduplication); neither names a limit. That a duplicate is confirmed is documented (streams, deduplication).
# What helps: one producer for each name, which is given with each message.
# Run by hand, as root on Debian: needs debootstrap, PyPI, some minutes, and 500 MB. The broker runs in name spaces of
# its own.
# Seen with RabbitMQ 4.3.6 (Debian unstable) and rstream 1.1.1 on 2026-11-30:
#   a producer for each name: confirmed shop 100, web 100; stored shop 100, web 100
#   one producer: confirmed shop 100, web 100; stored shop 100, web 0
#   one producer, web goes on to id 149: confirmed web 150; stored shop 100, web 50
#   shop sent twice: confirmed shop 200; stored shop 100
#   shop sent twice, after a message without a name: confirmed shop 200; stored shop 200
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
import logging

from rstream import AMQPMessage, Consumer, ConsumerOffsetSpecification, OffsetType, Producer, amqp_decoder

logging.disable()
USER = {"username": "guest", "password": "guest"}


async def connect(stream):
    """Return a producer, and create the stream."""
    for _ in range(300):
        try:
            producer = Producer("127.0.0.1", **USER)
            await producer.start()
            await producer.create_stream(stream, exists_ok=True)
            return producer
        except OSError:
            await asyncio.sleep(0.2)


async def publish(producer, stream, name, count):
    """Publish messages with the ids from 0 under the name, and return how many were confirmed."""
    batch, outcomes = [], []
    for number in range(count):
        batch.append(AMQPMessage(body=name.encode()))
        batch[-1].publishing_id = number

    def note(status):
        outcomes.append(status.is_confirmed)

    await producer.send_batch(stream, batch, publisher_name=name, on_publish_confirm=note)
    while len(outcomes) < count:
        await asyncio.sleep(0.1)
    return sum(outcomes)


async def stored(stream, *names):
    bodies, first = [], ConsumerOffsetSpecification(OffsetType.FIRST)

    def note(message, context):
        bodies.append(bytes(message.body).decode())

    async with Consumer("127.0.0.1", **USER) as consumer:
        await consumer.subscribe(stream, note, decoder=amqp_decoder, offset_specification=first)
        await asyncio.sleep(3)
    return "stored " + ", ".join(f"{name} {bodies.count(name)}" for name in names)


async def run():
    shop, web = await connect("two"), await connect("two")
    confirmed = f"shop {await publish(shop, 'two', 'shop', 100)}, web {await publish(web, 'two', 'web', 100)}"
    print(f"a producer for each name: confirmed {confirmed}; {await stored('two', 'shop', 'web')}")

    producer = await connect("one")
    confirmed = f"shop {await publish(producer, 'one', 'shop', 100)}, web {await publish(producer, 'one', 'web', 100)}"
    print(f"one producer: confirmed {confirmed}; {await stored('one', 'shop', 'web')}")
    confirmed = f"web {await publish(producer, 'one', 'web', 150)}"
    print(f"one producer, web goes on to id 149: confirmed {confirmed}; {await stored('one', 'shop', 'web')}")

    producer = await connect("named")
    confirmed = sum([await publish(producer, "named", "shop", 100) for _ in range(2)])
    print(f"shop sent twice: confirmed shop {confirmed}; {await stored('named', 'shop')}")
    producer = await connect("unnamed")
    await producer.send_wait("unnamed", AMQPMessage(body=b"hello"))
    confirmed = sum([await publish(producer, "unnamed", "shop", 100) for _ in range(2)])
    found = await stored("unnamed", "shop")
    print(f"shop sent twice, after a message without a name: confirmed shop {confirmed}; {found}")


asyncio.run(asyncio.wait_for(run(), 180))
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server
unshare --mount --pid --net --fork --kill-child sh -c '
mount -t proc proc "$0/tree/proc"
chroot "$0/tree" ip link set lo up
chroot "$0/tree" env RABBITMQ_NODENAME=rabbit@localhost HOME=/srv /usr/lib/rabbitmq/bin/rabbitmq-server >"$0/broker" 2>&1 &
timeout 300 "$0/venv/bin/python" "$0/run.py"' "$work" | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
