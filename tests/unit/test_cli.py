"""The command line, and the load behind ``kombulite run``."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from dataclasses import replace
from time import perf_counter

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from kombulite import exceptions
from kombulite.brokers.memory.broker import Broker, broker_of
from kombulite.cli import commands, load
from kombulite.cli.display import LiveDisplay, PlainDisplay, closing_table, display_for
from kombulite.cli.ledger import MOST_KEPT, Latencies, Ledger, balance, percentiles
from kombulite.cli.load import Consuming, Gate, Plan, Producing, Run, Sample, Speedometer
from kombulite.cli.orders import TYPES, Orders

VHOST = "cli"
BROKER = f"memory://localhost/{VHOST}"


def run(*options: str, broker: str = BROKER) -> Result:
    return CliRunner().invoke(commands.kombulite, ["run", "--broker", broker, *options])


def figures(*options: str) -> dict:
    result = run("--json", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_nothing_left() -> None:
    broker = broker_of(VHOST)
    assert not broker.queues
    assert broker.exchanges.keys() == Broker().exchanges.keys()


# --- the run


def test_a_run_loses_nothing_and_leaves_nothing() -> None:
    result = run("--messages", "500")
    assert result.exit_code == 0, result.output
    rows = [line.strip("│ ").split("│") for line in result.output.splitlines()]
    table = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}
    assert table["lost"] == table["duplicates"] == "0"
    assert table["published"] == table["consumed"] == "500"
    assert "\x1b" not in result.output
    assert_nothing_left()


def test_json_has_the_figures_and_nothing_else_is_printed() -> None:
    found = figures("--messages", "300")
    assert found["published"] == found["consumed"] == 300
    assert found["lost"] == found["duplicates"] == 0
    assert found["error"] is None
    assert found["published_per_second"] > 0
    assert found["consumed_per_second"] > 0
    assert found["cpu_us_per_message"] > 0
    assert found["own_cpu_us_per_message"] > 0
    latency = found["latency_ms"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["p99.9"]


def test_many_threads_share_the_events() -> None:
    assert figures("--messages", "3000", "--producers", "4", "--consumers", "5")["consumed"] == 3000


def test_seconds_bound_a_run() -> None:
    started = perf_counter()
    found = figures("--seconds", "0.3", "--rate", "1000")
    assert perf_counter() - started >= 0.3
    assert 0 < found["published"] <= 301
    assert found["consumed"] == found["published"]


def test_the_rate_is_not_exceeded() -> None:
    assert figures("--messages", "101", "--rate", "200")["seconds"] >= 0.49  # the first one goes at once


def test_a_low_depth_bounds_the_backlog() -> None:
    assert figures("--messages", "100", "--max-depth", "3")["peak_depth"] <= 3


def test_two_runs_of_one_name_do_not_meet() -> None:
    runs = [Run(Plan(broker=BROKER, messages=500)) for _ in range(2)]
    for each in runs:
        each.start()
    for each in runs:
        while each.wait(1):
            pass
    assert [each.close().succeeded for each in runs] == [True, True]
    assert_nothing_left()


# --- what goes wrong


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--messages", "0"], "--messages"),
        (["--seconds", "nan"], "not a finite number"),
        (["--rate", "-1"], "--rate"),
        (["--consumers", "0"], "--consumers"),
        (["--prefetch", "70000"], "--prefetch"),
        (["--max-depth", "0"], "--max-depth"),
        (["--queue", "amq.mine"], "--queue"),
        (["--queue", ""], "--queue"),
    ],
)
def test_options_that_cannot_be_are_usage_errors(options: list[str], text: str) -> None:
    result = run(*options)
    assert result.exit_code == 2
    assert text in result.output


def test_an_unknown_scheme_is_a_usage_error() -> None:
    result = run(broker="memori://localhost")
    assert result.exit_code == 2
    assert "No such transport: memori.  Did you mean memory?" in result.output


@pytest.mark.parametrize("broker", ["memory://user:s3cret", "memory://user:s3cret@localhost/?heart=1"])
def test_usage_errors_do_not_show_the_password(broker: str) -> None:
    result = run(broker=broker)
    assert result.exit_code == 2
    assert "s3cret" not in result.output


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_password_is_not_shown(options: list[str]) -> None:
    result = run("--messages", "10", *options, broker=f"memory://user:s3cret@localhost/{VHOST}")
    assert result.exit_code == 0
    assert "user@localhost" in result.output
    assert "s3cret" not in result.output


def test_a_broker_that_cannot_be_reached_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = f"memory://user:s3cret@localhost/{VHOST}"

    def refuse(*args: object) -> None:
        raise exceptions.OperationalError(f"cannot connect to {broker}")

    monkeypatch.setattr(load.Connection, "channel", refuse)
    result = run(broker=broker)
    assert result.exit_code == 1
    assert f"host: OperationalError: cannot connect to memory://user@localhost/{VHOST}" in result.stderr
    assert "s3cret" not in result.output


def test_what_was_declared_goes_where_no_consumer_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise exceptions.AccessRefused("no entry")

    monkeypatch.setattr(load.Consumer, "consume", fail)
    result = run()
    assert result.exit_code == 1
    assert "consumer 1: AccessRefused: no entry" in result.stderr or "consumer 2" in result.stderr
    assert_nothing_left()


@pytest.mark.parametrize("consumers", [1, 3])
def test_a_consumer_that_fails_fails_the_run(monkeypatch: pytest.MonkeyPatch, consumers: int) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("the shop is closed")

    monkeypatch.setattr(Consuming, "on_event", fail)
    result = run("--consumers", str(consumers), "--json")
    assert result.exit_code == 1
    assert "RuntimeError: the shop is closed" in json.loads(result.stdout)["error"]
    assert "RuntimeError: the shop is closed" in result.stderr
    assert_nothing_left()


def test_a_producer_that_fails_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise exceptions.EncodeError("no words for it")

    monkeypatch.setattr(Orders, "event", fail)
    result = run()
    assert result.exit_code == 1
    assert "producer 1: EncodeError: no words for it" in result.stderr


def test_a_thread_that_hangs_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(Producing, "__call__", lambda *args: released.wait(60) and None)
    monkeypatch.setattr(load, "START_TIMEOUT", 0.3)
    monkeypatch.setattr(load, "END_TIMEOUT", 0.3)
    try:
        result = run()
    finally:
        released.set()
    assert result.exit_code == 1
    assert "producer 1: TimeoutError: not connected within 0.3 s" in result.stderr


def test_lost_events_fail_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    on_event = Consuming.on_event

    def overlook(self: Consuming, event: dict, message: load.Message) -> None:
        if event["number"] == 7:
            message.ack()
        else:
            on_event(self, event, message)

    monkeypatch.setattr(Consuming, "on_event", overlook)
    monkeypatch.setattr(load, "STALL_TIMEOUT", 1.5)
    result = run("--messages", "100", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["lost"], found["duplicates"]) == (1, 0)
    assert "1 events are outstanding" in found["error"]


def test_duplicates_fail_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    on_event = Consuming.on_event

    def twice(self: Consuming, event: dict, message: load.Message) -> None:
        if event["number"] == 7:
            self.ledger.enter(7)
        on_event(self, event, message)

    monkeypatch.setattr(Consuming, "on_event", twice)
    result = run("--messages", "100", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["lost"], found["duplicates"], found["error"]) == (0, 1, None)


@pytest.mark.parametrize("number", [10**15, -1])
def test_an_event_of_nobody_fails_the_run(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    event = Orders.event
    monkeypatch.setattr(Orders, "event", lambda self, n: {**event(self, n), "number": number})
    result = run("--messages", "1")
    assert result.exit_code == 1
    assert f"event {number} was never published" in result.stderr


@pytest.mark.parametrize("where", ["start", "wait"])
def test_ctrl_c_drains_and_reports(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    original = getattr(Run, where)

    def interrupted(self: Run, *args: float) -> None:
        monkeypatch.setattr(Run, where, original)
        original(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, where, interrupted)
    result = run("--seconds", "60", "--json")
    assert result.exit_code == 130
    found = json.loads(result.stdout)
    assert found["lost"] == 0
    assert found["published"] == found["consumed"]
    assert_nothing_left()


def test_a_second_ctrl_c_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Run, seconds: float) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "wait", interrupted)
    assert run("--seconds", "60").exit_code == 130
    assert_nothing_left()


def test_a_run_needs_an_end() -> None:
    with pytest.raises(ValueError, match="messages or seconds"):
        Run(Plan())


# --- as a program


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kombulite", "run", "--messages", "50", "--json"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["consumed"] == 50


@pytest.mark.parametrize("package", ["click", "rich"])
def test_what_is_missing_is_named(package: str) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; import kombulite.cli; kombulite.cli.main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"kombulite: the command line needs {package}: pip install 'kombulite[cli]'\n"


# --- the display

SAMPLE = Sample(2.0, 60, 50, 31.4, 27.2, 10, percentiles([0.001, 0.002]))


def test_a_terminal_gets_a_live_view_and_others_plain_lines() -> None:
    plan, file = Plan(messages=100), io.StringIO()
    assert isinstance(display_for(plan, BROKER, Console(file=file, force_terminal=True)), LiveDisplay)
    assert isinstance(display_for(plan, BROKER, Console(file=file, force_terminal=False)), PlainDisplay)


def test_the_live_view() -> None:
    file = io.StringIO()
    with LiveDisplay(Plan(messages=100), BROKER, Console(file=file, force_terminal=True, width=100)) as display:
        display.show(SAMPLE)
    for text in ("50 of 100 messages", "50%", "31/s", "27/s", "queue depth", "10", "p50 1.00"):
        assert text in file.getvalue()


def test_plain_lines_come_ever_more_slowly() -> None:
    file = io.StringIO()
    with PlainDisplay(Plan(messages=100, seconds=200), "memory://[x]/", Console(file=file)) as display:
        for second in range(1, 200):
            display.show(replace(SAMPLE, elapsed=second))
    lines = file.getvalue().splitlines()
    assert lines[0] == "memory://[x]/: 100 messages or 200 s, 1 producer, 2 consumers"
    assert [int(line.split()[0]) for line in lines[1:]] == [1, 2, 4, 8, 16, 32, 64, 124, 184]
    assert lines[1] == (
        "1 s: 50 consumed (50 %), 31/s published, 27/s consumed, depth 10, latency p50 1.00, p99 2.00, p99.9 2.00 ms"
    )


def test_a_run_without_messages_has_a_table_too() -> None:
    load_ = Run(Plan(broker=BROKER, messages=1))
    file = io.StringIO()
    Console(file=file).print(closing_table(load_.close()))
    assert "latency p50" in file.getvalue()


# --- the parts


def test_ledger_and_balance() -> None:
    sent, first, second = Ledger(), Ledger(), Ledger()
    for number in (*range(10), 100_000):
        sent.enter(number)
    for number in (0, 1, 2, 3, 3):
        first.enter(number)
    for number in (3, 4, 5, 100_000):
        second.enter(number)
    assert (first.total, first.repeated, first.distinct) == (5, 1, 4)
    assert balance([sent], [first, second]) == (11, 9, 2, 4)


def test_percentiles() -> None:
    assert percentiles([]) is None
    assert percentiles([3.0]) == (3.0, 3.0, 3.0)
    assert percentiles(range(1000, 0, -1)) == (500, 990, 999)


def test_latencies_keep_an_even_selection() -> None:
    latencies = Latencies()
    for number in range(100_000):
        latencies.add(float(number))
    assert len(latencies.kept) < MOST_KEPT
    steps = {later - earlier for earlier, later in zip(latencies.kept, latencies.kept[1:], strict=False)}
    assert steps == {8.0}
    assert sorted(latencies.latest()) == [float(number) for number in range(100_000 - 2048, 100_000)]


def test_a_few_latencies() -> None:
    latencies = Latencies()
    latencies.add(1.5)
    assert list(latencies.latest()) == latencies.kept == [1.5]


def test_orders_are_the_same_each_time() -> None:
    def timeless(event: dict) -> dict:
        return {name: value for name, value in event.items() if name not in ("created", "sent")}

    first, second = Orders(), Orders()
    assert [timeless(first.event(n)) for n in range(50)] == [timeless(second.event(n)) for n in range(50)]
    assert timeless(first.event(1)) != timeless(Orders(seed=2).event(1))
    assert {first.event(n)["type"] for n in range(1000)} == TYPES.keys()
    event = first.event(3)
    total = sum(item["price"] * item["quantity"] for item in event["items"])
    assert event["amount"] == pytest.approx(total)


def test_the_gate_keeps_the_bounds() -> None:
    consumed = 0
    gate = Gate(Plan(messages=100, max_depth=70), lambda: consumed)
    gate.open()
    assert gate.claim() == range(64)
    assert gate.claim() == range(64, 70)
    assert gate.claim() == range(70, 70)
    consumed = 70
    assert gate.claim() == range(70, 100)
    assert gate.claim() is None


def test_a_closed_gate_gives_nothing() -> None:
    gate = Gate(Plan(messages=100), lambda: 0)
    gate.open()
    gate.close()
    assert gate.claim() is None


def test_rates_are_those_of_the_last_second() -> None:
    speedometer = Speedometer()
    assert speedometer.rates(0.5, 50, 25) == (100, 50)
    for quarter in range(3, 9):
        rates = speedometer.rates(quarter / 4, 50 + 100 * (quarter - 2), 25)
    assert rates == (400, 0)
