"""The faults: what is done to a stage while its programs work. Each does it so many times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

import redis

from tests.faults.stage import HEARTBEAT, Stage
from tests.proxy import Cut, Direction
from tests.servers import RabbitMQServer, Server, set_memory_limit

AWAY = 3 * HEARTBEAT + 1  # seconds that a silent broker is silent: past two heartbeats
LONGEST_CUT = 1400  # bytes: more than any handshake and the publish or claim that follows it


def kill_consumers(stage: Stage, times: int, random: Random) -> None:
    for _ in range(times):
        victim = stage.consume()
        if random.random() < 0.8:
            stage.wait_for_progress(victim)
        time.sleep(random.uniform(0, 0.3))
        stage.kill(victim)


def kill_producers(stage: Stage, times: int, random: Random) -> None:
    for _ in range(times):
        victim = stage.produce(pause=0)
        if random.random() < 0.8:
            stage.wait_for_progress(victim)
        time.sleep(random.uniform(0, 0.3))
        stage.kill(victim)


def kill_broker(stage: Stage, times: int, random: Random) -> None:
    for _ in range(times):
        stage.server.kill()
        time.sleep(random.uniform(0, 0.5))
        stage.server.start()
        if not stage.goes_on():
            return
        time.sleep(random.uniform(0, 0.5))


def pause_broker(stage: Stage, times: int, random: Random) -> None:
    for _ in range(times):
        stage.server.pause()
        time.sleep(AWAY)
        stage.server.resume()
        if not stage.goes_on():
            return


def block_broker(stage: Stage, times: int, random: Random) -> None:
    """The broker is short of memory: it takes no messages, and hands out those that it has."""
    for _ in range(times):
        limit_memory(stage.server, True)
        time.sleep(AWAY)
        limit_memory(stage.server, False)
        if not stage.goes_on():
            return


def limit_memory(server: Server, is_short: bool) -> None:
    """Let a broker have too little memory, or enough."""
    if isinstance(server, RabbitMQServer):
        set_memory_limit(server, 0.000001 if is_short else 0.4)
    else:
        with redis.Redis(port=server.port) as client:
            client.config_set("maxmemory", int(is_short))


def reset(stage: Stage, times: int, random: Random) -> None:
    for _ in range(times):
        stage.proxy.reset()
        time.sleep(random.uniform(0, 1.5))


def finish(stage: Stage, times: int, random: Random) -> None:
    for _ in range(times):
        stage.proxy.finish()
        time.sleep(random.uniform(0, 1.5))


def silence(stage: Stage, times: int, random: Random) -> None:
    """Connections go dead without a word; new ones do too, until it ends."""
    for _ in range(times):
        stage.proxy.deaf = True
        stage.proxy.silence()
        time.sleep(AWAY)
        stage.proxy.deaf = False
        if not stage.goes_on():
            return


def slices(stage: Stage, times: int, random: Random) -> None:
    stage.proxy.slice = 1
    for _ in range(times):
        stage.proxy.reset()
        time.sleep(3)
    stage.proxy.slice = None


def cuts(stage: Stage, times: int, random: Random) -> None:
    """Each new connection ends after some bytes more than the one before: within handshakes, publishes, claims."""
    for direction in Direction:
        taken = stage.proxy.taken
        stage.proxy.cuts = staircase(direction, times, random)
        stage.proxy.reset()
        deadline = time.monotonic() + 2 * times + 10  # a consumer comes back once a second
        while stage.proxy.taken - taken < times and time.monotonic() < deadline:
            time.sleep(0.05)
        stage.proxy.cuts = iter(())
        if not stage.goes_on():
            return


def staircase(direction: Direction, steps: int, random: Random) -> Iterator[Cut]:
    """So many cuts, from the first byte on."""
    height = LONGEST_CUT / steps
    for step in range(steps):
        yield Cut(direction, max(int(step * height + random.uniform(0, height)), 1))


def refuse_descriptors(stage: Stage, times: int, random: Random) -> None:
    """The connections end, and no file or socket can be opened for a while."""
    for _ in range(times):
        allow = [program.refuse_descriptors() for program in stage.programs()]
        stage.proxy.reset()
        time.sleep(3)
        for each in allow:
            each()
        if not stage.goes_on():
            return


def move_clock(stage: Stage, times: int, random: Random) -> None:
    """The programs' wall clock goes forth and back by an hour, also while they connect."""
    assert stage.clock is not None
    for hours in [1, -1] * times:
        stage.clock.move(3600 * hours)
        time.sleep(1)
        stage.proxy.reset()
        time.sleep(2)
        if not stage.goes_on():
            return


def at_random(stage: Stage, seconds: float, random: Random) -> bool:
    """One fault after another for so long, whichever it is. False if somebody did not get over one."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        random.choice(HARMS)(stage, 1, random)
        if not stage.goes_on():
            return False
        time.sleep(random.uniform(0, 2))
    return True


#: What may happen at any time.
HARMS = (
    kill_consumers,
    kill_producers,
    kill_broker,
    pause_broker,
    block_broker,
    reset,
    finish,
    silence,
    slices,
    refuse_descriptors,
)


class Fault(NamedTuple):
    """A fault, and how often it happens."""

    title: str
    inflict: Callable[[Stage, int, Random], None]
    few: int
    many: int
    moves_clock: bool = False


FAULTS = {
    fault.inflict.__name__: fault
    for fault in [
        Fault("consumer killed (SIGKILL)", kill_consumers, 20, 200),
        Fault("producer killed (SIGKILL)", kill_producers, 5, 50),
        Fault("broker killed and started again", kill_broker, 3, 20),
        Fault("broker stopped (SIGSTOP) past two heartbeats", pause_broker, 1, 5),
        Fault("broker takes no messages, past two heartbeats", block_broker, 1, 5),
        Fault("connections reset (RST)", reset, 10, 50),
        Fault("connections ended (FIN)", finish, 10, 50),
        Fault("network silent past two heartbeats", silence, 1, 5),
        Fault("one byte in a packet", slices, 1, 5),
        Fault("connections cut after N bytes, N rising", cuts, 40, 200),
        Fault("no file descriptors left", refuse_descriptors, 1, 5),
        Fault("clock moved an hour, both ways", move_clock, 1, 5, moves_clock=True),
    ]
}
