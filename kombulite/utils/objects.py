"""Properties that are worked out once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from kombulite.utils.locks import Lock

__all__ = ["cached_property"]

T = TypeVar("T")
_MISSING: Any = object()


class cached_property(Generic[T]):  # noqa: N801 - kombu's name
    """A property whose value is kept in the instance after the first access; it can be set and deleted.

    ``fset(instance, value)`` may check a value that is set, and returns what is kept; ``fdel(instance, value)`` is told
    of one that is deleted. Threads that ask at the same time get the same value.
    """

    def __init__(
        self,
        fget: Callable[[Any], T],
        fset: Callable[[Any, T], T] | None = None,
        fdel: Callable[[Any, T], Any] | None = None,
    ) -> None:
        self.fget, self.fset, self.fdel = fget, fset, fdel
        self.__name__ = fget.__name__
        self.__doc__ = fget.__doc__
        self.lock = Lock()

    def __set_name__(self, owner: type, name: str) -> None:
        self.__name__ = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> cached_property[T]: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...

    def __get__(self, instance: Any, owner: type | None = None) -> T | cached_property[T]:
        if instance is None:
            return self
        value = instance.__dict__.get(self.__name__, _MISSING)
        if value is _MISSING:
            with self.lock:
                value = instance.__dict__.get(self.__name__, _MISSING)
                if value is _MISSING:
                    value = instance.__dict__[self.__name__] = self.fget(instance)
        return value  # type: ignore[no-any-return]

    def __set__(self, instance: Any, value: T) -> None:
        instance.__dict__[self.__name__] = value if self.fset is None else self.fset(instance, value)

    def __delete__(self, instance: Any) -> None:
        value = instance.__dict__.pop(self.__name__, _MISSING)
        if self.fdel is not None and value is not _MISSING:
            self.fdel(instance, value)

    def setter(self, fset: Callable[[Any, T], T]) -> cached_property[T]:
        """Return the same property with another ``fset``."""
        return type(self)(self.fget, fset, self.fdel)

    def deleter(self, fdel: Callable[[Any, T], Any]) -> cached_property[T]:
        """Return the same property with another ``fdel``."""
        return type(self)(self.fget, self.fset, fdel)
