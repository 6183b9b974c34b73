"""Fuzzing topic routing: patterns lead where their definition says, also those that others removed meanwhile.

The input is a routing key, then patterns, each on a line; a pattern that begins with ``-`` is unbound again.
"""

from functools import cache

from kombulite._core import RoutingTable
from tests.fuzz.engine import Target

MOST_WORDS = 40  # the definition below is slow


def topic_matches(pattern: str, key: str) -> bool:
    """The definition: ``*`` is one word, ``#`` zero or more; an empty key has no words."""
    wanted, words = (text.split(".") if text else [] for text in (pattern, key))

    @cache
    def match(i: int, j: int) -> bool:
        if i == len(wanted):
            return j == len(words)
        if wanted[i] == "#":
            return match(i + 1, j) or (j < len(words) and match(i, j + 1))
        return j < len(words) and wanted[i] in ("*", words[j]) and match(i + 1, j + 1)

    return match(0, 0)


def fuzz_one(data: bytes) -> None:
    """Route a key; raises whatever is a defect."""
    key, *lines = data.decode("utf-8", "surrogateescape").split("\n")
    table = RoutingTable()
    table.declare("e", "topic")
    bound = set()
    for line in lines:
        pattern = line.removeprefix("-")
        if line.startswith("-"):
            table.unbind("e", pattern, pattern)
            bound.discard(pattern)
        else:
            table.bind("e", pattern, pattern)
            bound.add(pattern)
    found = table.route("e", key)
    assert len(found) == len(set(found))
    assert set(found) <= bound
    if key.count(".") < MOST_WORDS:
        short = {pattern for pattern in bound if pattern.count(".") < MOST_WORDS}
        assert set(found) & short == {pattern for pattern in short if topic_matches(pattern, key)}


SEEDS = [
    b"order.eu.created\norder.*.created\norder.#\n#\n*.*\nstock.*\n#.created\n-order.#",
    b"a.b.c.d\n#.#.d\n*.#.*\na.#.d.#\n#.b.#\na.b.c.d\n-#.#.d\n-a.b.c.d",
    b"\n\n#\n*\n.\n..\n-",
    b"\xc3\xa9.\xff\n\xc3\xa9.*\n*.\xff\n#",
]
SCRAPS = [
    b".",
    b"..",
    b"*",
    b"#",
    b"#.#",
    b"*.#",
    b"\n",
    b"\n-",
    b"\n#",
    b"a",
    b"\x00",
    b"#." * 40,
    b"a." * 40,
    b"*." * 9,
]

target = Target("routing", fuzz_one, SEEDS, SCRAPS)

if __name__ == "__main__":
    target.main(__doc__)
