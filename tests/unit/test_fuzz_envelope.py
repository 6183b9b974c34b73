"""A fixed share of the fuzzing of tests/fuzz."""

from itertools import islice

import pytest

from kombulite._core import MalformedEnvelope, decode_envelope
from tests.fuzz import fuzz_envelope
from tests.fuzz.fuzz_envelope import target

EXECUTIONS = 20_000


def test_seeds_are_envelopes():
    for seed in fuzz_envelope.seeds():
        fuzz_envelope.check(decode_envelope(fuzz_envelope.codec, seed))


def test_mutated_envelopes_raise_nothing_else():
    assert target.run(seed=20260102, executions=EXECUTIONS) == EXECUTIONS


def test_same_seed_same_inputs():
    first, again, other = (list(islice(target.mutations(seed), 50)) for seed in (1, 1, 2))
    assert first == again != other


def test_some_mutations_still_decode():
    decoded = 0
    for data in islice(target.mutations(1), 2000):
        try:
            decode_envelope(fuzz_envelope.codec, data)
        except MalformedEnvelope:
            continue
        decoded += 1
    assert 100 < decoded < 1900


def test_a_defect_is_shown(monkeypatch, capsys):
    def broken(codec, data):
        raise KeyError("body")

    monkeypatch.setattr(fuzz_envelope, "decode_envelope", broken)
    with pytest.raises(KeyError):
        target.run(seed=1, executions=10)
    assert capsys.readouterr().err.startswith("seed 1, execution 0: b")
