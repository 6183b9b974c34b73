"""The codec of JSON with typed values that all of us share.

Apart from ``kombulite.utils.json``, which brings the standard library's along: few programs need that.
"""

from __future__ import annotations

from kombulite._core import JSON

__all__ = ["codec"]

codec = JSON()
