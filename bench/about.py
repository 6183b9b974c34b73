"""What figures depend on: machine, versions, commit. No path and no name of a host."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cpuinfo

from tests.servers import Unavailable
from tests.servers import version as broker_version

LIBRARIES = (
    "kombulite", "kombu", "amqp", "pika", "amqpstorm", "aio-pika", "faststream", "redis", "hiredis", "celery",
    "pytest-benchmark",
)  # fmt: skip
BROKERS = {"redis-server": "redis-server", "RabbitMQ": "rabbitmqctl"}
C_CLIENT = ("dpkg-query", "-W", "-f", "${Version}", "librabbitmq-dev")


def about() -> list[str]:
    """Lines on the machine, the versions and the commit."""
    lines = [
        f"{cpuinfo.get_cpu_info().get('brand_raw', platform.machine())}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.release().partition('-')[0]}",
        f"{platform.python_implementation()} {platform.python_version()}, " + ", ".join(_packages(LIBRARIES)),
        ", ".join(_programs()),
        _commit(),
    ]
    return [line for line in lines if line]


def _packages(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _programs() -> Iterable[str]:
    for name, program in BROKERS.items():
        with suppress(Unavailable):
            yield f"{name} {broker_version(program)}"
    if found := re.search(r"\d+(\.\d+)+", _output(*C_CLIENT)):
        yield f"RabbitMQ C client {found[0]}"


def _commit() -> str:
    commit = _output("git", "rev-parse", "--short=12", "HEAD").strip()
    return f"commit {commit}{' with changes' if _output('git', 'status', '--porcelain') else ''}" if commit else ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
