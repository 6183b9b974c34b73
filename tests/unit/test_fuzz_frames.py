"""A fixed share of the fuzzing of tests/fuzz."""

from itertools import islice

import pytest

from tests.fuzz import fuzz_frames
from tests.fuzz.fuzz_frames import target

EXECUTIONS = 20_000


@pytest.mark.parametrize("stream", fuzz_frames.streams())
def test_seeds_are_streams(stream):
    events, error = fuzz_frames.decode([stream], fuzz_frames.receive)
    assert events
    assert error is None
    assert fuzz_frames.stream_of(fuzz_frames.RAW + stream) == stream
    assert fuzz_frames.stream_of(fuzz_frames.script(stream)) == stream


def test_mutated_streams_raise_nothing_else():
    assert target.run(seed=20260102, executions=EXECUTIONS) == EXECUTIONS


def test_mutations_reach_events_and_every_kind_of_error():
    events, errors = 0, set()
    for data in islice(target.mutations(1), 2000):
        found, error = fuzz_frames.decode([fuzz_frames.stream_of(data)], fuzz_frames.receive)
        events += len(found)
        errors.add(error and error.partition(":")[0])
    assert events > 500
    assert errors == {None, "MalformedFrame", "MalformedValue", "UnexpectedFrame"}


def test_a_defect_is_shown(monkeypatch, capsys):
    def broken(data):
        raise KeyError("table")

    monkeypatch.setattr(fuzz_frames, "check", broken)
    with pytest.raises(KeyError):
        target.run(seed=1, executions=10)
    assert capsys.readouterr().err.startswith("seed 1, execution 0: b")
