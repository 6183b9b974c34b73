"""Text and bytes, and showing what may be neither."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, TypeVar

__all__ = [
    "bytes_to_str",
    "default_encode",
    "default_encoding",
    "ensure_bytes",
    "from_utf8",
    "get_default_encoding_file",
    "safe_repr",
    "safe_str",
    "set_default_encoding_file",
    "str_to_bytes",
]

T = TypeVar("T")

#: The file whose encoding ``default_encoding`` takes; None: the standard output as it was at the start.
default_encoding_file: object = None


def set_default_encoding_file(file: object) -> None:
    """Set the file whose encoding ``default_encoding`` returns.

    Args:
        file: The file; None: the encoding of file names is the default.
    """
    global default_encoding_file  # noqa: PLW0603 - kombu's interface
    default_encoding_file = file


def get_default_encoding_file() -> object:
    """Return the file whose encoding is the default."""
    return default_encoding_file


def default_encoding(file: object = None) -> str:
    """Return the encoding of a file, or of the default file, or of file names.

    Args:
        file: The file; None: the default file.
    """
    file = file or get_default_encoding_file()
    return getattr(file, "encoding", None) or sys.getfilesystemencoding()


def str_to_bytes(s: str | T) -> bytes | T:
    """Return text as UTF-8; any other value as it is.

    Args:
        s: The value.
    """
    return s.encode() if isinstance(s, str) else s


def bytes_to_str(s: bytes | T) -> str | T:
    """Return bytes as text; any other value as it is.

    Args:
        s: The value. What is not UTF-8 in it is replaced.
    """
    return s.decode(errors="replace") if isinstance(s, bytes) else s


def from_utf8(s: T, *args: object, **kwargs: object) -> T:
    """Return ``s`` itself; kept for compatibility.

    Args:
        s: The value.
        *args: Ignored.
        **kwargs: Ignored.
    """
    return s


def ensure_bytes(s: str | T) -> bytes | T:
    """Return text as UTF-8; any other value as it is.

    Args:
        s: The value.
    """
    return str_to_bytes(s)


def default_encode(obj: T) -> T:
    """Return ``obj`` itself; kept for compatibility.

    Args:
        obj: The value.
    """
    return obj


def safe_str(s: object, errors: str = "replace") -> str:
    """Return text for any value, without raising.

    Args:
        s: The value.
        errors: Ignored; kept for compatibility.
    """
    s = bytes_to_str(s)
    return _safe_str(s, errors) if isinstance(s, str) else safe_repr(s, errors)


def _safe_str(s: Any, errors: str = "replace", file: Any = None) -> str:
    """Return ``str`` of a value, or a text that says why there is none."""
    if isinstance(s, str):
        return s
    try:
        return str(s)
    except Exception as error:
        stack = import_module(__name__).traceback.format_stack()
        return "<Unrepresentable {!r}: {!r} {!r}>".format(type(s), error, "\n".join(stack))


def safe_repr(o: object, errors: str = "replace") -> str:
    """Return the ``repr`` of any value, without raising.

    Args:
        o: The value.
        errors: Ignored; kept for compatibility.
    """
    try:
        return repr(o)
    except Exception:
        return _safe_str(o, errors)


def __getattr__(name: str) -> Any:
    if name == "traceback":  # slow to import, and seldom needed
        return import_module(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
