"""Redis Cluster: which key is where, and what happens while slots move. test_cluster_faults.py kills nodes."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
import redis
from click.testing import CliRunner

from kombulite import Connection, Exchange, Queue, aio
from kombulite._core import pack_command
from kombulite.brokers.redis.cluster.keys import tag_of
from kombulite.brokers.redis.cluster.slots import Refusal, SlotMap, refusal_of, slot_of
from kombulite.brokers.redis.maintainer import LeaseMaintainer
from kombulite.cli.commands import kombulite
from kombulite.exceptions import AccessRefused, MessageReturned, NotAllowed, RecoverableConnectionError
from tests.servers import RedisNode, RedisServer

OWN, TAGGED = {}, {"hash_tag": "{shop}"}
LAYOUTS = pytest.mark.parametrize("layout", [OWN, TAGGED], ids=["own", "tagged"])


def connect(cluster, layout, **options):
    return Connection(cluster.url, transport_options={**layout, **options})


def receive(connection, queues, count, **options):
    """The payloads of the next messages, each acknowledged."""
    payloads = []

    def note(message):
        payloads.append(message.payload)
        message.ack()

    with connection.Consumer(queues, on_message=note, **options):
        while len(payloads) < count:
            connection.drain_events(timeout=20)
    return payloads


def keys(cluster):
    return {key for node in cluster.masters for key in node.ask("KEYS", "*")}


def slot_in(layout, queue):
    return slot_of(layout.get("hash_tag") or tag_of(queue))


def move(cluster, slot, at_once=False):
    """Move a slot to the next of the nodes that have slots now: key by key, or all of it at once."""
    owner = cluster.master_of(slot)
    serving = cluster.serving(owner)
    owners = [node for node in cluster.nodes if node is owner or node.port in serving]
    target = owners[(owners.index(owner) + 1) % len(owners)]
    (cluster.move_slot_at_once if at_once else cluster.move_slot)(slot, target)


# --- where keys are


def test_own_layout_spreads_queues_over_the_nodes(cluster):
    with connect(cluster, OWN) as connection:
        producer = connection.Producer()
        for number in range(30):
            producer.publish(number, routing_key=f"q{number}", declare=[Queue(f"q{number}")])
    for number in range(30):
        node = cluster.master_of(slot_of(f"{{q{number}}}"))
        assert node.ask("LLEN", f"{{q{number}}}:q{number}") == 1
    assert len({cluster.master_of(slot_of(f"{{q{number}}}")).port for number in range(30)}) == 3


def test_tagged_layout_is_that_of_a_single_server(cluster, redis_url):
    exchange = Exchange("shop", "topic")
    queue = Queue("orders", exchange, routing_key="order.#", max_priority=9)
    plain = {}
    for name, url, options in (("cluster", cluster.url, TAGGED), ("single", redis_url, {"global_keyprefix": "{shop}"})):
        with Connection(url, transport_options=options) as connection:
            producer = connection.Producer(exchange=exchange)
            for priority in (0, 3, 9):
                producer.publish("same", routing_key="order.new", priority=priority, declare=[queue])
            stored = {}
            nodes = [node.ask for node in cluster.masters]
            if name == "single":
                client = redis.Redis.from_url(redis_url, decode_responses=True)
                nodes = [client.execute_command]
            for ask in nodes:
                for key in ask("KEYS", "{shop}*"):
                    stored[key] = ask("TYPE", key)
            plain[name] = stored
            connection.default_channel.queue_delete("orders")
            connection.default_channel.exchange_delete("shop")
    assert plain["cluster"] == plain["single"]
    assert "{shop}orders\x06\x169" in plain["cluster"]


@pytest.mark.parametrize("name", ["{a}b", "}x", "a}{b", "{}", "%7D", "per%cent", "ünï", "a\r\nb"])
def test_any_name_of_a_queue_keeps_its_keys_together(cluster, name):
    with connect(cluster, OWN) as connection:
        connection.Producer().publish("kept", routing_key=name, priority=9, declare=[Queue(name)])
        assert receive(connection, Queue(name), 1) == ["kept"]
        connection.default_channel.queue_delete(name)
    assert not [key for key in keys(cluster) if "_kombulite}" not in key]


@LAYOUTS
def test_nothing_is_left_after_work(cluster, layout):
    exchange = Exchange("shop", "direct")
    queue = Queue("orders", exchange, routing_key="new")
    with connect(cluster, layout) as connection:
        connection.Producer(exchange=exchange).publish("x", routing_key="new", declare=[queue])
        assert receive(connection, queue, 1) == ["x"]
        bound = queue(connection)
        bound.delete()
        connection.default_channel.exchange_delete("shop")
    with connect(cluster, layout) as connection:
        assert not any(key.endswith(("orders", "unacked", "unacked_index")) for key in keys(cluster))


# --- publishing


@LAYOUTS
def test_a_publish_reaches_queues_on_all_nodes(cluster, layout):
    exchange = Exchange("news", "topic")
    queues = [Queue(f"n{number}", exchange, routing_key="#") for number in range(12)]
    with connect(cluster, layout) as connection:
        producer = connection.Producer(exchange=exchange)
        producer.publish(1, routing_key="a.b", declare=queues)
        producer.publish_many(range(2, 50), routing_key="a.b")
        for queue in queues:
            assert queue(connection).queue_declare(passive=True).message_count == 49


@LAYOUTS
def test_a_batch_for_many_queues_keeps_the_order_of_each(cluster, layout):
    with connect(cluster, layout) as connection:
        producer = connection.Producer()
        with producer.batch():
            for number in range(600):
                producer.publish(number, routing_key=f"b{number % 60}")
        queues = [Queue(f"b{number}") for number in range(60)]
        found = receive(connection, queues, 600, prefetch_count=40)
        for place in range(60):
            assert [each for each in found if each % 60 == place] == list(range(place, 600, 60))


def scripts(cluster):
    """How many scripts the nodes have run."""
    stats = [node.ask("INFO", "commandstats") for node in cluster.masters]
    names = ("cmdstat_eval", "cmdstat_evalsha")
    return sum(int(each.get(name, {"calls": 0})["calls"]) for each in stats for name in names)


def test_nodes_that_have_enough_for_a_consumer_take_turns(cluster):
    queues = [Queue(f"turns{number}") for number in range(30)]
    found, run = [], {}

    def note(message):
        found.append(message.payload)
        message.ack()
        if len(found) in (300, 2300):
            run[len(found)] = scripts(cluster)

    with connect(cluster, OWN) as connection:
        producer = connection.Producer()
        with producer.batch():
            for number in range(3000):
                producer.publish(number % 30, routing_key=queues[number % 30].name)
        with connection.Consumer(queues, on_message=note, prefetch_count=200):
            while len(found) < 3000:
                connection.drain_events(timeout=20)
    # One node for all of the credit, which is 100 at a time; not each of the three for its share.
    assert run[2300] - run[300] < 40
    assert set(found[:600]) == set(range(30))  # no queue waits until others are empty
    assert sorted(found) == sorted([*range(30)] * 100)


@LAYOUTS
def test_a_binding_is_known_to_publishers_at_once(cluster, layout):
    exchange = Exchange("late", "direct")
    with connect(cluster, layout) as publisher, connect(cluster, layout) as consumer:
        producer = publisher.Producer(exchange=exchange)
        producer.publish("lost", routing_key="key", declare=[exchange])
        with pytest.raises(MessageReturned):
            producer.publish("returned", routing_key="key", mandatory=True)
        queue = Queue("late", exchange, routing_key="key")
        queue(consumer).declare()
        producer.publish("kept", routing_key="key", mandatory=True)
        assert receive(consumer, queue, 1) == ["kept"]


@LAYOUTS
def test_fanout_reaches_every_consumer(cluster, layout):
    exchange = Exchange("all", "fanout")
    with connect(cluster, layout) as first, connect(cluster, layout) as second, connect(cluster, layout) as publisher:
        found = {}
        for name, connection in (("one", first), ("two", second)):
            found[name] = []
            consumer = connection.Consumer(Queue(name, exchange), no_ack=True, on_message=found[name].append)
            consumer.consume()
        producer = publisher.Producer(exchange=exchange)
        while not all(found.values()):  # a subscription takes effect when its node has it
            producer.publish("hello", declare=[exchange])
            for connection in (first, second):
                connection.drain(0.05)
        assert {message.payload for messages in found.values() for message in messages} == {"hello"}


# --- slots that move


@LAYOUTS
def test_a_consumer_that_waits_is_woken_where_its_queue_has_gone(cluster, layout, at_once):
    with connect(cluster, layout, health_check_interval=600) as consumer, connect(cluster, layout) as publisher:
        producer, queue = publisher.Producer(), Queue("moving")
        received, done = [], threading.Event()

        def note(message):
            received.append(message.payload)
            message.ack()
            if len(received) == 7:
                done.set()

        def consume():
            with consumer.Consumer(queue, on_message=note):
                while not done.is_set():
                    consumer.drain(20)

        thread = threading.Thread(target=consume)
        thread.start()
        try:
            producer.publish(0, routing_key="moving", declare=[queue])
            for number in range(1, 7):
                move(cluster, slot_in(layout, "moving"), at_once)
                producer.publish(number, routing_key="moving")
            assert done.wait(30)
        finally:
            done.set()
            thread.join(40)
        assert received == list(range(7))


@LAYOUTS
def test_what_is_out_is_acknowledged_where_it_has_gone(cluster, layout, at_once):
    with connect(cluster, layout) as connection:
        connection.Producer().publish_many(range(20), routing_key="gone")
        channel = connection.channel()
        messages = [channel.basic_get("gone") for _ in range(20)]
        move(cluster, slot_in(layout, "gone"), at_once)
        for message in messages[:10]:
            message.ack()
        for message in messages[10:]:
            message.requeue()
        assert sorted(receive(connection, Queue("gone"), 10)) == list(range(10, 20))
    assert not any("unacked" in key for key in keys(cluster))


@LAYOUTS
def test_messages_come_and_go_while_a_slot_is_on_its_way(cluster, layout):
    slot = slot_in(layout, "ask")
    source = cluster.master_of(slot)
    target = next(node for node in cluster.masters if node is not source)
    with connect(cluster, layout) as connection:
        producer = connection.Producer()
        producer.publish(0, routing_key="ask", declare=[Queue("ask")])
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id)
        while found := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *found)
        for number in range(1, 5):  # ASK: the list has gone, its slot has not
            producer.publish(number, routing_key="ask")
        ends = threading.Timer(0.1, lambda: cluster.finish_move(slot, target))
        ends.start()  # a claim needs several keys, so it waits for the end (TRYAGAIN)
        assert receive(connection, Queue("ask"), 5) == list(range(5))
        ends.join()


# --- what is no cluster


def test_a_server_alone_is_refused(redis_url):
    with Connection(redis_url.replace("redis://", "rediscluster://")) as connection:
        with pytest.raises(NotAllowed, match=r"not in cluster mode: use redis://"):
            connection.connect()


@pytest.mark.parametrize("tag", ["shop", "{}", "}{"])
def test_a_hash_tag_has_braces(tag):
    with pytest.raises(ValueError, match="hash_tag"):
        Connection("rediscluster://", transport_options={"hash_tag": tag}).connect()


def test_one_of_the_nodes_is_enough_to_find_the_others(cluster):
    with RedisServer() as gone:
        url = gone.url.replace("redis://", "rediscluster://")
    urls = [url, *(f"rediscluster://127.0.0.1:{node.port}" for node in cluster.masters)]
    with Connection(urls) as connection:
        connection.Producer().publish("found", routing_key="seeds", declare=[Queue("seeds")])
        assert receive(connection, Queue("seeds"), 1) == ["found"]


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:{}?cluster=true", "redis://127.0.0.1:{}", "valkeycluster://127.0.0.1:{}"]
)
def test_other_ways_to_name_a_cluster(cluster, url):
    options = {} if "cluster" in url else {"cluster": True}
    with Connection(url.format(cluster.nodes[0].port), transport_options=options) as connection:
        connection.Producer().publish("here", routing_key="named", declare=[Queue("named")])
        assert receive(connection, Queue("named"), 1) == ["here"]
        assert connection.transport.driver_type == "rediscluster"


# --- the command line, and moves between layouts


def run(*arguments):
    result = CliRunner().invoke(kombulite, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_ping_and_queues_show_nodes_and_slots(cluster):
    with connect(cluster, OWN) as connection:
        connection.Producer().publish(1, routing_key="seen", declare=[Queue("seen")])
    node = cluster.master_of(slot_of("{seen}"))
    answer = json.loads(run("ping", "-b", cluster.url, "--json"))
    assert answer["nodes"].keys() == {f"127.0.0.1:{each.port}" for each in cluster.masters}
    assert all(what.startswith("slots ") for what in answer["nodes"].values())
    (status,) = json.loads(run("queues", "-b", cluster.url, "--json", "seen"))
    assert (status["message_count"], status["place"]) == (1, f"slot {slot_of('{seen}')}, 127.0.0.1:{node.port}")
    assert "slots " in run("ping", "-b", cluster.url)


def test_run_moves_a_stream_over_a_cluster(cluster):
    answer = json.loads(run("run", "--broker", cluster.url, "--messages", "2000", "--json"))
    assert answer["consumed"] >= 2000


def test_queues_move_from_a_single_server_and_between_layouts(cluster, redis_url):
    name = f"move{cluster.nodes[0].port}"
    with Connection(redis_url) as connection:
        connection.Producer().publish_many(range(20), routing_key=name, declare=[Queue(name)])
    tagged = ("hash_tag={shop}",)
    run("move", "-b", redis_url, name, name, "--to-broker", cluster.url, "--declare")
    run(
        "move", "-b", cluster.url, name, name, "--to-broker", cluster.url, "--to-transport-option", *tagged, "--declare"
    )
    with connect(cluster, OWN) as connection:
        assert connection.default_channel.basic_get(name) is None
    with connect(cluster, TAGGED) as connection:
        assert receive(connection, Queue(name), 20) == list(range(20))


# --- errors


def test_a_cluster_without_a_master_for_a_slot_says_so(start_server):
    with RedisNode() as node:
        node.ask("CLUSTER", "ADDSLOTSRANGE", 0, 100)
        options = {"socket_timeout": 1}
        with Connection(f"rediscluster://127.0.0.1:{node.port}", transport_options=options) as connection:
            with pytest.raises(RecoverableConnectionError, match=r"no master for slot|CLUSTERDOWN"):
                connection.Producer().publish("x", routing_key="orders", retry=False)


@LAYOUTS
def test_a_user_without_rights_is_refused(cluster, layout):
    for node in cluster.masters:
        node.ask("ACL", "SETUSER", "clerk", "on", ">pw", "~*", "&*", "+@all", "-rpop", "-lpush")
    url = cluster.url.replace("://", "://clerk:pw@")
    with Connection(url, transport_options=layout) as connection:
        with pytest.raises(AccessRefused):
            connection.Producer().publish("x", routing_key="orders", retry=False)
        with pytest.raises(AccessRefused):
            connection.default_channel.basic_get("orders")


def test_a_user_without_scripts_is_refused(cluster):
    for node in cluster.masters:
        node.ask("ACL", "SETUSER", "mute", "on", ">pw", "~*", "&*", "+@all", "-eval", "-evalsha")
    with Connection(cluster.url.replace("://", "://mute:pw@")) as connection:
        with pytest.raises(AccessRefused):
            connection.default_channel.basic_get("orders")


@LAYOUTS
def test_a_user_whom_no_node_tells_of_changes_looks_now_and_then(cluster, layout):
    for node in cluster.masters:
        node.ask("ACL", "SETUSER", "blind", "on", ">pw", "~*", "&*", "+@all", "-client|tracking")
    url = cluster.url.replace("://", "://blind:pw@")
    with Connection(url, transport_options=layout) as connection, connect(cluster, layout) as publisher:
        for number in range(3):
            publisher.Producer().publish(number, routing_key="looked", declare=[Queue("looked")])
            assert receive(connection, Queue("looked"), 1) == [number]


def test_a_user_that_one_node_does_not_know_is_refused(cluster):
    cluster.masters[0].ask("ACL", "SETUSER", "local", "on", ">pw", "~*", "&*", "+@all")
    with Connection(cluster.url.replace("://", "://local:pw@")) as connection:
        with pytest.raises(AccessRefused):
            for number in range(30):
                connection.Producer().publish("x", routing_key=f"q{number}", retry=False)


# --- the command line


@LAYOUTS
def test_top_reads_the_queues_of_all_nodes(cluster, layout):
    options = [f"--transport-option={name}={value}" for name, value in layout.items()]
    with connect(cluster, layout) as connection:
        for number in range(12):
            connection.Producer().publish_many([0] * (number + 1), routing_key=f"top{number}")
        names = [f"--queue=top{number}" for number in range(12)]
        result = CliRunner().invoke(kombulite, ["top", cluster.url, *options, *names, "--json", "--count", "1"])
    assert result.exit_code == 0
    (broker,) = json.loads(result.output)["brokers"]
    assert broker["error"] is None
    assert {each["queue"]: each["ready"] for each in broker["queues"]} == {f"top{n}": n + 1 for n in range(12)}


# --- fleets and loops


@LAYOUTS
def test_on_an_event_loop(cluster, layout):
    async def work():
        async with aio.connect(cluster.url, transport_options=layout) as connection:
            queue = Queue("looped")
            await connection.declare(queue)
            producer = connection.producer()
            for number in range(20):
                await producer.publish(number, "looped")
            found = []
            async with connection.consume(queue, prefetch=5) as messages:
                async for message in messages:
                    async with message.process():
                        found.append(message.payload)
                    if len(found) == 20:
                        break
        return found

    assert asyncio.run(asyncio.wait_for(work(), 30)) == list(range(20))


@LAYOUTS
def test_a_sign_of_life_without_an_answer_is_left_to_nobody(cluster, layout):
    with connect(cluster, layout, health_check_interval=0.01) as lost:
        lost.default_channel.basic_get("alive")
        transport = lost.transport
        for stream in transport._stream.streams.values():
            stream.used_at -= 1
            stream.keep_alive()  # a PING, whose reply nobody reads
        transport.collect()
    with connect(cluster, layout) as following:
        assert following.default_channel.basic_get("alive") is None


# --- what is sent again, and what is not


def test_bindings_that_are_read_while_their_slot_moves_are_read_again(cluster):
    exchange = Exchange("passing", "direct")
    first, second = (Queue(name, exchange, routing_key="key") for name in ("first", "second"))
    slot = slot_of(tag_of("passing"))
    source = cluster.master_of(slot)
    target = next(node for node in cluster.masters if node is not source)
    with connect(cluster, OWN, health_check_interval=600) as publisher, connect(cluster, OWN) as other:
        producer = publisher.Producer(exchange=exchange)
        producer.publish(0, routing_key="key", declare=[first])
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id)
        while found := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *found)
        producer.publish(1, routing_key="key")
        cluster.finish_move(slot, target)
        second(other).declare()
        producer.publish(2, routing_key="key")
        assert receive(other, second, 1) == [2]


def test_a_consumer_for_whose_leases_no_thread_starts_may_be_tried_again(monkeypatch):
    transport = Connection("rediscluster://").transport

    def refuse(maintainer):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(LeaseMaintainer, "start", refuse)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            transport._keep(None)


def test_of_what_was_refused_only_acks_are_sent_over_the_next_connection():
    nodes = Connection("rediscluster://").transport._stream
    claim, ack = pack_command(("EVALSHA", "sha", 1, "{q}:q")), pack_command(("HDEL", "{q}:unacked", "tag"))
    nodes.post(claim, 1, print)
    nodes.post(ack, 1, print, may_repeat=True)
    assert [data for _, data, _ in nodes.unanswered] == [ack]


def test_what_no_node_took_in_time_has_an_error_for_a_reply(monkeypatch):
    """Also if the time ends between the look for a node and the next try."""
    nodes = Connection("rediscluster://").transport._stream
    times = iter([0.0, 0.0, 2.0])
    monkeypatch.setattr("kombulite.brokers.redis.cluster.nodes.monotonic", lambda: next(times))
    with pytest.raises(RecoverableConnectionError, match="no master for slot"):
        nodes.ask(pack_command(("LPUSH", "{q}:q", "x")), 1)


def test_a_publish_to_several_nodes_keeps_its_timeout(cluster):
    exchange = Exchange("late", "direct")
    queues = [Queue(f"late{number}", exchange, routing_key="key") for number in range(12)]
    silent = cluster.master_of(slot_of(tag_of("late0")))
    with connect(cluster, OWN, socket_timeout=600) as connection:
        producer = connection.Producer(exchange=exchange)
        producer.publish("x", routing_key="key", declare=queues)
        silent.pause()
        try:
            with pytest.raises((RecoverableConnectionError, OSError)):
                producer.publish("y", routing_key="key", timeout=0.5, retry=False)
        finally:
            silent.resume()
            cluster.wait_until_ok()


@pytest.mark.parametrize("port", ["99999", "-1", "x", "9" * 5000, "\uff11"])
def test_an_address_without_a_port_is_no_address(port):
    assert refusal_of(f"MOVED 1 127.0.0.1:{port}", ("a", 1)) == Refusal("MOVED")


def test_slots_of_a_node_without_a_port_make_no_sense():
    with pytest.raises(RecoverableConnectionError):
        SlotMap().update([[0, 1, [b"127.0.0.1", 99999]]], ("a", 1))
