"""Ways to reach a Redis Cluster: TLS, one endpoint for all of it, other databases. And what is refused, and how."""

from __future__ import annotations

import itertools

import pytest
import trustme

from kombulite import Connection, Exchange, Queue
from kombulite.brokers.redis.cluster.slots import slot_of
from kombulite.brokers.redis.connector import has_one_slot
from kombulite.brokers.redis.options import Options
from kombulite.exceptions import AccessRefused, NotAllowed, RecoverableConnectionError
from tests.conftest import started
from tests.proxy import Proxy
from tests.redis.test_cluster import OWN, TAGGED, receive
from tests.servers import RedisNode, free_port, wait_until

PATIENCE = 20.0  # seconds


class TLSNode(RedisNode):
    """A node whose clients and neighbours speak TLS, or plainly at another port."""

    def __init__(self, folder, **options):
        super().__init__(
            tls_cert_file=folder / "cert.pem",
            tls_key_file=folder / "key.pem",
            tls_ca_cert_file=folder / "ca.pem",
            tls_auth_clients="no",
            tls_cluster="yes",  # else even clients that speak TLS are told the plain ports
            **options,
        )
        self.tls_port = self.options["tls-port"] = free_port()


def serve_all_slots(*nodes):
    """Make a cluster of each node. It waits for two seconds before it takes commands: all of them at once."""
    for node in nodes:
        node.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    for node in nodes:
        wait_until(lambda: "cluster_state:ok" in str(node.ask("CLUSTER", "INFO")), PATIENCE, "no cluster")  # noqa: B023


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    return folder


@pytest.fixture(scope="module")
def nodes(request, authority):
    """Two clusters of one node each, the second without scripts."""
    mute = {"rename-command EVAL": "", "rename-command EVALSHA": ""}
    found = started(request, lambda: TLSNode(authority)), started(request, lambda: RedisNode(**mute))
    serve_all_slots(*found)
    return found


@pytest.fixture
def node(nodes):
    return nodes[0]


@pytest.fixture
def configure(node):
    """Sets directives of the node until the end of the test."""
    before = {}

    def configure(**options):
        for name, value in options.items():
            directive = name.replace("_", "-")
            before.setdefault(directive, node.ask("CONFIG", "GET", directive)[1])
            node.ask("CONFIG", "SET", directive, value)

    yield configure
    for name, value in before.items():
        node.ask("CONFIG", "SET", name, value)


def round_trip(connection, name="reached"):
    exchange = Exchange(f"{name}-exchange", "topic")
    queue = Queue(name, exchange, routing_key="#")
    connection.Producer(exchange=exchange).publish("here", routing_key="key", declare=[queue])
    assert receive(connection, queue, 1) == ["here"]


# --- TLS


def test_a_cluster_over_tls(node, authority):
    for scheme in ("redisscluster", "valkeyscluster"):
        with Connection(f"{scheme}://127.0.0.1:{node.tls_port}/0?ssl_ca_certs={authority}/ca.pem") as connection:
            round_trip(connection)
            assert set(connection.transport._stream.streams) == {("127.0.0.1", node.tls_port)}
        with Connection(f"{scheme}://127.0.0.1:{node.tls_port}") as connection:
            with pytest.raises(RecoverableConnectionError, match="certificate"):
                connection.transport.connect()
    with Connection(f"rediss://127.0.0.1:{node.tls_port}/0?cluster=true&ssl_ca_certs={authority}/ca.pem") as connection:
        round_trip(connection)


# --- one endpoint


def announced(node):
    return {int(master[1]) for _, _, master in node.ask("CLUSTER", "SLOTS")}


@pytest.mark.parametrize("layout", [OWN, TAGGED], ids=["own", "tagged"])
def test_a_cluster_behind_one_endpoint(node, configure, layout):
    """The endpoint's address is all that nodes say of themselves: no connection goes past it."""
    with Proxy(node.port) as endpoint:
        # Redis 7.0 announces the one port only with the other.
        configure(cluster_announce_port=endpoint.port, cluster_announce_tls_port=node.tls_port)
        wait_until(lambda: announced(node) == {endpoint.port}, PATIENCE, "the endpoint is not announced")
        with Connection(f"rediscluster://127.0.0.1:{endpoint.port}", transport_options=layout) as connection:
            round_trip(connection)
            assert set(connection.transport._stream.streams) == {("127.0.0.1", endpoint.port)}
            assert set(connection.transport._protocol.receiver.listener.streams) == {("127.0.0.1", endpoint.port)}


def test_nodes_that_do_not_know_their_name_are_reached_where_they_were_asked(node, configure):
    configure(cluster_preferred_endpoint_type="unknown-endpoint")
    with Connection(f"rediscluster://localhost:{node.port}") as connection:
        round_trip(connection)
        assert set(connection.transport._stream.streams) == {("localhost", node.port)}


# --- databases


@pytest.mark.usefixtures("valkey_9")
@pytest.mark.parametrize("layout", [OWN, TAGGED], ids=["own", "tagged"])
def test_databases_of_a_cluster_are_apart(request, layout):
    node = started(request, lambda: RedisNode(cluster_databases=16))
    serve_all_slots(node)
    url = f"valkeycluster://127.0.0.1:{node.port}"
    with (
        Connection(f"{url}/0", transport_options=layout) as first,
        Connection(f"{url}/3", transport_options=layout) as third,
    ):
        first.Producer().publish("first", routing_key="same", declare=[Queue("same")])
        third.Producer().publish("third", routing_key="same", declare=[Queue("same")])
        assert receive(third, Queue("same"), 1) == ["third"]
        assert third.default_channel.basic_get("same") is None
        assert receive(first, Queue("same"), 1) == ["first"]
        round_trip(third, "exchanged")


def test_a_database_that_a_cluster_does_not_have_is_refused(node):
    with Connection(f"rediscluster://127.0.0.1:{node.port}/5") as connection:
        with pytest.raises(NotAllowed, match=r"(?i)select|DB index"):
            connection.connect()


# --- what is refused


def test_a_server_without_scripts_says_so(nodes):
    node = nodes[1]
    with Connection(f"rediscluster://127.0.0.1:{node.port}") as connection:
        connection.Producer().publish("x", routing_key="mute", declare=[Queue("mute")])
        with pytest.raises(AccessRefused, match=r"(?i)eval"):
            connection.default_channel.basic_get("mute")
        with pytest.raises(AccessRefused, match=r"(?i)eval"):
            connection.Consumer(Queue("mute"), on_message=print).consume()


def test_a_cluster_that_is_down_says_so(node):
    node.ask("CLUSTER", "DELSLOTS", 7)
    wait_until(lambda: "cluster_state:fail" in str(node.ask("CLUSTER", "INFO")), PATIENCE, "it is not down")
    url = f"rediscluster://127.0.0.1:{node.port}"
    with Connection(url, transport_options={"socket_timeout": 1}) as connection:
        for verb in (
            lambda: connection.Producer().publish("x", routing_key="down"),
            lambda: connection.channel().basic_get("down"),
            lambda: Queue("down")(connection.channel()).declare(),
        ):
            with pytest.raises(RecoverableConnectionError, match="CLUSTERDOWN"):
                verb()
    node.ask("CLUSTER", "ADDSLOTS", 7)
    wait_until(lambda: "cluster_state:ok" in str(node.ask("CLUSTER", "INFO")), PATIENCE, "it stays down")


# --- names


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("{a}", True), ("x{a}y", True), ("{a", False), ("{}", False), ("{}{a}", False), ("}{a}", True), ("", False)],
)
def test_a_tag_is_what_the_cluster_takes_for_one(text, is_one):
    """Only the first braces count."""
    assert has_one_slot(Options(global_keyprefix=text)) == is_one
    assert (slot_of(f"{text}one") == slot_of(f"{text}two")) == is_one


@pytest.mark.parametrize("options", [{"global_keyprefix": "{}"}, {"global_keyprefix": "x{}{shop}"}])
def test_a_prefix_that_keeps_the_cluster_from_seeing_tags_is_refused(options):
    with pytest.raises(ValueError, match="global_keyprefix"):
        Connection("rediscluster://", transport_options=options).connect()


NAMES = ["{}", "{a}{b}", "a{", "}{", "{{x}}", "{}{a}", "a b\tc", "%7D"]


@pytest.mark.parametrize("layout", [OWN, TAGGED, {"global_keyprefix": "p}{"}, {"global_keyprefix": "a:"}], ids=str)
def test_no_verb_crosses_slots_whatever_the_names(cluster, layout):
    """Names of queues, exchanges and keys, one the other's neighbour."""
    with Connection(cluster.url, transport_options=layout) as connection:
        channel = connection.channel()
        for name, other in itertools.pairwise([*NAMES, NAMES[0]]):
            exchange, news = (
                Exchange(name, "topic", channel=channel),
                Exchange(f"{name}news", "fanout", channel=channel),
            )
            queue = Queue(name, exchange, routing_key=other, channel=channel, max_priority=9, expires=60)
            second = Queue(other + "2", exchange, routing_key=other, channel=channel, message_ttl=60)
            listener = Queue(f"{name}listens", news, channel=channel, auto_delete=True)
            for each in (queue, second, listener):
                each.declare()
            producer = connection.Producer(channel, exchange=exchange)
            producer.publish(0, routing_key=other, priority=9)
            producer.publish_many([1, 2, 3], routing_key=other)
            producer.publish(4, exchange="", routing_key=name, expiration=60)
            producer.publish(5, exchange=news)
            assert queue.queue_declare(passive=True).message_count == 5
            channel.basic_get(name).requeue()
            channel.basic_get(name).reject()
            assert sorted(receive(connection, [queue, second, listener], 8)) == [0, 0, 1, 2, 2, 3, 3, 4]
            assert queue.purge() == second.purge() == 0
            second.unbind_from(exchange, other)
            assert second.delete(if_empty=True) == queue.delete() == 0
            listener.delete()
            for each in (exchange, news):
                each.delete()
