"""Named tuples of our own beside those of ``typing``."""

from __future__ import annotations

import inspect
import pickle
import typing

import pytest

from kombulite._client.counters import Counters
from kombulite.brokers.base import QueueSpec, Settings
from kombulite.utils.records import NamedTuple


class Ours(NamedTuple):
    """A point."""

    x: int
    y: int | None = None
    names: typing.Any = ()

    @property
    def is_flat(self) -> bool:
        return self.y is None

    @classmethod
    def origin(cls) -> Ours:
        return cls(0, 0)

    def __str__(self) -> str:
        return f"{self.x} {self.y}"


class Typings(typing.NamedTuple):
    """A point."""

    x: int
    y: int | None = None
    names: typing.Any = ()


def test_it_is_the_tuple_that_typing_would_make():
    for attribute in ("_fields", "_field_defaults", "__bases__", "__doc__", "__module__", "__slots__"):
        assert getattr(Ours, attribute) == getattr(Typings, attribute), attribute
    ours, typings = (inspect.signature(each).parameters.values() for each in (Ours, Typings))
    assert [(each.name, each.default, each.kind) for each in ours] == [
        (each.name, each.default, each.kind) for each in typings
    ]
    assert [each.annotation for each in ours] == ["int", "int | None", "typing.Any"]
    assert Ours.__qualname__ == "Ours"
    assert repr(Ours(1)) == "Ours(x=1, y=None, names=())"
    assert Ours(1, 2) == (1, 2, ())
    assert Ours(1)._replace(y=2) == Ours(1, 2)
    assert typing.get_type_hints(Ours)["x"] is int
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Ours()


def test_it_has_the_methods_of_its_class():
    assert (Ours(1).is_flat, Ours(1, 2).is_flat) == (True, False)
    assert Ours.origin() == (0, 0, ())
    assert str(Ours(1, 2)) == "1 2"


@pytest.mark.parametrize("value", [Ours(1, 2), QueueSpec("q"), Counters(*range(11))])
def test_it_is_pickled(value):
    again = pickle.loads(pickle.dumps(value))
    assert again == value
    assert type(again) is type(value)


def test_settings_have_their_fields_and_defaults():
    assert Settings._fields[0] == "hostname"
    assert all(field in Settings.__annotations__ for field in Settings._fields)
