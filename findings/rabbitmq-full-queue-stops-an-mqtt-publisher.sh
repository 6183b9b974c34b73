#!/bin/sh
# A queue of RabbitMQ 4.3 that refuses messages (overflow reject-publish) stops an MQTT 3.1.1 publisher for good. The
# broker sends no PUBACK for a message that a queue refused, and paho-mqtt sends at most 20 unacknowledged messages.
# Once 20 were refused, publish() goes on returning MQTT_ERR_SUCCESS, but its messages stay in the client, those for
# other topics too, and also after the full queue has room again. The connection stays open, its keepalives are
# answered, and QoS 0 still works. A client that reconnects sends the refused messages again.
# With MQTT 5 the broker refuses each message in its PUBACK, and the publisher goes on; but then is_published() is true,
# and wait_for_publish() returns as if the message were stored: only the reason code that on_publish() gets says that
# the message was refused.
# Predicted: a refused message waits until its queue has room, or the broker closes the connection; other topics work;
# with MQTT 5 wait_for_publish() raises, as it does for other failures. RabbitMQ's documentation has publishers informed
# of a refused message with confirms (queue length limit), MQTT's acknowledgements being one kind of them.
# What helps: MQTT 5 and the reason codes of on_publish(); with MQTT 3.1.1 reconnect if a publish is not acknowledged in
# time, or no reject-publish for queues that MQTT clients publish to.
# Run by hand, as root on Debian: needs debootstrap, PyPI, some minutes, and 500 MB. The broker runs in name spaces of
# its own.
# Seen with RabbitMQ 4.3.6 and pika 1.4.4 (Debian unstable) and paho-mqtt 2.2.0 on 2026-11-29:
#   MQTT 3.1.1: 30 published to a full queue: PUBACK 0, refused 0, is_published() 0
#   MQTT 3.1.1: to another topic: publish() Success, arrives: False
#   MQTT 3.1.1: to another topic, 10 s after the queue was emptied: publish() Success, arrives: False, connected: True
#   MQTT 3.1.1: QoS 0 arrives: True
#   MQTT 5: 30 published to a full queue: PUBACK 30, refused 30, is_published() 30
#   MQTT 5: to another topic: publish() Success, arrives: True
#   MQTT 5: to another topic, 10 s after the queue was emptied: publish() Success, arrives: True, connected: True
#   MQTT 5: QoS 0 arrives: True
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages=rabbitmq-server,python3-pika,iproute2
unshare --mount debootstrap --variant=minbase --include=$packages sid "$work/tree" >"$work/log"
echo 127.0.0.1 localhost >"$work/tree/etc/hosts"
echo '[rabbitmq_mqtt].' >"$work/tree/etc/rabbitmq/enabled_plugins"
echo 'mqtt.allow_anonymous = true' >"$work/tree/etc/rabbitmq/rabbitmq.conf"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install --target "$work/tree/client" paho-mqtt==2.2.0
cat >"$work/tree/run.py" <<'PY'
import time

import paho.mqtt.client as mqtt
import pika


def patiently(action):
    for _ in range(300):
        try:
            return action()
        except (OSError, pika.exceptions.AMQPError):
            time.sleep(0.2)


def arrives(body):
    """Return whether the message comes to the queue of the other topic within 10 seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        _, _, found = channel.basic_get("other", auto_ack=True)
        if found == body:
            return True
        time.sleep(0.05)
    return False


def declare(name, **arguments):
    channel.queue_declare(name, durable=True, arguments=arguments)
    channel.queue_bind(name, "amq.topic", name)


connection = patiently(lambda: pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", heartbeat=0)))
channel = connection.channel()
channel.confirm_delivery()
declare("other")
for version, name in ((mqtt.MQTTv311, "MQTT 3.1.1"), (mqtt.MQTTv5, "MQTT 5")):
    declare(name, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    channel.basic_publish("", name, b"fills the queue")
    codes = []
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=version)
    client.on_publish = lambda client, data, number, code, properties, codes=codes: codes.append(code)
    patiently(lambda client=client: client.connect("127.0.0.1", keepalive=5))
    client.loop_start()
    refused = [client.publish(name, b"refused", qos=1) for _ in range(30)]
    time.sleep(5)
    published = sum(message.is_published() for message in refused)
    failures = sum(code.is_failure for code in codes)
    print(f"{name}: 30 published to a full queue: PUBACK {len(codes)}, refused {failures}, is_published() {published}")
    told = mqtt.error_string(client.publish("other", b"first", qos=1).rc).removeprefix("No error.") or "Success"
    print(f"{name}: to another topic: publish() {told}, arrives: {arrives(b'first')}")
    channel.queue_purge(name)
    time.sleep(10)
    told = mqtt.error_string(client.publish("other", b"second", qos=1).rc).removeprefix("No error.") or "Success"
    came = arrives(b"second")
    print(
        f"{name}: to another topic, 10 s after the queue was emptied: publish() {told}, arrives: {came},"
        f" connected: {client.is_connected()}"
    )
    client.publish("other", b"third")
    print(f"{name}: QoS 0 arrives: {arrives(b'third')}", flush=True)
    client.disconnect()
    client.loop_stop()
connection.close()
PY
dpkg-query --admindir "$work/tree/var/lib/dpkg" -W rabbitmq-server python3-pika
unshare --mount --pid --net --fork --kill-child chroot "$work/tree" sh -c '
mount -t proc proc /proc
ip link set lo up
RABBITMQ_NODENAME=rabbit@localhost HOME=/root /usr/lib/rabbitmq/bin/rabbitmq-server >/broker 2>&1 &
PYTHONPATH=/client timeout 300 python3 /run.py' | tee "$work/out"
sed -n 's/^#   //p' "$0" | diff - "$work/out"
