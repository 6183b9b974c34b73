"""The command line: ``kombulite``, or ``python -m kombulite``. It needs the extra ``kombulite[cli]``.

``kombulite celery`` needs Celery only.
"""

from __future__ import annotations

import sys

NEEDED = ("click", "rich")


def main() -> None:
    """Run the command line. It ends in SystemExit; status 2 where a package that it needs is missing."""
    try:
        _run()
    except KeyboardInterrupt:  # before a command has begun
        sys.exit(130)


def _run() -> None:
    if sys.argv[1:2] == ["celery"]:
        from kombulite.cli.celery import celery

        celery()
    try:
        from kombulite.cli.commands import kombulite
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in NEEDED:
            raise
        print(f"kombulite: the command line needs {missing}: pip install 'kombulite[cli]'", file=sys.stderr)
        sys.exit(2)
    kombulite()
