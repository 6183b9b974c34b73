"""Set-up of the benchmarks."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def frozen_heap() -> Iterator[None]:
    """Keep pytest's own objects out of garbage collections: they cost what they do in a program without pytest."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # the name of the host is nobody's business


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="a third of the rounds")


@pytest.fixture
def benchmark(benchmark: Any, pytestconfig: pytest.Config) -> Any:
    """pytest-benchmark's, with fewer rounds for a quick look."""
    if pytestconfig.getoption("--quick"):
        pedantic = benchmark.pedantic
        benchmark.pedantic = lambda *arguments, rounds, **options: pedantic(
            *arguments, rounds=max(3, rounds // 3), **options
        )
    return benchmark
