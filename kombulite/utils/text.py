"""Text: regular expressions, similar names, versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from typing import NamedTuple

__all__ = ["escape_regex", "fmatch_best", "fmatch_iter", "version_info_t", "version_string_as_tuple"]


class version_info_t(NamedTuple):  # noqa: N801 - kombu's name
    """A version in parts."""

    major: int
    minor: int
    micro: int
    releaselevel: str
    serial: str


def escape_regex(p: str, white: str = "") -> str:
    """Return text with a backslash before all that is neither alphanumeric nor in ``white``."""

    def escaped(letter: str) -> str:
        if letter.isalnum() or letter in white:
            return letter
        return "\\000" if letter == "\000" else f"\\{letter}"

    return "".join(map(escaped, p))


def fmatch_iter(needle: str, haystack: Iterable[str], min_ratio: float = 0.6) -> Iterator[tuple[float, str]]:
    """Give (similarity, text) for all texts that are similar to the needle, 0 to 1."""
    for text in haystack:
        ratio = SequenceMatcher(None, needle, text).ratio()
        if ratio >= min_ratio:
            yield ratio, text


def fmatch_best(needle: str, haystack: Iterable[str], min_ratio: float = 0.6) -> str | None:
    """Return the most similar text, or None if none is similar."""
    return max(fmatch_iter(needle, haystack, min_ratio), key=lambda found: found[0], default=(0, None))[1]


def version_string_as_tuple(s: str) -> version_info_t:
    """Return a version such as ``3.13.0rc1-2`` or ``3.3.1.a3.40c32`` in parts."""
    numbers = s.split(".", 3)
    major, minor = (int(number) for number in [*numbers[:2], "0"][:2])
    if len(numbers) < 3:
        return version_info_t(major, minor, 0, "", "")
    if len(numbers) > 3:
        release, _, serial = numbers[3].replace("-", ".").partition(".")
        return version_info_t(major, minor, int(numbers[2]), release, serial)
    micro = numbers[2]
    size = next((i for i, letter in enumerate(micro) if not letter.isdigit()), len(micro))
    release, _, serial = micro[size:].partition("-")
    return version_info_t(major, minor, int(micro[:size] or 0), release, serial)
