"""The faults on each library, side by side: ``python -m tests.faults``. Prints a Markdown table.

Each row is a run of its own: two producers and two consumers of one library, through our proxy, on a private broker.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

from tests.faults.inflict import FAULTS, Fault
from tests.faults.stage import BROKERS, Outcome, Stage
from tests.servers import Server

#: Libraries, and the brokers that they know.
LIBRARIES = {"kombu": BROKERS, "kombulite": BROKERS, "kombulite.aio": BROKERS, "aio-pika": ("RabbitMQ",)}
QUEUE_TYPES = ("classic", "quorum", "stream")
HEAD = ["fault", "broker", "library", *Outcome._fields]


def run(
    server: Server,
    library: str,
    fault: Fault,
    times: int,
    random: Random,
    programs: int = 2,
    queue_type: str = "classic",
) -> tuple[Outcome, str]:
    """Put a fault on. Returns the outcome, and what the programs had to say."""
    with Stage(server, [library], fault.moves_clock, queue_type) as stage:
        for _ in range(programs):
            stage.produce()
            stage.consume()
        stage.goes_on()
        time.sleep(1)
        fault.inflict(stage, times, random)
        stage.goes_on()
        return stage.outcome(), stage.logs()


def lane(
    broker: str, library: str, names: list[str], seed: int, verbose: bool, queue_type: str = "classic"
) -> list[list[str]]:
    """All faults on one library with one broker; the rows of the table."""
    title = broker if queue_type == "classic" else f"{broker}, {queue_type}"
    rows = []
    with BROKERS[broker]() as server:
        for name in names:
            fault = FAULTS[name]
            outcome, logs = run(server, library, fault, fault.few, Random(seed), queue_type=queue_type)
            rows.append([f"{fault.title}, {fault.few}x", title, library, *map(str, outcome)])
            print(" ".join(rows[-1]), file=sys.stderr, flush=True)
            if verbose and not outcome.is_good:
                print(logs, file=sys.stderr, flush=True)
    return rows


def table(lanes: list[list[list[str]]]) -> Iterator[str]:
    """The rows, those of one fault together."""
    yield f"| {' | '.join(HEAD)} |"
    yield "|" + "---|" * len(HEAD)
    for rows in zip(*lanes, strict=True):
        for row in rows:
            yield f"| {' | '.join(row)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--brokers", nargs="+", choices=BROKERS, default=list(BROKERS))
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument(
        "--queue-type", nargs="+", choices=QUEUE_TYPES, default=["classic"], help="of RabbitMQ; default: classic"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="print what the programs said when it did not end well")
    options = parser.parse_args()
    triples = [
        (broker, library, queue_type)
        for broker in options.brokers
        for queue_type in (options.queue_type if broker == "RabbitMQ" else ["classic"])
        for library in options.libraries
        if broker in LIBRARIES[library]
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        made = [
            pool.submit(lane, broker, library, options.faults, options.seed, options.verbose, queue_type)
            for broker, library, queue_type in triples
        ]
        lanes = [each.result() for each in made]
    print("\n".join(table(lanes)))


if __name__ == "__main__":
    main()
