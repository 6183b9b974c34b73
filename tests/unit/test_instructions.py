"""The guard of instruction counts: what it compares, and what it says where it cannot."""

import json

import pytest

from bench import hot_paths, instructions

HERE = {"python": "3", "compiler": "cc"}


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Counts that were kept, and those of now."""
    now = {"dumps": 1000, "loads": 1000}
    monkeypatch.setattr(instructions, "KEPT", tmp_path / "instructions.json")
    monkeypatch.setattr(instructions, "environment", lambda: HERE)
    monkeypatch.setattr(instructions, "count_all", lambda: dict(now))
    monkeypatch.setattr(instructions.shutil, "which", lambda command: f"/bin/{command}")
    monkeypatch.delenv("CI", raising=False)
    instructions.KEPT.write_text(json.dumps({"environment": HERE, "counts": now}))
    return now


def test_the_same_counts(kept, capsys):
    assert instructions.main([]) == 0
    assert "TOO MANY" not in capsys.readouterr().out


def test_more_than_the_tolerance_fails(kept, capsys):
    kept["loads"] = int(1000 * (1 + instructions.TOLERANCE)) + 1
    assert instructions.main([]) == 1
    said = capsys.readouterr()
    assert "more instructions in: loads." in said.err
    assert said.out.count("TOO MANY") == 1


def test_within_the_tolerance(kept):
    kept["loads"] = int(1000 * (1 + instructions.TOLERANCE))
    assert instructions.main([]) == 0


def test_fewer_is_no_failure(kept, capsys):
    kept["loads"] = 500
    kept["added"] = 5
    assert instructions.main([]) == 0
    assert "--update" in capsys.readouterr().out


def test_update_keeps_them(kept):
    kept["loads"] = 5000
    assert instructions.main(["--update"]) == 0
    assert json.loads(instructions.KEPT.read_text()) == {"environment": HERE, "counts": kept}
    assert instructions.main([]) == 0


def test_counts_of_another_compiler_are_not_compared(kept, capsys, monkeypatch):
    kept["loads"] = 5000
    monkeypatch.setattr(instructions, "environment", lambda: {**HERE, "compiler": "other"})
    monkeypatch.setenv("CI", "true")
    assert instructions.main([]) == 0
    assert "SKIPPED: those kept are of another compiler 'other', not 'cc'" in capsys.readouterr().err


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_without_valgrind(kept, capsys, monkeypatch, ci, code):
    monkeypatch.setattr(instructions.shutil, "which", lambda command: None)
    monkeypatch.setenv("CI", ci)
    assert instructions.main([]) == code
    assert "SKIPPED: valgrind is not installed" in capsys.readouterr().err


def test_what_is_kept_has_all_paths_and_names_what_they_depend_on():
    found = json.loads(instructions.KEPT.read_text())
    assert found["counts"].keys() == hot_paths.PATHS.keys()
    assert found["environment"].keys() == instructions.environment().keys()


@pytest.mark.parametrize("name", hot_paths.PATHS)
def test_paths_can_be_walked(name):
    hot_paths.PATHS[name]()(3)
