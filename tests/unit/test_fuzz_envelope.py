"""A fixed share of the fuzzing of tests/fuzz."""

from importlib.util import module_from_spec, spec_from_file_location
from itertools import islice
from pathlib import Path

import pytest

from kombulite._core import MalformedEnvelope, decode_envelope

EXECUTIONS = 20_000


@pytest.fixture(scope="module")
def fuzzer():
    spec = spec_from_file_location("fuzz_envelope", Path(__file__).parent.parent / "fuzz" / "fuzz_envelope.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_seeds_are_envelopes(fuzzer):
    for seed in fuzzer.seeds():
        fuzzer.check(decode_envelope(fuzzer.codec, seed))


def test_mutated_envelopes_raise_nothing_else(fuzzer):
    assert fuzzer.run(seed=20260102, executions=EXECUTIONS) == EXECUTIONS


def test_same_seed_same_inputs(fuzzer):
    first, again, other = (list(islice(fuzzer.mutations(seed), 50)) for seed in (1, 1, 2))
    assert first == again != other


def test_some_mutations_still_decode(fuzzer):
    decoded = 0
    for data in islice(fuzzer.mutations(1), 2000):
        try:
            decode_envelope(fuzzer.codec, data)
        except MalformedEnvelope:
            continue
        decoded += 1
    assert 100 < decoded < 1900


def test_a_defect_is_shown(fuzzer, monkeypatch, capsys):
    def broken(codec, data):
        raise KeyError("body")

    monkeypatch.setattr(fuzzer, "decode_envelope", broken)
    with pytest.raises(KeyError):
        fuzzer.run(seed=1, executions=10)
    assert capsys.readouterr().err.startswith("seed 1, execution 0: b")
