"""Hooks: code that sees what is published and consumed, and may add headers to what is published.

A ``Hook`` is installed on a connection (``connection.add_hook``), or on all connections of the process
(``kombulite.connection.add_hook``).
"""

from kombulite._client.hooks import Hook, Outgoing

__all__ = ["Hook", "Outgoing"]

for _name in __all__:
    globals()[_name].__module__ = __name__  # where the names are public, whatever module defines them
