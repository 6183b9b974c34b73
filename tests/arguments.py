"""Calls everything in the compiled core with what does not belong there. Run by test_core_arguments.py.

What is called, and with what, comes from the stub, so a new function is called too. Each line that is printed names a
call, and then its outcome; where the process ends without one, that call has crashed it.
"""

from __future__ import annotations

import ast
import copy
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kombulite import _core
from kombulite.brokers.waits import WaitQueue

STUB = ast.parse(Path(_core.__file__).with_suffix(".pyi").read_text())
CLASSES = {
    node.name: node
    for node in STUB.body
    if isinstance(node, ast.ClassDef) and not issubclass(getattr(_core, node.name), (BaseException, tuple))
}
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}

#: Values of what the stub says by its first name; a class of the core is made as its constructor asks.
VALUES: dict[str, Callable[[], Any]] = {
    "str": lambda: "name",
    "int": lambda: 1,
    "float": lambda: 0.5,
    "bool": lambda: True,
    "bytes": lambda: b"bytes",
    "Any": lambda: "anything",
    "object": lambda: "anything",
    "Hashable": lambda: "anything",
    "Exception": lambda: ValueError("an error"),
    "type": lambda: _core.BaseMessage,
    "Callable": lambda: lambda *arguments, **keywords: None,
    "Mapping": dict,
    "dict": dict,
    "list": list,
    "tuple": tuple,
    "set": set,
    "Iterable": list,
    "Sequence": list,
    "Collection": list,
    "deque": deque,
}

#: Arguments for which any function will not do.
SPECIAL = {
    ("BaseLock", "factory"): lambda: threading.Lock,
    ("BaseLock", "ident"): lambda: threading.get_ident,
    ("BaseMessages", "cls"): lambda: _core.BaseAsyncMessage,
    ("BaseMessages", "ready"): deque,
    ("BaseMessages", "changes"): WaitQueue,
    ("PriorityNaming", "steps"): lambda: (0, 3),
    ("RoutingTable.declare", "kind"): lambda: "topic",
    ("EnvelopeTemplate", "body_encoding"): lambda: "base64",
    ("group_alike", "deliveries"): lambda: [made("Delivery")],
    ("word_of", "command"): lambda: b"*1\r\n$4\r\nPING\r\n",
    ("word_of", "place"): lambda: 0,
    ("ListPush.pack", "deliveries"): lambda: [made("Delivery")],
    ("FrameEncoder", "frame_max"): lambda: 8192,
    ("FrameDecoder", "frame_max"): lambda: 8192,
    ("FrameEncoder.publish_many", "deliveries"): lambda: [made("Delivery")],
    ("FrameEncoder.publish_many", "start"): lambda: 0,
}


class Odd:
    """No argument of anything, with methods that may be called where one is looked for."""

    def __len__(self) -> int:
        return 1 << 40

    def __iter__(self) -> Iterator[Any]:
        return iter((None, self))


def first_name(annotation: ast.expr | None) -> str:
    """The name that an annotation begins with."""
    while not isinstance(annotation, ast.Name):
        if isinstance(annotation, ast.BinOp):
            annotation = annotation.left
        elif isinstance(annotation, ast.Subscript):
            annotation = annotation.value
        else:
            return "Any"
    return annotation.id


def parameters_of(function: ast.FunctionDef | None) -> list[ast.arg]:
    if function is None:
        return []
    is_static = any(ast.unparse(each) == "staticmethod" for each in function.decorator_list)
    bound = 0 if is_static or function in STUB.body else 1
    return function.args.args[bound:]


def methods_of(name: str) -> Iterator[ast.FunctionDef]:
    for node in CLASSES[name].body:
        if isinstance(node, ast.FunctionDef) and node.name not in ("__init__", "__buffer__"):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            if not any("property" in each or "setter" in each for each in decorators):
                yield node


def attributes_of(name: str) -> Iterator[str]:
    for node in CLASSES[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.FunctionDef) and "property" in {ast.unparse(each) for each in node.decorator_list}:
            yield node.name


def constructor_of(name: str) -> ast.FunctionDef | None:
    found = [node for node in CLASSES[name].body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    return found[0] if found else None


def value_of(owner: str, parameter: ast.arg) -> Any:
    special = SPECIAL.get((owner, parameter.arg))
    if special is not None:
        return special()
    name = first_name(parameter.annotation)
    return made(name) if name in CLASSES else VALUES[name]()


def made(name: str) -> Any:
    """An object of a class, with what its constructor asks for."""
    return getattr(_core, name)(*[value_of(name, each) for each in parameters_of(constructor_of(name))])


def wrong_values(parameter: ast.arg) -> Iterator[tuple[str, Any]]:
    yield "None", None
    yield "a wrong type", Odd()
    yield "wrong items", [None, Odd()]
    name = first_name(parameter.annotation)
    if name in CLASSES:
        cls = getattr(_core, name)
        try:
            yield "one without its __init__", cls.__new__(cls)
        except TypeError:
            pass  # it refuses to be made so


def must_refuse(parameter: ast.arg, value: Any) -> bool:
    """Whether an object of the core is asked for, and this is none."""
    annotation = parameter.annotation
    return (
        isinstance(annotation, ast.Name)
        and annotation.id in CLASSES
        and not isinstance(value, getattr(_core, annotation.id))
    )


def call(label: str, function: Callable[..., Any], *arguments: Any, refuse: bool = False) -> None:
    print(label, end=": ", flush=True)
    try:
        function(*arguments)
    except SystemError:
        raise
    except Exception as error:
        print(type(error).__name__, flush=True)
        is_refused = isinstance(error, (TypeError, NotImplementedError))
    else:
        print("returned", flush=True)
        is_refused = False
    assert is_refused or not refuse, f"{label} should be a TypeError"


def call_with_wrong(owner: str, function: ast.FunctionDef | None, get: Callable[[], Callable[..., Any]]) -> None:
    parameters = parameters_of(function)
    for index, parameter in enumerate(parameters):
        for what, value in wrong_values(parameter):
            arguments = [value_of(owner, each) for each in parameters]
            arguments[index] = value
            call(f"{owner}({parameter.arg}={what})", get(), *arguments, refuse=must_refuse(parameter, value))


def call_all_methods(label: str, name: str, instance: Any) -> None:
    for method in methods_of(name):
        arguments = [value_of(f"{name}.{method.name}", each) for each in parameters_of(method)]
        call(f"{label}: {method.name}", lambda method=method: getattr(instance, method.name), *arguments)
        call(
            f"{label}: {method.name}()",
            lambda *arguments, method=method: getattr(instance, method.name)(*arguments),
            *arguments,
        )
    for attribute in attributes_of(name):
        call(f"{label}: get {attribute}", getattr, instance, attribute)
    for function in (repr, len, iter, hash, copy.copy):
        call(f"{label}: {function.__name__}", function, instance)
    call(f"{label}: ==", lambda: instance == Odd())


def main() -> None:
    for name, function in FUNCTIONS.items():
        call_with_wrong(name, function, lambda name=name: getattr(_core, name))
    for name in CLASSES:
        cls = getattr(_core, name)
        call_with_wrong(name, constructor_of(name), lambda cls=cls: cls)
        for method in methods_of(name):
            owner = f"{name}.{method.name}"
            call_with_wrong(owner, method, lambda name=name, method=method: getattr(made(name), method.name))
        call_all_methods(f"{name} made", name, made(name))
        try:
            bare = cls.__new__(cls)
        except TypeError:
            pass
        else:
            call_all_methods(f"{name} without its __init__", name, bare)
        for attribute in attributes_of(name):
            for what, value in (("None", None), ("a wrong type", Odd())):
                instance = made(name)
                call(f"{name}.{attribute} = {what}", setattr, instance, attribute, value)
                call_all_methods(f"{name} with {attribute} = {what}", name, instance)
            instance = made(name)
            call(f"del {name}.{attribute}", delattr, instance, attribute)
            call_all_methods(f"{name} without {attribute}", name, instance)
    print("done", flush=True)


if __name__ == "__main__":
    sys.setrecursionlimit(500)
    main()
