"""Run all fuzz targets at once, each in a process of its own: ``python -m tests.fuzz [--seconds N] [--seed N]``."""

import argparse
import random
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1 << 32), help="another one each time, if not given"
    )
    options = parser.parse_args()
    names = sorted(path.stem for path in Path(__file__).parent.glob("fuzz_*.py"))
    arguments = [f"--seconds={options.seconds}", f"--seed={options.seed}"]
    print(f"{', '.join(names)}: {options.seconds:g} s, seed {options.seed}", flush=True)
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", f"tests.fuzz.{name}", *arguments], stdout=subprocess.PIPE, text=True
        )
        for name in names
    }
    failed = 0
    for name, process in running.items():
        said, _ = process.communicate()
        print(f"{name}: {said.strip() if process.returncode == 0 else 'FAILED'}", flush=True)
        failed += process.returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
