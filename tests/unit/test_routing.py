"""The routing table: each lookup beside a naive model of it."""

import subprocess
import sys
from decimal import Decimal
from enum import Enum, IntEnum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kombulite._core import Binding, RoutingTable, UnknownExchange
from tests.fuzz.fuzz_routing import topic_matches


def table_of(kind, *bindings, **options):
    """A table with one exchange "e" and (queue, routing key, arguments) bound to it."""
    table = RoutingTable()
    table.declare("e", kind, **options)
    for queue, *rest in bindings:
        assert table.bind("e", queue, *rest)
    return table


def reached(table, key="", headers=None, exchange="e"):
    queues = table.route(exchange, key, headers)
    assert type(queues) is tuple
    assert len(set(queues)) == len(queues)
    return set(queues)


# --- exchanges


@pytest.mark.parametrize("kind", ["direct", "fanout", "topic", "headers"])
def test_exchange_without_bindings_reaches_nothing(kind):
    assert reached(table_of(kind), "k") == set()


@pytest.mark.parametrize("kind", ["", "Direct", "x-delayed-message"])
def test_unknown_exchange_type(kind):
    with pytest.raises(ValueError, match="unknown exchange type"):
        RoutingTable().declare("e", kind)


def test_declaring_again_changes_nothing():
    table = table_of("direct", ("q", "k"))
    table.declare("e", "fanout", alternate="other")
    assert reached(table, "k") == {"q"}
    assert reached(table, "x") == set()


def test_contains():
    table = table_of("direct")
    assert "e" in table
    assert "" in table
    assert "x" not in table
    table.delete("e")
    assert "e" not in table


@pytest.mark.parametrize(("kind", "pattern"), [("direct", "a.b"), ("topic", "a.*"), ("fanout", "")])
def test_a_key_that_was_looked_up_before_follows_the_bindings(kind, pattern):
    table = table_of(kind, ("q", pattern))
    assert reached(table, "a.b") == {"q"}
    table.bind("e", "r", pattern)
    assert reached(table, "a.b") == {"q", "r"}
    table.unbind("e", "q", pattern)
    assert reached(table, "a.b") == {"r"}
    table.delete_queue("r")
    assert reached(table, "a.b") == set()
    table.declare("f", "fanout")
    table.bind("f", "s")
    table.bind("e", "f", pattern, None, True)
    assert reached(table, "a.b") == {"s"}
    table.unbind("f", "s")
    assert reached(table, "a.b") == set()


def test_a_binding_that_goes_during_a_lookup_is_not_remembered():
    leaving = []

    class Leaving(str):  # as a queue whose connection a garbage collection closes
        def __hash__(self):
            if leaving:
                table.unbind("e", leaving.pop(), "*.b")
            return super().__hash__()

    table = table_of("topic", ("r", "#"), (Leaving("q"), "*.b"))
    leaving.append(Leaving("q"))
    table.route("e", "a.b")
    assert not leaving
    assert reached(table, "a.b") == {"r"}


def test_more_keys_than_are_remembered_reach_their_queues():
    table = table_of("topic", ("q", "*.even"), ("r", "#"))
    for number in [*range(1500), *range(1500)]:
        assert reached(table, f"{number}.odd" if number % 2 else f"{number}.even") == (
            {"r"} if number % 2 else {"q", "r"}
        )


def test_default_exchange_leads_to_the_name():
    assert RoutingTable().route("", "some.queue") == ("some.queue",)
    assert RoutingTable().route("", "") == ("",)


@pytest.mark.parametrize(
    "call",
    [
        lambda table: table.route("x", "k"),
        lambda table: table.bind("x", "q", "k"),
        lambda table: table.unbind("x", "q", "k"),
        lambda table: table.delete("x"),
        lambda table: table.bindings("x"),
        lambda table: table.bind("e", "x", "k", None, True),
        lambda table: table.bind("x", "e", "k", None, True),
        lambda table: table.bind("", "q", "k"),
        lambda table: table.bind("e", "", "k", None, True),
        lambda table: table.delete(""),
    ],
)
def test_unknown_exchange(call):
    table = table_of("direct")
    with pytest.raises(UnknownExchange):
        call(table)
    assert table.bindings("e") == []


def test_unknown_exchange_is_a_lookup_error():
    assert issubclass(UnknownExchange, LookupError)


# --- direct, fanout


def test_direct():
    table = table_of("direct", ("q1", "k"), ("q2", "k"), ("q3", "other"), ("q4", ""))
    assert reached(table, "k") == {"q1", "q2"}
    assert reached(table, "other") == {"q3"}
    assert reached(table, "") == {"q4"}
    assert reached(table, "K") == set()


def test_fanout():
    table = table_of("fanout", ("q1",), ("q2", "k"), ("q2", "other"))
    assert reached(table, "whatever") == {"q1", "q2"}


def test_queue_may_be_any_hashable():
    class Queue:
        pass

    queue = Queue()
    table = table_of("direct", (queue, "k"), (("a", 1), "k"))
    assert reached(table, "k") == {queue, ("a", 1)}


@pytest.mark.parametrize("kind", ["direct", "fanout", "topic", "headers"])
def test_two_bindings_reach_a_queue_once(kind):
    table = table_of(kind, ("q", "k"), ("q", "k", {"n": 1}), ("q", "k", {"n": 2, "x-match": "any"}))
    assert table.route("e", "k", {"n": 2}) == ("q",)


# --- bindings


@pytest.mark.parametrize("kind", ["direct", "fanout", "topic", "headers"])
def test_binding_twice_is_one_binding(kind):
    table = table_of(kind, ("q", "k", {"n": [1, {"m": b"x"}]}))
    assert table.bind("e", "q", "k", {"n": [1, {"m": b"x"}]}) is False
    assert table.bindings("e") == [Binding("e", "q", "k", {"n": [1, {"m": b"x"}]}, False)]
    assert table.unbind("e", "q", "k", {"n": [1, {"m": b"x"}]}) is True
    assert reached(table, "k", {"n": [1, {"m": b"x"}]}) == set()
    assert table.bindings("e") == []


@pytest.mark.parametrize("kind", ["direct", "fanout", "topic", "headers"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (None, {"n": 1}),
        ({"n": 1}, {"n": 2}),
        ({"n": 1}, {"n": True}),
        ({"n": 1}, {"n": 1.0}),
        ({"n": [1]}, {"n": [1, 1]}),
        ({"n": {"a": 1}}, {"n": {"b": 1}}),
        ({"n": 1}, {"n": 1, "x-match": "any"}),
    ],
)
def test_bindings_with_other_arguments_are_others(kind, first, second):
    table = table_of(kind, ("q", "k", first), ("q", "k", second))
    assert len(table.bindings("e")) == 2
    assert table.unbind("e", "q", "k", first) is True
    assert [binding.arguments for binding in table.bindings("e")] == [second]
    assert table.unbind("e", "q", "k", first) is False
    assert table.unbind("e", "q", "k", second) is True
    assert table.bindings("e") == []


def test_arguments_in_another_order_are_the_same():
    table = table_of("headers", ("q", "", {"a": 1, "b": 2}))
    assert table.bind("e", "q", "", {"b": 2, "a": 1}) is False


def test_empty_arguments_are_none():
    table = table_of("direct", ("q", "k", {}))
    assert table.bind("e", "q", "k", None) is False


@pytest.mark.parametrize(
    "other",
    [("x", "k", None, False), ("q", "x", None, False), ("q", "k", {"n": 1}, False), ("e", "k", None, True)],
)
def test_unbinding_what_is_not_bound(other):
    table = table_of("direct", ("q", "k"))
    assert table.unbind("e", *other) is False
    assert reached(table, "k") == {"q"}


@pytest.mark.parametrize("kind", ["direct", "fanout", "topic", "headers"])
def test_what_is_unbound_can_be_bound_again(kind):
    table = table_of(kind)
    for _ in range(3):
        assert table.bind("e", "q", "k.#", {"n": 1}) is True
        assert table.bind("e", "p", "k.#", {"n": 1}) is True
        assert reached(table, "k.#", {"n": 1}) == {"q", "p"}
        assert table.unbind("e", "q", "k.#", {"n": 1}) is True
        assert reached(table, "k.#", {"n": 1}) == {"p"}
        assert table.unbind("e", "p", "k.#", {"n": 1}) is True
        assert reached(table, "k.#", {"n": 1}) == set()


def test_callers_arguments_stay_theirs():
    arguments = {"n": 1}
    table = table_of("headers", ("q", "", arguments))
    arguments["n"] = 2
    assert reached(table, "", {"n": 1}) == {"q"}
    assert table.unbind("e", "q", "", {"n": 1}) is True


def test_queue_and_exchange_of_one_name_are_two():
    table = table_of("direct")
    table.declare("x", "fanout")
    table.bind("x", "below", "")
    assert table.bind("e", "x", "k") is True
    assert table.bind("e", "x", "k", None, True) is True
    assert reached(table, "k") == {"x", "below"}
    table.unbind("e", "x", "k")
    assert reached(table, "k") == {"below"}


def test_deleting_a_queue_removes_its_bindings():
    table = table_of("topic", ("q", "a.*"), ("q", "#"), ("p", "#"))
    table.declare("d", "direct")
    table.bind("d", "q", "k")
    gone = table.delete_queue("q")
    assert sorted(gone) == [
        Binding("d", "q", "k", {}, False),
        Binding("e", "q", "#", {}, False),
        Binding("e", "q", "a.*", {}, False),
    ]
    assert reached(table, "a.b") == {"p"}
    assert reached(table, "k", exchange="d") == set()
    assert table.delete_queue("q") == []
    assert table.delete_queue("never seen") == []


def test_deleting_an_exchange_removes_bindings_from_and_to_it():
    table = table_of("fanout", ("q",))
    for name in ("above", "below"):
        table.declare(name, "fanout")
    table.bind("below", "p")
    table.bind("above", "e", "", None, True)
    table.bind("e", "below", "", None, True)
    assert reached(table, exchange="above") == {"q", "p"}
    assert sorted(table.delete("e")) == [
        Binding("above", "e", "", {}, True),
        Binding("e", "below", "", {}, True),
        Binding("e", "q", "", {}, False),
    ]
    assert table.bindings("above") == []
    assert reached(table, exchange="above") == set()
    assert reached(table, exchange="below") == {"p"}
    assert table.delete_queue("q") == []


def test_deleting_an_exchange_bound_to_itself_names_that_binding_once():
    table = table_of("fanout")
    table.bind("e", "e", "", None, True)
    assert table.delete("e") == [Binding("e", "e", "", {}, True)]


def test_exchange_declared_again_starts_empty():
    table = table_of("fanout", ("q",))
    table.declare("above", "fanout")
    table.bind("above", "e", "", None, True)
    table.delete("e")
    table.declare("e", "direct")
    table.bind("e", "p", "")
    assert reached(table) == {"p"}
    assert reached(table, exchange="above") == set()


# --- exchange to exchange, alternates


def test_chain_of_exchanges():
    table = table_of("topic", ("q0", "a.b"))
    table.declare("d", "direct")
    table.declare("f", "fanout")
    table.bind("e", "d", "a.#", None, True)
    table.bind("d", "q1", "a.b")
    table.bind("d", "f", "a.b", None, True)
    table.bind("f", "q2")
    table.bind("f", "q0")
    assert reached(table, "a.b") == {"q0", "q1", "q2"}
    assert reached(table, "a.c") == set()
    table.unbind("e", "d", "a.#", None, True)
    assert reached(table, "a.b") == {"q0"}


def test_cycle_of_exchanges():
    table = table_of("fanout", ("q0",))
    for source, destination in (("e", "e"), ("e", "f"), ("f", "g"), ("g", "e")):
        table.declare(destination, "fanout")
        table.bind(source, destination, "", None, True)
        table.bind(destination, f"q-{destination}")
    assert reached(table) == reached(table, exchange="g") == {"q0", "q-e", "q-f", "q-g"}


def test_headers_go_along_to_the_next_exchange():
    table = table_of("fanout")
    table.declare("h", "headers")
    table.bind("e", "h", "", None, True)
    table.bind("h", "q", "", {"n": 1})
    assert reached(table, "", {"n": 1}) == {"q"}
    assert reached(table, "", {"n": 2}) == set()


def test_alternate_takes_what_finds_nothing():
    table = table_of("direct", ("q", "k"), alternate="alt")
    assert reached(table, "x") == set()
    table.declare("alt", "fanout")
    table.bind("alt", "rest")
    assert reached(table, "x") == {"rest"}
    assert reached(table, "k") == {"q"}
    table.delete("alt")
    assert reached(table, "x") == set()


def test_alternates_chain():
    table = table_of("direct", alternate="a")
    table.declare("a", "direct", alternate="b")
    table.declare("b", "fanout", alternate="c")
    table.bind("a", "qa", "ka")
    table.bind("b", "qb")
    assert reached(table, "ka") == {"qa"}
    assert reached(table, "x") == {"qb"}


def test_alternates_in_a_cycle():
    table = table_of("direct", alternate="a")
    table.declare("a", "direct", alternate="e")
    assert reached(table, "x") == set()
    own = table_of("direct", alternate="e")
    assert reached(own, "x") == set()


def test_alternate_of_an_exchange_below():
    table = table_of("fanout", ("q",))
    table.declare("d", "direct", alternate="alt")
    table.declare("alt", "fanout")
    table.bind("alt", "rest")
    table.bind("e", "d", "", None, True)
    assert reached(table, "x") == {"q", "rest"}


def test_alternate_is_not_asked_where_an_exchange_matches():
    table = table_of("fanout", alternate="alt")
    table.declare("empty", "direct")
    table.declare("alt", "fanout")
    table.bind("alt", "rest")
    table.bind("e", "empty", "", None, True)
    assert reached(table, "x") == set()


# --- topic


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("a", ["a"], ["", "b", "a.a", "a.", ".a", "A"]),
        ("*", ["a", "*", "#"], ["", "a.b", "."]),
        ("#", ["", "a", "a.b.c", ".", ".."], []),
        ("a.*", ["a.b", "a."], ["a", "a.b.c", "b.a"]),
        ("*.a", ["b.a", ".a"], ["a", "c.b.a"]),
        ("a.#", ["a", "a.b", "a.b.c", "a."], ["", "b", "b.a"]),
        ("#.a", ["a", "b.a", ".a"], ["", "a.b"]),
        ("a.#.b", ["a.b", "a.x.b", "a.x.y.b", "a.b.b"], ["a", "b", "a.b.c"]),
        ("#.#", ["", "a", "a.b"], []),
        ("*.#", ["a", "a.b", "."], [""]),
        ("#.*", ["a", "a.b"], [""]),
        ("*.*", ["a.b", "."], ["a", "a.b.c"]),
        ("#.*.#.*.#", ["a.b", "a.b.c"], ["", "a"]),
        ("", [""], ["a", "."]),
        ("a..b", ["a..b"], ["a.b", "a.x.b"]),
        ("a.*.b", ["a..b", "a.x.b"], ["a.b"]),
        ("a*.b#", ["a*.b#"], ["ax.bx", "a.b"]),
    ],
)
def test_topic(pattern, matching, others):
    table = table_of("topic", ("q", pattern))
    for key in matching:
        assert reached(table, key) == {"q"}, key
        assert topic_matches(pattern, key), key
    for key in others:
        assert reached(table, key) == set(), key
        assert not topic_matches(pattern, key), key


words = st.sampled_from(["a", "b", "c", "*", "#", ""])
patterns = st.lists(words, max_size=6).map(".".join)


@settings(deadline=None, max_examples=500)
@given(st.lists(patterns, max_size=12), st.lists(patterns, min_size=1, max_size=5), st.data())
def test_topic_is_what_the_definition_says(bound, keys, data):
    table = RoutingTable()
    table.declare("e", "topic")
    for pattern in bound:
        table.bind("e", pattern, pattern)
    for pattern in data.draw(st.lists(st.sampled_from(bound), unique=True) if bound else st.just([])):
        table.unbind("e", pattern, pattern)
        bound = [other for other in bound if other != pattern]
    for key in keys:
        assert reached(table, key) == {pattern for pattern in bound if topic_matches(pattern, key)}


def test_two_thousand_patterns_that_backtrack():
    letters = [f"w{i}" for i in range(45)]
    bound = [f"#.{a}.#.{b}.#" for a in letters for b in letters] + ["#." * n + "end" for n in range(1, 60)]
    table = table_of("topic", *((pattern, pattern) for pattern in bound))
    key = ".".join(letters[i * 7 % 40] for i in range(200))
    assert reached(table, key) == {pattern for pattern in bound if topic_matches(pattern, key)}
    assert reached(table, f"{key}.end") >= set(bound[-59:])


def test_one_pattern_of_many_repeats_on_a_long_key():
    table = table_of("topic", ("q", "#.a." * 100 + "#"))
    assert reached(table, "a." * 5000 + "a") == {"q"}
    assert reached(table, "a." * 98 + "a") == set()


# --- headers


def on_the_wire(value):
    """The text of a value as AMQP carries it, so that those of one text are equal."""
    if isinstance(value, (list, tuple)):
        return str([on_the_wire(each) for each in value])
    return repr(value.decode() if isinstance(value, bytes) else value)


def header_matches(arguments, headers):
    arguments = arguments or {}
    mode = arguments.get("x-match", "all")
    wanted = {
        name: value
        for name, value in arguments.items()
        if name != "x-match" and (mode.endswith("with-x") or not name.startswith("x-"))
    }
    found = [
        name in headers and (value is None or on_the_wire(headers[name]) == on_the_wire(value))
        for name, value in wanted.items()
    ]
    return all(found) if mode.startswith("all") else any(found)


@pytest.mark.parametrize(
    ("arguments", "matching", "others"),
    [
        ({}, [None, {}, {"a": 1}], []),
        ({"x-match": "any"}, [], [None, {}, {"a": 1}]),
        ({"a": 1}, [{"a": 1}, {"a": 1, "b": 2}], [None, {}, {"a": 2}, {"A": 1}, {"a": "1"}, {"a": None}]),
        ({"a": 1, "b": 2}, [{"a": 1, "b": 2}], [{"a": 1}, {"b": 2}, {"a": 1, "b": 1}]),
        ({"a": 1, "b": 2, "x-match": "any"}, [{"a": 1}, {"b": 2}, {"a": 1, "b": 9}], [{}, {"a": 2, "b": 1}]),
        ({"a": None}, [{"a": 1}, {"a": None}, {"a": [1]}], [{}, {"b": 1}]),
        ({"a": None, "b": 1, "x-match": "any"}, [{"a": 0}, {"b": 1}], [{"b": 2}]),
        ({"a": 1}, [{"a": 1}, {"a": IntEnum("Number", "ONE").ONE}], [{"a": True}, {"a": 1.0}, {"a": Decimal(1)}]),
        ({"a": Decimal("1.0")}, [{"a": Decimal("1.0")}], [{"a": Decimal(1)}, {"a": 1}, {"a": 1.0}]),
        ({"a": "é"}, [{"a": "é"}, {"a": "é".encode()}], [{"a": "e"}, {"a": b"\xff"}, {"a": {"é"}}]),
        ({"a": [1]}, [{"a": (1,)}], [{"a": [True]}, {"a": [Decimal(1)]}, {"a": {}}]),
        ({"a": {}}, [{"a": {}}], [{"a": []}]),
        ({"a": True}, [{"a": True}], [{"a": 1}, {"a": "true"}]),
        ({"a": 0}, [{"a": 0}], [{"a": False}, {"a": ""}, {"a": None}]),
        ({"a": [1, 2]}, [{"a": [1, 2]}, {"a": (1, 2)}], [{"a": [1]}, {"a": 1}]),
        ({"a": {"b": [1]}}, [{"a": {"b": [1]}}], [{"a": {"b": []}}, {}]),
        ({"a": 1, "x-own": 1}, [{"a": 1}, {"a": 1, "x-own": 2}], [{"x-own": 1}]),
        ({"x-own": 1}, [{}, {"x-own": 2}], []),
        ({"x-own": 1, "x-match": "any"}, [], [{"x-own": 1}]),
        ({"a": 1, "x-own": 1, "x-match": "all-with-x"}, [{"a": 1, "x-own": 1}], [{"a": 1}, {"a": 1, "x-own": 2}]),
        ({"a": 1, "x-own": 1, "x-match": "any-with-x"}, [{"x-own": 1}, {"a": 1}], [{}, {"x-own": 2}]),
    ],
)
def test_headers(arguments, matching, others):
    table = table_of("headers", ("q", "", arguments))
    for headers in matching:
        assert reached(table, "any key", headers) == {"q"}, headers
    for headers in others:
        assert reached(table, "any key", headers) == set(), headers


class Kind(str, Enum):
    A = "a"


class Raw(bytes):
    pass


@pytest.mark.parametrize(("bound", "header"), [("a", Kind.A), (Kind.A, "a"), (b"a", Kind.A), (Raw(b"a"), "a")])
def test_headers_of_a_subclass_are_what_amqp_carries(bound, header):
    table = table_of("headers", ("q", "", {"x": bound, "nested": {"a": [bound]}}))
    assert reached(table, "", {"x": header, "nested": {Kind.A: [header]}}) == {"q"}


def test_a_header_nested_too_deeply_to_be_compared_is_one_that_no_binding_asks_for():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    table = table_of("headers", ("q", "", {"x": 1}), ("deep", "", {"nested": None}))
    assert reached(table, "", {"x": 1, "nested": nested}) == {"q", "deep"}
    while nested:
        nested = nested[0]


def test_bytes_of_a_subclass_that_are_no_text_are_compared_too():
    table = table_of("headers", ("q", "", {"x": Raw(b"\xff")}))
    assert reached(table, "", {"x": b"\xff"}) == {"q"}
    assert reached(table, "", {"x": Raw(b"\xfe")}) == set()


@pytest.mark.parametrize("mode", ["", "ALL", "some", None, 1, ["all"], {}])
def test_bad_x_match(mode):
    table = table_of("headers")
    with pytest.raises(ValueError, match="x-match"):
        table.bind("e", "q", "", {"x-match": mode, "a": 1})
    assert table.bindings("e") == []
    assert table.delete_queue("q") == []


def test_other_exchanges_do_not_mind_x_match():
    assert reached(table_of("direct", ("q", "k", {"x-match": "?"})), "k") == {"q"}


def test_headers_may_be_any_mapping():
    class Headers:
        def keys(self):
            return ["a"]

        def __getitem__(self, name):
            return 1

    assert reached(table_of("headers", ("q", "", {"a": 1})), "", Headers()) == {"q"}


names = st.sampled_from(["a", "b", "c", "x-a"])
header_values = st.sampled_from([None, 0, 1, 1.0, True, False, "a", "", b"a", (1,)]) | st.builds(list, st.just([1]))
headers = st.dictionaries(names, header_values, max_size=4)
modes = st.sampled_from([{}, *({"x-match": mode} for mode in ("all", "any", "all-with-x", "any-with-x"))])
header_arguments = st.builds(lambda headers, mode: {**headers, **mode}, headers, modes)


def identity(arguments):
    return repr(sorted((name, on_the_wire(value)) for name, value in (arguments or {}).items()))


@settings(deadline=None, max_examples=500)
@given(st.lists(header_arguments, max_size=8), st.lists(headers, min_size=1, max_size=4), st.data())
def test_headers_are_what_the_definition_says(bound, messages, data):
    table = RoutingTable()
    table.declare("e", "headers")
    bound = {identity(arguments): arguments for arguments in bound}
    for name, arguments in bound.items():
        assert table.bind("e", name, "", arguments)
    if bound:
        for name in data.draw(st.lists(st.sampled_from(list(bound)), unique=True)):
            assert table.unbind("e", name, "", bound.pop(name))
    for message in messages:
        assert reached(table, "", message) == {
            name for name, arguments in bound.items() if header_matches(arguments, message)
        }


# --- the whole table beside a list of bindings

KINDS = {"d": "direct", "f": "fanout", "t": "topic", "h": "headers", "d2": "direct", "t2": "topic"}
ALTERNATES = {"d": "t2", "h": "d2", "d2": "missing", "t": "d"}


class Naive:
    """Exchanges and a list of bindings, all of which each lookup tries."""

    def __init__(self):
        self.exchanges = set(KINDS)
        self.bindings = []

    def bind(self, binding):
        if any(same_binding(binding, other) for other in self.bindings):
            return False
        self.bindings.append(binding)
        return True

    def unbind(self, binding):
        found = [other for other in self.bindings if same_binding(binding, other)]
        self.bindings = [other for other in self.bindings if not same_binding(binding, other)]
        return bool(found)

    def delete_queue(self, name):
        return self._remove([b for b in self.bindings if not b.to_exchange and b.destination == name])

    def delete(self, name):
        return self._remove([b for b in self.bindings if name in (b.source, b.to_exchange and b.destination)])

    def _remove(self, gone):
        self.bindings = [binding for binding in self.bindings if binding not in gone]
        return gone

    def route(self, exchange, key, headers):
        queues, visited, pending = set(), {exchange}, [exchange]
        while pending:
            source = pending.pop()
            matching = [b for b in self.bindings if b.source == source and matches(KINDS[source], b, key, headers)]
            queues |= {binding.destination for binding in matching if not binding.to_exchange}
            following = {binding.destination for binding in matching if binding.to_exchange}
            if not matching:
                following = {ALTERNATES.get(source)} & self.exchanges
            pending += following - visited
            visited |= following
        return queues


def matches(kind, binding, key, headers):
    if kind == "direct":
        return binding.routing_key == key
    if kind == "topic":
        return topic_matches(binding.routing_key, key)
    return kind == "fanout" or header_matches(binding.arguments, headers)


def same_binding(a, b):
    return a._replace(arguments=None) == b._replace(arguments=None) and identity(a.arguments) == identity(b.arguments)


def listed(bindings):
    return sorted(repr(binding._replace(arguments=identity(binding.arguments))) for binding in bindings)


exchanges = st.sampled_from(list(KINDS))
keys = st.sampled_from(["", "a", "a.b", "a.#", "#", "*", "#.b", "b"])
arguments = st.none() | st.sampled_from([{"n": 1}, {"n": True}, {"n": 1, "m": [2]}, {"m": None, "x-match": "any"}])
to_queue = st.builds(Binding, exchanges, st.sampled_from(["q1", "q2", "q3", "d"]), keys, arguments, st.just(False))
to_exchange = st.builds(Binding, exchanges, exchanges, keys, arguments, st.just(True))
operations = st.one_of(
    st.tuples(st.just("bind"), to_queue | to_exchange),
    st.tuples(st.just("unbind"), to_queue | to_exchange),
    st.tuples(st.just("unbind one"), st.integers(0, 100)),
    st.tuples(st.just("delete queue"), st.sampled_from(["q1", "q2", "q3", "d"])),
    st.tuples(st.just("delete"), exchanges),
)
messages = [("a", {}), ("a.b", {"n": 1}), ("", {"n": True}), ("b", {"m": 5}), ("x.y", {"n": 1, "m": [2]})]


@settings(deadline=None, max_examples=300)
@given(st.lists(operations, max_size=25))
def test_table_is_what_a_list_of_bindings_would_be(operations):
    table, naive = RoutingTable(), Naive()
    for name, kind in KINDS.items():
        table.declare(name, kind, ALTERNATES.get(name))
    for operation, subject in operations:
        if operation == "bind":
            assert table.bind(*subject) is naive.bind(subject)
        elif operation == "unbind":
            assert table.unbind(*subject) is naive.unbind(subject)
        elif operation == "unbind one" and naive.bindings:
            binding = naive.bindings[subject % len(naive.bindings)]
            assert table.unbind(*binding) is naive.unbind(binding) is True
        elif operation == "delete queue":
            assert listed(table.delete_queue(subject)) == listed(naive.delete_queue(subject))
        elif operation == "delete":
            assert set(listed(table.delete(subject))) == set(listed(naive.delete(subject)))
            table.declare(subject, KINDS[subject], ALTERNATES.get(subject))
        for key, headers in messages:
            for exchange in KINDS:
                assert reached(table, key, headers, exchange) == naive.route(exchange, key, headers)
    for exchange in KINDS:
        assert listed(table.bindings(exchange)) == listed(b for b in naive.bindings if b.source == exchange)


# --- bounds


@pytest.mark.parametrize("word", ["*", "#", "word"])
def test_key_of_a_million_words_is_bound_and_freed(word):
    program = f"""
from kombulite._core import RoutingTable
table = RoutingTable()
table.declare("e", "topic")
table.bind("e", "q", ".".join(["{word}"] * 1_000_000))
del table
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
