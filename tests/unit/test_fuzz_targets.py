"""A fixed share of the fuzzing of tests/fuzz, for targets that have no module of their own here; and the corpus."""

import pytest

from kombulite.compression import set_max_inflated
from tests.fuzz import (
    engine,
    fuzz_amqp10,
    fuzz_bodies,
    fuzz_envelope,
    fuzz_frames,
    fuzz_json,
    fuzz_redis,
    fuzz_routing,
    fuzz_tables,
)
from tests.fuzz.engine import Target

EXECUTIONS = 1000
ALL = [
    module.target
    for module in (
        fuzz_amqp10,
        fuzz_bodies,
        fuzz_envelope,
        fuzz_frames,
        fuzz_json,
        fuzz_redis,
        fuzz_routing,
        fuzz_tables,
    )
]
targets = pytest.mark.parametrize("target", ALL, ids=[target.name for target in ALL])


@pytest.fixture(autouse=True)
def default_limit():
    yield
    set_max_inflated(256 << 20)


@targets
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
def test_mutations_show_no_defect(target):
    assert target.run(seed=20260102, executions=EXECUTIONS) == EXECUTIONS


@targets
def test_corpus_comes_first(target):
    kept = [path.read_bytes() for path in target.folder.iterdir()]
    seen = []
    again = Target(target.name, seen.append, target.seeds, target.scraps)
    again.run(seed=1, executions=len(target.corpus()))
    assert kept
    assert [*target.seeds, *sorted(kept)] == [*seen[: len(target.seeds)], *sorted(seen[len(target.seeds) :])]


def test_each_folder_of_the_corpus_is_of_a_target():
    assert {path.name for path in engine.CORPUS.iterdir()} == {target.name for target in ALL}


def test_the_reader_of_json_is_compared(monkeypatch):
    monkeypatch.setattr(fuzz_json, "standard", lambda data: "something else")
    with pytest.raises(AssertionError):
        fuzz_json.target.run(seed=1, executions=10)


def test_what_decompression_costs_is_looked_at(monkeypatch):
    monkeypatch.setattr(fuzz_bodies, "set_max_inflated", lambda size: None)
    monkeypatch.setattr(fuzz_bodies, "MOST_INFLATED", 1 << 10)
    with pytest.raises(AssertionError):
        fuzz_bodies.target.run(seed=1, executions=100)
