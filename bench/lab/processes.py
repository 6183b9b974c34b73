"""What a process took, from /proc. (The peak that wait4 tells has in it what the parent had before exec.)"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def processor_time(pid: int) -> float:
    """Processor time that the threads of a process took so far, in seconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended
            total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return total / 1e9


def peak_memory(pid: int) -> int:
    """The most that a process had resident so far, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
