"""Transports under kombu's names."""

from __future__ import annotations

from kombulite.brokers import resolve_transport

__all__ = ["resolve_transport"]
