"""Properties that are worked out once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

from kombulite.utils.locks import Lock

__all__ = ["cached_property"]

T = TypeVar("T")
_NOT_FOUND: Any = object()


class cached_property(functools.cached_property[T]):  # noqa: N801 - kombu's name
    """Property whose value is kept in the instance after the first access; it can be set and deleted.

    If threads access it at the same time, all get the same value.

    Args:
        fget: Returns the value, called with the instance.
        fset: Called with the instance and a value that is set; returns the value that is kept. None: all values are
            kept as they are.
        fdel: Called with the instance and a value that was deleted.
    """

    def __init__(
        self,
        fget: Callable[[Any], T],
        fset: Callable[[Any, T], T] | None = None,
        fdel: Callable[[Any, T], Any] | None = None,
    ) -> None:
        super().__init__(fget)
        self.fset, self.fdel = fset, fdel
        self.attrname = fget.__name__
        self.lock = Lock()

    def __set_name__(self, owner: type, name: str) -> None:
        self.attrname = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> cached_property[T]: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...

    def __get__(self, instance: Any, owner: type | None = None) -> T | cached_property[T]:
        if instance is None:
            return self
        value = instance.__dict__.get(self.attrname, _NOT_FOUND)
        if value is _NOT_FOUND:
            with self.lock:
                value = instance.__dict__.get(self.attrname, _NOT_FOUND)
                if value is _NOT_FOUND:
                    value = instance.__dict__[self.attrname] = self.func(instance)
        return value  # type: ignore[no-any-return]

    def __set__(self, instance: Any, value: T) -> Any:
        if instance is None:
            return self
        instance.__dict__[self.attrname] = value if self.fset is None else self.fset(instance, value)
        return None

    def __delete__(self, instance: Any) -> Any:
        if instance is None:
            return self
        value = instance.__dict__.pop(self.attrname, _NOT_FOUND)
        if self.fdel is not None and value is not _NOT_FOUND:
            self.fdel(instance, value)
        return None

    def setter(self, fset: Callable[[Any, T], T]) -> cached_property[T]:
        """Return the same property with another ``fset``.

        Args:
            fset: Called with the instance and a value that is set; returns the value that is kept.
        """
        return type(self)(self.func, fset, self.fdel)

    def deleter(self, fdel: Callable[[Any, T], Any]) -> cached_property[T]:
        """Return the same property with another ``fdel``.

        Args:
            fdel: Called with the instance and a value that was deleted.
        """
        return type(self)(self.func, self.fset, fdel)
