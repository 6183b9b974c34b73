"""Build an sdist and a wheel, and try each in a clean place: ``python -m tests.release``.

Each is installed in a virtual environment of its own, away from the sources; there it says its version, its core loads,
and the embedded broker passes a stream of events. Artefacts that are named are tried and not built.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD_TIMEOUT = 900.0  # seconds
TRIAL_TIMEOUT = 300.0
TRIAL = """
import sys
from importlib.metadata import version
import kombulite
from kombulite import _core
assert sys.argv[1] not in kombulite.__file__, kombulite.__file__
assert version("kombulite") == kombulite.__version__
print("kombulite", kombulite.__version__, "on", sys.version.split()[0], _core.channel.__file__)
"""


def build(folder: Path) -> list[Path]:
    """Build an sdist, and a wheel from it, into an empty folder; returns their paths."""
    for left in folder.glob("kombulite-*"):
        left.unlink()
    run([sys.executable, "-m", "build", "--outdir", str(folder)], ROOT, BUILD_TIMEOUT)
    return sorted(folder.glob("kombulite-*"))


def try_out(artefact: Path) -> None:
    """Install an artefact in a clean virtual environment, and run it. Raises CalledProcessError if it does not work."""
    with tempfile.TemporaryDirectory(prefix="kombulite-") as place:
        folder = Path(place)
        run([sys.executable, "-m", "venv", "venv"], folder, TRIAL_TIMEOUT)
        python = str(folder / "venv" / "bin" / "python")
        run([python, "-m", "pip", "install", "--quiet", f"{artefact.resolve()}[cli]"], folder, BUILD_TIMEOUT)
        run([python, "-c", TRIAL, str(ROOT)], folder, TRIAL_TIMEOUT)
        run([python, "-m", "kombulite", "run", "--messages", "10000"], folder, TRIAL_TIMEOUT)


def run(command: list[str], folder: Path, timeout: float) -> None:
    """Run a command in a folder, and wait for it."""
    subprocess.run(command, cwd=folder, timeout=timeout, check=True)


def main() -> None:
    """Build and try, or try what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artefacts", nargs="*", type=Path, help="wheels and sdists to try; built if there are none")
    for artefact in parser.parse_args().artefacts or build(ROOT / "dist"):
        print(f"=== {artefact.name}", flush=True)
        try_out(artefact)


if __name__ == "__main__":
    main()
