"""Hooks for tools of others; each module needs an extra of its name."""
