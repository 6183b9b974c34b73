"""Dictionaries with keys of a special kind."""

from __future__ import annotations

from typing import Any

__all__ = ["EqualityDict", "HashedSeq", "eqhash"]


class HashedSeq(list[Any]):
    """A list that can be a key: its hash is that of its items when it was made.

    Args:
        seq: The items, one argument each; all of them hashable.
    """

    __slots__ = ("hashvalue",)

    def __init__(self, *seq: object) -> None:
        super().__init__(seq)
        self.hashvalue = hash(seq)

    def __hash__(self) -> int:  # type: ignore[override]
        return self.hashvalue


def eqhash(o: Any) -> Any:
    """Return the key of an object: the result of its ``__eqhash__``, or else its hash.

    Args:
        o: The object; hashable if it has no ``__eqhash__``.
    """
    try:
        return o.__eqhash__()
    except AttributeError:
        return hash(o)


class EqualityDict(dict[Any, Any]):
    """A dict in which objects count as one key if their ``__eqhash__`` says so."""

    def __getitem__(self, key: Any) -> Any:
        found = eqhash(key)
        if found not in self:
            return self.__missing__(key)
        return super().__getitem__(found)

    def __missing__(self, key: Any) -> Any:
        raise KeyError(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(eqhash(key), value)

    def __delitem__(self, key: Any) -> None:
        super().__delitem__(eqhash(key))
