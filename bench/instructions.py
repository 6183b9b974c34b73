"""Instructions that the hot paths take, counted by callgrind and compared with those kept in ``instructions.json``.

``python -m bench.instructions`` fails where a path takes over ``TOLERANCE`` more; ``--update`` keeps what is counted.
Counts are of one Python and one compiler, and compared with those only. What cannot be compared is said loudly, and is
no failure; but with CI=true a missing valgrind is one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.hot_paths import PATHS, REPEATS
from kombulite._core import frames

KEPT = Path(__file__).with_suffix(".json")
TOLERANCE = 0.05
PROCESSES = 2

Counts = dict[str, int]


def environment() -> dict[str, str]:
    """What counts depend on, besides our own code."""
    core = Path(frames.__file__).read_bytes()
    compilers = re.findall(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+", core)
    cython = re.search(rb"__Pyx_ImportType_(\d+_\d+_\w+?)\b", core)
    return {
        "python": sys.version,
        "compiler": sorted(compilers)[-1].decode() if compilers else "unknown",
        "cython": cython[1].decode().replace("_", ".") if cython else "unknown",
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
    }


def count(names: Sequence[str]) -> Counts:
    """Instructions per operation of these paths. Raises RuntimeError where callgrind fails."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        done = subprocess.run(
            [
                "valgrind",
                "--tool=callgrind",
                f"--callgrind-out-file={out}",
                "--dump-before=getppid",
                sys.executable,
                "-m",
                "bench.hot_paths",
                *names,
            ],
            env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},  # no more: it has a place in memory too
            cwd=KEPT.parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"callgrind failed:\n{done.stderr[-3000:]}")
        # Four parts for each path: what came before, so many times, nothing, twice as many times.
        parts = [_summary(Path(f"{out}.{number}")) for number in range(1, 4 * len(names) + 1)]
    return {
        name: round((twice - once) / REPEATS) for name, once, twice in zip(names, parts[1::4], parts[3::4], strict=True)
    }


def _summary(file: Path) -> int:
    found = re.search(r"^summary: (\d+)", file.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"callgrind left no count in {file.name}")
    return int(found[1])


def count_all() -> Counts:
    """Instructions per operation of all paths."""
    names = list(PATHS)
    with ThreadPoolExecutor(PROCESSES) as pool:
        parts = pool.map(count, [names[start::PROCESSES] for start in range(PROCESSES)])
        found = {name: number for part in parts for name, number in part.items()}
    return {name: found[name] for name in names}


def report(counts: Counts, kept: Counts) -> list[str]:
    """Print both beside each other; the names of the paths that take too many more now."""
    slower = []
    print(f"{'instructions per operation':<28}{'kept':>9}{'now':>9}{'change':>9}")
    for name, number in counts.items():
        before = kept.get(name)
        if before is None:
            print(f"{name:<28}{'-':>9}{number:>9,}      new")
            continue
        change = number / before - 1
        verdict = ""
        if number > before * (1 + TOLERANCE):
            slower.append(name)
            verdict = "  TOO MANY"
        elif number < before * (1 - TOLERANCE):
            verdict = "  fewer: keep it with --update"
        print(f"{name:<28}{before:>9,}{number:>9,}{change:>+9.1%}{verdict}")
    return slower


def skip(why: str) -> None:
    """Say that nothing was compared."""
    print(f"!!! INSTRUCTION COUNTS SKIPPED: {why}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="keep what is counted now")
    options = parser.parse_args(arguments)
    if shutil.which("valgrind") is None:
        skip("valgrind is not installed")
        return 1 if options.update or os.environ.get("CI") == "true" else 0
    here = environment()
    if options.update:
        counts = count_all()
        KEPT.write_text(json.dumps({"environment": here, "counts": counts}, indent=1) + "\n")
        report(counts, counts)
        return 0
    kept: dict[str, Any] = json.loads(KEPT.read_text())
    others = [name for name, value in here.items() if value != kept["environment"].get(name)]
    if others:
        told = "; ".join(f"{name} {here[name]!r}, not {kept['environment'].get(name)!r}" for name in others)
        skip(f"those kept are of another {told}")
        return 0
    slower = report(count_all(), kept["counts"])
    if slower:
        print(
            f"Over {TOLERANCE:.0%} more instructions in: {', '.join(slower)}. "
            "If that is meant: python -m bench.instructions --update",
            file=sys.stderr,
        )
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
