"""What all fuzz targets share: mutated inputs, the corpus, the loop, the command line."""

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from time import monotonic

CORPUS = Path(__file__).parent / "corpus"


def mutate(source: random.Random, data: bytes, others: Sequence[bytes], scraps: Sequence[bytes]) -> bytes:
    """A changed copy of ``data``: a few bytes flipped, cut, doubled, or replaced by scraps or parts of others."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 3, 8))):
        start = source.randint(0, len(changed))
        end = min(len(changed), start + source.choice((0, 1, 1, 2, 4, 16, 64)))
        match source.randrange(6):
            case 0 if start < len(changed):
                changed[start] ^= 1 << source.randrange(8)
            case 1:
                del changed[start:end]
            case 2:
                changed[start:start] = changed[start:end]
            case 3:
                changed[start:end] = source.randbytes(source.randint(0, 4))
            case 4:
                changed[start:end] = source.choice(scraps)
            case _:
                other = source.choice(others)
                place = source.randint(0, len(other))
                changed[start:end] = other[place : place + source.randint(0, 40)]
    return bytes(changed)


@dataclass(frozen=True)
class Target:
    """``fuzz_one`` takes bytes and raises whatever is a defect; ``seeds`` are mutated, ``scraps`` put into them.

    ``corpus/<name>`` has more seeds: one input a file, among them those that once failed.
    """

    name: str
    fuzz_one: Callable[[bytes], None]
    seeds: Sequence[bytes]
    scraps: Sequence[bytes]

    @property
    def folder(self) -> Path:
        """Its part of the corpus."""
        return CORPUS / self.name

    def corpus(self) -> list[bytes]:
        """All inputs to start from."""
        return [*self.seeds, *(path.read_bytes() for path in sorted(self.folder.glob("*")))]

    def mutations(self, seed: int) -> Iterator[bytes]:
        """Mutated seeds without end, the same ones for the same number."""
        source, corpus = random.Random(seed), self.corpus()
        while True:
            data = source.choice(corpus)
            for _ in range(source.choice((1, 1, 2, 4))):
                data = mutate(source, data, corpus, self.scraps)
                yield data

    def run(self, seed: int, executions: int | None = None, seconds: float | None = None) -> int:
        """Fuzz until the count or the time is reached; returns the executions. Prints the input of a failure.

        What comes first is the corpus as it is.
        """
        end = None if seconds is None else monotonic() + seconds
        inputs = chain(self.corpus(), self.mutations(seed))
        for done in count():
            if done == executions or (end is not None and monotonic() >= end):
                return done
            data = next(inputs)
            try:
                self.fuzz_one(data)
            except BaseException:
                print(f"seed {seed}, execution {done}: {data!r}", file=sys.stderr)
                raise
        raise AssertionError("count() has no end")

    def main(self, description: str) -> None:
        """The command line."""
        if "--atheris" in sys.argv:
            import atheris

            sys.argv.remove("--atheris")
            atheris.Setup([*sys.argv, str(self.folder)], self.fuzz_one)
            atheris.Fuzz()
            return
        parser = argparse.ArgumentParser(description=description.splitlines()[0])
        parser.add_argument("--seconds", type=float, default=10)
        parser.add_argument("--seed", type=int, default=0)
        options = parser.parse_args()
        print(f"{self.run(options.seed, seconds=options.seconds):,} executions")
