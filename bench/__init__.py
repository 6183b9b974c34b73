"""Benchmarks: every figure beside genuine kombu's, taken in the same run. ``python -m bench`` runs them all."""
