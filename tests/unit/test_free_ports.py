"""Ports for the brokers that tests start: nothing else takes one before its broker does, or while that is restarted."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kombulite.contrib import servers
from kombulite.contrib.servers import free_port

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.mark.skipif(not RANGE.exists(), reason="needs the settings of Linux")
def test_no_connection_and_no_listener_without_a_port_is_given_one_of_them() -> None:
    lowest = int(RANGE.read_text().split()[0])
    assert all(free_port() < lowest for _ in range(20))


def test_no_port_is_given_twice() -> None:
    assert len({free_port() for _ in range(50)}) == 50


def test_a_port_that_is_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        used, other = listener.getsockname()[1], free_port()
        found = iter([used, other, other - 1, other - 2, other - 3])
        monkeypatch.setattr(servers.secrets, "choice", lambda ports: next(found))
        assert free_port() not in (used, other)


def test_where_the_system_gives_out_all_ports_it_chooses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_lowest_ephemeral_port", lambda: 1024)
    assert free_port() > 1024


def test_workers_of_pytest_choose_among_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    all_ports = servers._ports()
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    for worker in ("gw0", "gw1", "gw2"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        chosen.append(servers._ports())
    assert sorted(port for ports in chosen for port in ports) == list(all_ports)
