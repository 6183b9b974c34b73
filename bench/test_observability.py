"""What hooks cost, on the transport where everything else costs least: with none, beside with one."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracerProvider
from prometheus_client import CollectorRegistry

import kombulite
from bench.duel import duel
from bench.workloads import consuming, open_place, publishing
from kombulite.contrib.opentelemetry import OpenTelemetryHook
from kombulite.contrib.prometheus import TimingHook
from kombulite.hooks import Hook

MESSAGES = 1000

HOOKS = {
    "a hook that does nothing": Hook,
    "Prometheus histograms": lambda: TimingHook(CollectorRegistry()),
    "OpenTelemetry, not recording": lambda: OpenTelemetryHook(NoOpTracerProvider()),
    "OpenTelemetry, recording": lambda: OpenTelemetryHook(TracerProvider()),
}


@pytest.mark.parametrize("work", [publishing, consuming])
@pytest.mark.parametrize("rival", HOOKS)
def test_hooks(benchmark: Any, work: Any, rival: str) -> None:
    name = f"{work.__name__}-{list(HOOKS).index(rival)}"
    bare, hooked = open_place(kombulite, f"bare-{name}"), open_place(kombulite, f"hooked-{name}")
    hooked.connection.add_hook(HOOKS[rival]())
    title = f"memory {'publish' if work is publishing else 'consume + decode + ack'}, no hook"
    duel(benchmark, title, work(bare), work(hooked), operations=MESSAGES, rival=rival)
