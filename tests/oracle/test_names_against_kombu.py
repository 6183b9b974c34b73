"""What can be imported from kombu can be imported from kombulite: taken from the installed kombu, not from a list.

A name may be missing for a reason only, which stands in ``MISSING`` and in docs/differences.md.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
from pathlib import Path

import kombu
import pytest

#: Name -> why kombulite does not have it.
MISSING: dict[str, str] = {}

#: (class, member) -> why.
MISSING_MEMBERS: dict[tuple[str, str], str] = {}

CLASSES = [
    "kombu.Connection",
    "kombu.Consumer",
    "kombu.Exchange",
    "kombu.Message",
    "kombu.Producer",
    "kombu.Queue",
    "kombu.clocks.LamportClock",
    "kombu.common.Broadcast",
    "kombu.common.QoS",
    "kombu.compat.Consumer",
    "kombu.compat.Publisher",
    "kombu.matcher.MatcherRegistry",
    "kombu.mixins.ConsumerMixin",
    "kombu.pidbox.Mailbox",
    "kombu.pidbox.Node",
    "kombu.pools.PoolGroup",
    "kombu.pools.ProducerPool",
    "kombu.resource.Resource",
    "kombu.serialization.SerializerRegistry",
    "kombu.simple.SimpleQueue",
    "kombu.transport.base.Management",
    "kombu.transport.base.StdChannel",
    "kombu.transport.base.Transport",
    "kombu.transport.virtual.Channel",
    "kombu.transport.virtual.Message",
    "kombu.transport.virtual.QoS",
    "kombu.transport.virtual.Transport",
    "kombu.transport.virtual.base.BrokerState",
    "kombu.transport.pyamqp.Channel",
    "kombu.transport.pyamqp.Transport",
    "kombu.utils.limits.TokenBucket",
    "kombu.utils.scheduling.FairCycle",
]


def modules():
    return ["kombu", *(each.name for each in pkgutil.walk_packages(kombu.__path__, "kombu."))]


def load(name):
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"kombu's own module cannot be imported: {error}")


@pytest.mark.parametrize("name", modules())
def test_modules_have_the_names_that_kombu_s_have(name):
    theirs = load(name)
    ours = importlib.import_module(name.replace("kombu", "kombulite", 1))
    names = set(getattr(theirs, "__all__", ()))
    for each, value in vars(theirs).items():
        is_its_own = getattr(value, "__module__", name) == name
        if not each.startswith("_") and is_its_own and not isinstance(value, types.ModuleType):
            names.add(each)
    names -= {"annotations", "TYPE_CHECKING"}
    missing = {each for each in names if not hasattr(ours, each)}
    assert {f"{name}.{each}" for each in missing} <= set(MISSING)


@pytest.mark.parametrize("path", CLASSES)
def test_classes_have_the_members_that_kombu_s_have(path):
    module, _, name = path.rpartition(".")
    theirs, ours = (
        getattr(importlib.import_module(each), name) for each in (module, module.replace("kombu", "kombulite", 1))
    )
    public = {each for each in dir(theirs) if not each.startswith("_")}
    missing = {each for each in public if not hasattr(ours, each)}
    missing -= {each for each in missing if (path, each) in MISSING_MEMBERS}
    # What ours has on instances only.
    assert {each for each in missing if each not in INSTANCE_ONLY.get(path, ())} == set()


#: Attributes that kombu's class has for a default and ours makes in its constructor, or the other way round.
INSTANCE_ONLY = {}


@pytest.mark.parametrize("path", CLASSES)
def test_methods_take_the_keywords_that_kombu_s_take(path):
    module, _, name = path.rpartition(".")
    theirs, ours = (
        getattr(importlib.import_module(each), name) for each in (module, module.replace("kombu", "kombulite", 1))
    )
    refused = {}
    for each, method in inspect.getmembers(theirs, inspect.isfunction):
        if (each.startswith("_") and each != "__init__") or not callable(getattr(ours, each, None)):
            continue
        wanted = inspect.signature(method).parameters
        have = inspect.signature(getattr(ours, each)).parameters
        if any(kind.kind is kind.VAR_KEYWORD for kind in have.values()):
            continue
        names = {n for n, kind in wanted.items() if kind.kind not in (kind.VAR_KEYWORD, kind.VAR_POSITIONAL)}
        if lacking := {n for n in names - set(have) if not n.startswith("_")}:
            refused[each] = lacking
    assert refused == {key[1]: value for key, value in OTHER_KEYWORDS.items() if key[0] == path}


#: (class, method) -> keywords of kombu's that ours does not take.
OTHER_KEYWORDS = {}


def test_what_is_missing_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "differences.md").read_text()
    for name in MISSING:
        assert name.rpartition(".")[2] in text
