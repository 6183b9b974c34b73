"""What can be wrong in the lab itself: its figures, its tables, its files. It measures nothing here."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.progress import Progress

from bench.__main__ import main
from bench.about import about
from bench.duels import Watch
from bench.figure import Figure
from bench.lab import distant, running
from bench.lab.brokers import Brokers
from bench.lab.curves import BOTH, CLIENTS, experiments
from bench.lab.needs import counted, runs
from bench.lab.processes import peak_memory, processor_time
from bench.lab.running import Experiment
from bench.lab.task import Task
from bench.plots import draw
from bench.results import Curve, Need, Point, Results, percentiles
from bench.tables import markdown_of

ROOT = Path(__file__).parents[2]


def point(value, rival, seconds=0.001, **fields):
    return Point(value, rival, [seconds] * 3, [seconds / 2] * 3, [seconds / 4] * 3, [5e7] * 3, **fields)


@pytest.fixture
def results():
    """One curve of each view, with a client that is not everywhere."""
    loads = [point(load, "kombu", latencies=[[0.001, 0.002, 0.03]] * 3) for load in (10, 100)]
    return Results(
        ["a machine", "CPython"],
        [
            Figure("publish", [1e-6] * 4, [4e-6, 8e-6, 8e-6, 12e-6], at_least=4),
            Figure("import", [0.1] * 4, [0.4] * 4, at_most=0.2),
            Figure("held", [100.0], [400.0], "B"),
            Figure("alone", [2e-9], []),
        ],
        [
            Curve("sizes", "By size", "bytes", "lines", [point(16, "kombulite"), point(4096, "kombulite")]),
            Curve("clients", "All", "work", "bars", [point("a", "kombulite"), point("b", "kombu"), point("b", "pika")]),
            Curve("load", "By load", "messages a second", "latency", loads),
            Curve("processes", "By processes", "processes", "cores", [point(1, "kombu"), point(2, "kombu")]),
        ],
        [("queues", "no broker")],
        [("bindings, 10, kombu", "ended")],
    )


def test_results_come_back_from_json(results):
    assert Results.from_json(results.to_json()) == results


def test_a_curve_takes_the_place_of_its_name(results):
    names = [curve.name for curve in results.curves]
    results.replace(Curve("clients", "Again", "work", "bars"))
    results.replace(Curve("new", "New", "work", "bars"))
    assert [curve.name for curve in results.curves] == [*names, "new"]
    assert results.curves[1].title == "Again"


def test_percentiles():
    assert percentiles(range(1001)) == pytest.approx([500, 990, 999])
    assert percentiles(reversed(range(1001))) == percentiles(range(1001))
    assert percentiles([1.0, 1.0]) == [1.0, 1.0, 1.0]


def test_a_point_is_the_median_of_its_rounds():
    found = Point("x", "kombu", [0.1, 0.4, 0.2], [0.1, 0.2, 0.1], [0.05, 0.4, 0.2], latencies=[[1, 5], [3, 4], [2, 9]])
    assert found.rate == pytest.approx(5)
    assert found.client_cores == pytest.approx(0.5)
    assert found.broker_cores == pytest.approx(1)
    assert found.percentiles == [2, 5]


def test_figures_say_which_way_is_better():
    faster = Figure("w", [1.0] * 4, [8.0, 8.0, 8.0, 2.0], at_least=8)
    smaller = Figure("w", [3.0] * 4, [4.0] * 4, at_most=0.5)
    assert (faster.ratio, faster.reached) == (8, True)
    assert (smaller.ratio, smaller.reached) == (0.75, False)


def test_the_report_has_a_row_for_each_result(results):
    text = markdown_of(results, "plots")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert ["publish", "kombu", "8 µs", "1 µs", "8.0x", "5.0x to 11.0x", "≥ 4x", "reached"] in rows
    assert ["import", "kombu", "400 ms", "100 ms", "0.25", "0.25 to 0.25", "≤ 0.2", "missed"] in rows
    assert ["held", "kombu", "400 B", "100 B", "0.25", "", "", ""] in rows
    assert ["alone", "kombu", "-", "2 ns", "-", "", "", ""] in rows
    assert ["4,096", "kombulite", "1,000", "500 µs", "250 µs", "50 MB"] in rows
    assert ["100", "kombu", "1,000", "1 ms", "2 ms", "30 ms", "500 µs"] in rows
    assert sum(row[1] == "pika" for row in rows if len(row) > 1) == 1
    assert "- queues: no broker" in text
    assert "- bindings, 10, kombu: ended" in text
    assert all(f"plots/{curve.name}.svg" in text for curve in results.curves)


def test_plots_are_drawn_for_every_view(results, tmp_path):
    written = draw(results, tmp_path)
    assert [path.stem for path in written] == ["beside-kombu", *(curve.name for curve in results.curves)]
    for path in written:
        assert path.read_text().rstrip().endswith("</svg>")
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_report_and_plots_are_made_again_from_the_file(results, tmp_path):
    results.figures, results.curves = [], results.curves[:1]
    draw(results, tmp_path / "plots")
    before = (tmp_path / "plots" / "sizes.svg").read_bytes()
    path = tmp_path / "results.json"
    path.write_text(results.to_json())
    done = CliRunner().invoke(main, ["plot", str(path), "--out", str(tmp_path / "again")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "again" / "plots" / "sizes.svg").read_bytes() == before
    assert (tmp_path / "again" / "results.md").read_text() == markdown_of(results, "plots")


def test_what_stands_about_the_machine_names_neither_host_nor_folder():
    text = "\n".join(about())
    assert platform.python_version() in text
    assert "kombulite" in text
    assert platform.node() not in text
    assert str(ROOT) not in text


@pytest.mark.parametrize("full", [True, False])
def test_experiments_have_names_of_their_own_and_tasks_that_travel(full):
    found = experiments(full, settings=True)
    assert len({each.name for each in found}) == len(found)
    for each in found:
        assert each.runs
        assert all(Task.from_json(task.to_json()) == task for _, _, task in each.runs)


@pytest.mark.parametrize(("library", "work"), [("kombulite", "consume"), ("kombu", "publish")])
def test_a_client_gets_ready_and_says_what_its_work_took(library, work):
    task = Task(library, work, messages=20, queues=3)
    command = [sys.executable, "-m", "bench.lab.child", task.to_json()]
    done = subprocess.run(command, cwd=ROOT, input="go\n\n", capture_output=True, text=True, check=True, timeout=60)
    ready, found = done.stdout.splitlines()
    assert ready == "ready"
    assert '"cpu"' in found


def test_a_client_that_fails_is_noted_and_the_others_are_measured():
    works = {"works": "publish", "fails": "nothing that it knows"}
    experiment = Experiment(
        "e", "E", "work", "bars", tuple(works), ("kombulite",), lambda value, rival: Task(rival, works[value]), 1
    )
    results = Results()
    with Brokers() as brokers:
        curve = running.run(experiment, brokers, results, lambda text: None)
    assert [point.value for point in curve.points] == ["works"]
    assert [name for name, _ in results.failed] == ["e, fails, kombulite"]


def test_a_client_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(running, "PATIENCE", 2.0)
    never = Task("kombulite", "publish at a rate", messages=2, rate=0.001)
    with pytest.raises(running.ClientFailed), running.Client(never) as client:
        client.go()
        client.finish()


def test_a_duel_that_fails_is_noted():
    watch = Watch(Progress(disable=True))
    for outcome in ("passed", "failed"):
        name, place = f"test_x.py::test_{outcome}", ("test_x.py", 1, outcome)
        text = "Traceback\nValueError: so it is" if outcome == "failed" else None
        watch.pytest_runtest_logreport(pytest.TestReport(name, place, {}, outcome, text, "call"))
    assert watch.failed == [("test_failed", "ValueError: so it is")]


@pytest.mark.parametrize("name", ["kombulite", "kombu"])
def test_the_distant_broker_has_what_one_connection_published_for_another(name):
    library = importlib.import_module(name)
    transport = distant.transport_of(library)
    assert distant.transport_of(library) is transport
    with library.Connection(transport=transport) as one, library.Connection(transport=transport) as other:
        queue = library.Queue("far", library.Exchange("far"), "far")
        queue(other.channel()).declare()
        library.Producer(one.channel(), queue.exchange, "far").publish({"n": 1})
        message = queue(other.channel()).get()
        assert message.payload == {"n": 1}
        message.ack()


def test_what_a_client_needs_stands_beside_its_time_and_memory(results):
    results.needs = [Need("b", "pika", 2.5, 1234.0, 98760.0), Need("c", "pika", 1.0, 20.0, 300.0)]
    results.curves[1].name = "workloads"
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in markdown_of(results).splitlines()]
    assert ["b", "pika", "500 µs", "50 MB", "2.50", "1,234", "98,760"] in rows
    assert ["c", "pika", "-", "-", "1.00", "20", "300"] in rows
    assert Results.from_json(results.to_json()) == results


def test_system_calls_are_counted_as_they_return_and_bytes_in_both_directions():
    assert counted(
        '12 sendto(3, "POST = 5", 8, 0, NULL, 0) = 8\n'
        "12 epoll_wait(5,  <unfinished ...>\n"
        '13 write(1, "not a socket", 12) = 12\n'
        "12 <... epoll_wait resumed>[], 1, 20) = 0\n"
        "12 recvfrom(3, 0x7f, 65536, 0, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)\n"
        '12 recvfrom(3, "answer"..., 65536, 0, NULL, NULL) = 100\n'
        "12 +++ exited with 0 +++\n"
    ) == (5, 108)


def test_every_client_is_asked_what_it_needs_to_publish_and_to_consume():
    asked = {(task.client, task.work) for _, _, task in runs()}
    assert asked == {(client, work) for client in CLIENTS for work in ("publish", "consume")}


@pytest.mark.parametrize("client", [client for client in CLIENTS if client not in BOTH])
@pytest.mark.parametrize("transport", ["redis", "amqp"])
@pytest.mark.soak
def test_every_client_publishes_and_consumes(client, transport):
    of_client = [task for _, _, task in runs() if (task.client, task.transport) == (client, transport)]
    with Brokers() as brokers:
        for task in of_client:
            found = point(client, task.work)
            running.measure(replace(task, messages=1000), found, 1, brokers)
            assert len(found.seconds) == 4


def test_processor_time_and_memory_of_a_process_grow_with_what_it_does():
    pid, before, start = os.getpid(), processor_time(os.getpid()), time.process_time()
    while time.process_time() < start + 0.05:
        pass
    held = b"x" * (peak_memory(pid) + 2**20)
    assert before < processor_time(pid)
    assert peak_memory(pid) > len(held)
