"""A wall clock of our own for the programs that tests start.

Not libfaketime, whose programs cannot sleep when their monotonic clock is left alone (0.9.10 with Python 3.11).
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.servers import Unavailable

SOURCE = Path(__file__).with_name("clock.c")


class Clock:
    """What programs take for the time of day; their monotonic clock stays what it is.

    It needs a folder, a C compiler and a C library of Linux. Raises Unavailable without them.
    """

    def __init__(self, folder: Path) -> None:
        self._path, library = folder / "clock", folder / "clock.so"
        try:
            command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Unavailable(f"a clock of our own cannot be built: {error}") from error
        self.move(0)
        #: What a program that shall have it finds in its environment.
        self.environment: Mapping[str, str] = {"LD_PRELOAD": str(library), "TEST_CLOCK": str(self._path)}

    def move(self, seconds: int) -> None:
        """Put it that far before the true time, or behind (negative); at once in all programs."""
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.write(struct.pack("q", seconds))
