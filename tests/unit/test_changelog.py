"""The changelog is made of a file for each change."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_release_gathers_the_changes_above_the_last_one(tmp_path):
    for name in ("CHANGELOG.md", "towncrier.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "changelog.d", tmp_path / "changelog.d", ignore=shutil.ignore_patterns("*.*.md"))
    before = (tmp_path / "CHANGELOG.md").read_text()
    (tmp_path / "changelog.d" / "faster.changed.md").write_text("It is faster.\n")
    (tmp_path / "changelog.d" / "mended.fixed.md").write_text("It is mended,\nand stays so.\n")

    command = [sys.executable, "-m", "towncrier", "build", "--yes", "--version", "98.7.6", "--date", "2033-01-02"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    section = (
        "## 98.7.6 - 2033-01-02\n\n### Changed\n\n- It is faster.\n\n### Fixed\n\n- It is mended,\n  and stays so.\n"
    )
    mark = "<!-- releases, the newest first -->\n"
    above, below = before.split(mark)
    after = (tmp_path / "CHANGELOG.md").read_text()
    assert after.startswith(above + mark)
    assert after.endswith(below.lstrip("\n"))
    assert section in after
    assert not list((tmp_path / "changelog.d").glob("*.fixed.md"))
