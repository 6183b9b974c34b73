"""Comparing text with patterns of several kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from re import match as rematch
from typing import Any, ClassVar

from kombulite.utils.compat import entrypoints
from kombulite.utils.encoding import bytes_to_str

__all__ = ["MatcherNotInstalled", "MatcherRegistry", "match", "register", "registry", "unregister"]

ENTRY_POINT_GROUP = "kombu.matchers"


class MatcherNotInstalled(Exception):
    """No matcher of that name is registered."""


#: What a registry without a default takes, as kombu's do.
DEFAULT_MATCHER = "glob"


class MatcherRegistry:
    """Registry of matchers by name.

    A matcher is called with (data, pattern); one in ``matcher_pattern_first`` with (pattern, data).
    """

    MatcherNotInstalled = MatcherNotInstalled
    matcher_pattern_first: ClassVar[list[str]] = ["pcre"]

    def __init__(self) -> None:
        self._matchers: dict[str, Callable[..., Any]] = {}
        self._default_matcher: Callable[..., Any] | None = None
        self._entry_points_loaded = False

    def register(self, name: str, matcher: Callable[..., Any]) -> None:
        """Add or replace a matcher.

        Args:
            name: Name of the matcher.
            matcher: The function.
        """
        self._matchers[name] = matcher

    def unregister(self, name: str) -> None:
        """Remove a matcher.

        Args:
            name: Name of the matcher.

        Raises:
            MatcherNotInstalled: It is unknown.
        """
        if self._matchers.pop(name, None) is None:
            raise self.MatcherNotInstalled(f"No matcher installed for {name}")

    def _set_default_matcher(self, name: str) -> None:
        self._default_matcher = self._find(name)

    def match(
        self, data: str, pattern: str, matcher: str | None = None, matcher_kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return what the matcher returns, which is true if data matches a pattern.

        Args:
            data: The data, text or bytes.
            pattern: The pattern, text or bytes.
            matcher: Name of the matcher (default: the first one).
            matcher_kwargs: Keywords of the matcher.

        Raises:
            MatcherNotInstalled: The matcher is unknown.
        """
        function = (None if matcher else self._default_matcher) or self._find(matcher or DEFAULT_MATCHER)
        given = bytes_to_str(data), bytes_to_str(pattern)
        first, second = given[::-1] if matcher in self.matcher_pattern_first else given
        return function(first, second, **(matcher_kwargs or {}))

    def _find(self, name: str) -> Callable[..., Any]:
        if name not in self._matchers and not self._entry_points_loaded:
            self._load_entry_points()
        try:
            return self._matchers[name]
        except KeyError:
            raise self.MatcherNotInstalled(f"No matcher installed for {name}") from None

    def _load_entry_points(self) -> None:
        # Other packages' matchers; looked for only once something is missing, as the search costs milliseconds.
        self._entry_points_loaded = True
        for entry_point, arguments in entrypoints(ENTRY_POINT_GROUP):
            if entry_point.name not in self._matchers:
                self.register(entry_point.name, *arguments)


registry = MatcherRegistry()
match = registry.match
register = registry.register
unregister = registry.unregister

MatcherFunction = Callable[..., Any]


def register_glob() -> None:
    """Add the matcher of shell patterns to the registry (again)."""
    registry.register("glob", fnmatch)


def register_pcre() -> None:
    """Add the matcher of regular expressions to the registry (again)."""
    registry.register("pcre", rematch)


register_glob()
register_pcre()
registry._set_default_matcher("glob")
