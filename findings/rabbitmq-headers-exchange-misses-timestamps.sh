#!/bin/sh
# A headers exchange of RabbitMQ 4.3 never routes a message to a binding by a timestamp that it has in its headers: the
# broker compares the seconds of the binding with milliseconds of the message. The message is unroutable, so dropped
# unless it is published as mandatory. A header with the plain number of seconds matches, and so does a time that is a
# thousandth as long after 1970. In a list the same timestamp matches. RabbitMQ 3.10 matches it as it is, so routes stop
# at the upgrade.
# Predicted: equal timestamps match, and no number matches a timestamp. The documentation of headers exchanges says that a
# value has to equal the binding's, and names no type that cannot be used.
# Run by hand, as root on Debian: needs debootstrap, some minutes, and 500 MB. The broker runs in name spaces of its
# own.
# Seen with RabbitMQ 4.3.6 and pika 1.4.4 (Debian unstable) on 2026-11-28:
#   bound by 1970-01-12: 1970-01-12 unroutable, 950400 routed, 2000-02-13 unroutable, [1970-01-12] unroutable
#   bound by 2000-02-13: 1970-01-12 routed, 950400 unroutable, 2000-02-13 unroutable, [1970-01-12] unroutable
#   bound by [1970-01-12]: 1970-01-12 unroutable, 950400 unroutable, 2000-02-13 unroutable, [1970-01-12] routed
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages=rabbitmq-server,python3-pika,iproute2
unshare --mount debootstrap --variant=minbase --include=$packages sid "$work/tree" >"$work/log"
echo 127.0.0.1 localhost >"$work/tree/etc/hosts"
cat >"$work/tree/run.py" <<'PY'
import datetime
import time

import pika

for _ in range(300):
    try:
        connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", heartbeat=0))
        break
    except pika.exceptions.AMQPError:
        time.sleep(0.2)
channel = connection.channel()
channel.confirm_delivery()


def seconds(number):
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(seconds=number)


def show(value):
    return f"[{show(value[0])}]" if isinstance(value, list) else str(getattr(value, "date", lambda: value)())


start = 11 * 86400
values = [seconds(start), start, seconds(start * 1000), [seconds(start)]]
for bound in (values[0], values[2], values[3]):
    name = f"by {show(bound)}"
    channel.exchange_declare(name, "headers", durable=True)
    channel.queue_declare(name, durable=True)
    channel.queue_bind(name, name, "", {"x-match": "all", "at": bound})
    found = []
    for value in values:
        try:
            channel.basic_publish(name, "", b"order", pika.BasicProperties(headers={"at": value}), mandatory=True)
            found.append(f"{show(value)} routed")
        except pika.exceptions.UnroutableError:
            found.append(f"{show(value)} unroutable")
    print(f"bound {name}: {', '.join(found)}")
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server python3-pika
unshare --mount --pid --net --fork --kill-child chroot "$work/tree" sh -c '
mount -t proc proc /proc
ip link set lo up
RABBITMQ_NODENAME=rabbit@localhost HOME=/root /usr/lib/rabbitmq/bin/rabbitmq-server >/broker 2>&1 &
timeout 300 python3 /run.py' | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
