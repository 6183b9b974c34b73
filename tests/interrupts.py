"""Signals at each instruction of an operation, one after the other, whose handler raises.

A signal is noted at one instruction, and the interpreter runs its handler where it would run it for any signal: so what
is found here can happen, and what can happen is found.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

from tests.servers import Unavailable

SOURCE = Path(__file__).with_name("interrupts.c")
SIGNAL = signal.SIGUSR2
TOOL = 4  # of sys.monitoring's; nobody's
PATIENCE = 20.0  # seconds for what takes a millisecond


class Interrupted(BaseException):
    """What the signal handler raises."""


class Interrupts:
    """Interrupts operations of the main thread. Needs a folder, a C compiler and the headers of Python."""

    def __init__(self, folder: Path) -> None:
        library = folder / f"interrupts{sysconfig.get_config_var('EXT_SUFFIX')}"
        include = sysconfig.get_paths()["include"]
        try:
            command = ["cc", "-O1", "-shared", "-fPIC", f"-I{include}", "-o", str(library), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Unavailable(f"signals of our own cannot be built: {error}") from error
        spec = spec_from_file_location("interrupts", library)
        assert spec is not None
        assert spec.loader is not None
        self._module: Any = module_from_spec(spec)
        spec.loader.exec_module(self._module)

    def at_each(self, operation: Callable[[], object], step: int = 1) -> Iterator[bool]:
        """Run an operation with a signal at its first instruction, at its second, …, until it ends before that.

        ``step``: from one to the next. Yields after each run: whether the exception came out of it.
        """
        with self._ready():
            for target in count(0, step):
                is_interrupted = False
                try:
                    self._module.arm(target, SIGNAL, sys.version_info < (3, 12))
                    operation()
                except Interrupted:
                    is_interrupted = True
                try:
                    seen = self._module.disarm()
                except Interrupted:  # it came behind the last call of the operation
                    seen = self._module.disarm()
                yield is_interrupted
                if seen <= target:
                    assert target > 10, "nothing was interrupted"
                    return

    @contextmanager
    def _ready(self) -> Iterator[None]:
        def raise_interrupted(*_: object) -> None:
            raise Interrupted

        handler, tracer = signal.signal(SIGNAL, raise_interrupted), sys.gettrace()
        if sys.version_info >= (3, 12):
            monitoring = sys.monitoring
            monitoring.use_tool_id(TOOL, "interrupts")
            monitoring.register_callback(TOOL, monitoring.events.INSTRUCTION, self._module.tick)
            monitoring.set_events(TOOL, monitoring.events.INSTRUCTION)
        try:
            yield
        finally:
            if sys.version_info >= (3, 12):
                monitoring.set_events(TOOL, 0)
                monitoring.free_tool_id(TOOL)
            else:
                sys.settrace(tracer)
            signal.signal(SIGNAL, handler)


def in_another_thread(function: Callable[[], Any]) -> Any:
    """What a function returns in another thread; fails if it is stuck there."""
    found: list[Any] = []
    thread = Thread(target=lambda: found.append(function()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "another thread does not get through"
    assert found, "another thread failed"
    return found[0]
