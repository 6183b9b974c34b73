"""What a run writes down about its messages: which ones there were, and how long they took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import NamedTuple

GROWTH = 4096  # bytes: room for 32768 more numbers

LATEST = 2048  # latencies that the live figures are about; a power of two
MOST_KEPT = 16384  # latencies kept for the closing figures


class Ledger:
    """A set of sequence numbers, one bit each. Written by one thread; others may read the counts."""

    __slots__ = ("_bits", "repeated", "total")

    def __init__(self) -> None:
        self.total = 0
        self.repeated = 0
        self._bits = bytearray()

    def enter(self, number: int) -> None:
        """Note a number; one that is noted already counts as repeated."""
        place, bit = number >> 3, 1 << (number & 7)
        bits = self._bits
        if place >= len(bits):
            bits.extend(bytes(place - len(bits) + GROWTH))
        if bits[place] & bit:
            self.repeated += 1
        else:
            bits[place] |= bit
        self.total += 1

    @property
    def distinct(self) -> int:
        """How many different numbers are noted."""
        return self.total - self.repeated

    def as_int(self) -> int:
        """Return the set as the bits of one number."""
        return int.from_bytes(self._bits, "little")


class Balance(NamedTuple):
    """What became of the messages."""

    published: int
    consumed: int
    duplicates: int
    lost: int


def balance(published: Iterable[Ledger], consumed: Iterable[Ledger]) -> Balance:
    """Compare what all producers sent with what all consumers got."""
    sent = got = 0
    total_sent = total_got = duplicates = 0
    for ledger in published:
        sent |= ledger.as_int()
        total_sent += ledger.total
    for ledger in consumed:
        own = ledger.as_int()
        duplicates += ledger.repeated + (got & own).bit_count()
        got |= own
        total_got += ledger.total
    return Balance(total_sent, total_got, duplicates, (sent & ~got).bit_count())


class Percentiles(NamedTuple):
    """Latencies in seconds."""

    p50: float
    p99: float
    p999: float


def percentiles(latencies: Iterable[float]) -> Percentiles | None:
    """Return the percentiles of some latencies, None if there are none."""
    ordered = sorted(latencies)
    if not ordered:
        return None
    return Percentiles(*(ordered[ceil(share * len(ordered)) - 1] for share in (0.5, 0.99, 0.999)))


class Latencies:
    """The latest latencies, and an even selection of all. Written by one thread; others may read ``latest``."""

    __slots__ = ("_count", "_latest", "_stride", "kept")

    def __init__(self) -> None:
        self.kept: list[float] = []
        self._latest = [0.0] * LATEST
        self._count = 0
        self._stride = 1

    def add(self, seconds: float) -> None:
        """Note one."""
        count = self._count
        self._latest[count & (LATEST - 1)] = seconds
        if not count % self._stride:
            self.kept.append(seconds)
            if len(self.kept) >= MOST_KEPT:
                del self.kept[1::2]
                self._stride *= 2
        self._count = count + 1

    def latest(self) -> Sequence[float]:
        """Return a copy of the latest ones."""
        return self._latest[: self._count]
