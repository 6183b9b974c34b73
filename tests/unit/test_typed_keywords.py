"""TypedDicts that stand for keywords have exactly the keywords of what they are passed to."""

from __future__ import annotations

import inspect

import pytest

from kombulite import Consumer, Producer
from kombulite._sync.consumer import ConsumerArguments
from kombulite._sync.producer import ProducerArguments


@pytest.mark.parametrize(
    ("arguments", "cls", "given"),
    [(ProducerArguments, Producer, {"channel"}), (ConsumerArguments, Consumer, {"channel", "queues"})],
)
def test_the_names_and_types_are_those_of_the_constructor(arguments, cls, given):
    parameters = {
        name: each.annotation for name, each in inspect.signature(cls).parameters.items() if name not in given
    }
    assert {name: hint.__forward_arg__ for name, hint in arguments.__annotations__.items()} == parameters
