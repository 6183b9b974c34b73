"""Text: regular expressions, similar names, versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from typing import Any, NamedTuple

__all__ = ["escape_regex", "fmatch_best", "fmatch_iter", "version_info_t", "version_string_as_tuple"]


class version_info_t(NamedTuple):  # noqa: N801 - kombu's name
    """A version in parts.

    Attributes:
        major: The major version.
        minor: The minor version.
        micro: The micro version.
        releaselevel: Text behind them, such as ``"rc1"``.
        serial: Text behind that.
    """

    major: int
    minor: int
    micro: int
    releaselevel: str
    serial: str


def escape_regex(p: str, white: str = "") -> str:
    """Return text with a backslash before each character that is neither a letter nor a digit, for regular expressions.

    Args:
        p: The text.
        white: Further characters that get no backslash.
    """

    def escaped(letter: str) -> str:
        if letter.isalnum() or letter in white:
            return letter
        return "\\000" if letter == "\000" else f"\\{letter}"

    return "".join(map(escaped, p))


def fmatch_iter(needle: str, haystack: Iterable[str], min_ratio: float = 0.6) -> Iterator[tuple[float, str]]:
    """Give pairs of similarity and text for all texts that are similar to the needle.

    Args:
        needle: The text to compare with.
        haystack: The texts.
        min_ratio: Lowest similarity, from 0 to 1.
    """
    for text in haystack:
        ratio = SequenceMatcher(None, needle, text).ratio()
        if ratio >= min_ratio:
            yield ratio, text


def fmatch_best(needle: str, haystack: Iterable[str], min_ratio: float = 0.6) -> str | None:
    """Return the most similar text, or None if none is similar.

    Args:
        needle: The text to compare with.
        haystack: The texts.
        min_ratio: Lowest similarity, from 0 to 1.
    """
    return max(fmatch_iter(needle, haystack, min_ratio), default=(0, None))[1]


def version_string_as_tuple(s: str) -> version_info_t:
    """Return a version in parts.

    Args:
        s: The version, such as ``3.13.0rc1-2`` or ``3.3.1.a3.40c32``.
    """
    version = _unpack_version(*s.split("."))
    if isinstance(version.micro, str):
        version = version_info_t(version.major, version.minor, *_splitmicro(*version[2:]))
    if not version.serial and "-" in version.releaselevel:
        release, serial = version.releaselevel.split("-")
        version = version._replace(releaselevel=release, serial=serial)
    return version


def _unpack_version(
    major: str, minor: str | int = 0, micro: Any = 0, releaselevel: str = "", serial: str = ""
) -> version_info_t:
    return version_info_t(int(major), int(minor), micro, releaselevel, serial)


def _splitmicro(micro: str, releaselevel: str = "", serial: str = "") -> tuple[int, str, str]:
    """Return the number that a third part begins with, and the rest for the release level."""
    rest = micro.lstrip("0123456789")
    number = micro.removesuffix(rest) if rest else micro
    return int(number or 0), rest or releaselevel, serial
