"""A run: producers and consumers, each a thread with its own connection, and the figures of what they do.

Nothing here writes to the screen. The main thread calls ``Run``; it never waits for the broker itself, so it notices
in time when a thread fails or hangs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from threading import Event, Lock, Thread
from time import monotonic, perf_counter, perf_counter_ns, process_time, sleep
from typing import Any, NamedTuple

from kombulite import Connection, Consumer, Exchange, Message, Producer, Queue, binding, uuid
from kombulite.cli.ledger import Latencies, Ledger, Percentiles, balance, percentiles
from kombulite.cli.orders import Orders

# Seconds.
START_TIMEOUT = 30.0  # until all threads are connected
PUBLISH_TIMEOUT = 10.0  # for the broker to take one message
STALL_TIMEOUT = 15.0  # without any progress while there is something to do
END_TIMEOUT = 15.0  # for the threads to end
RECEIVE_TIMEOUT = 0.1
GAUGE_INTERVAL = 0.05
POLL_INTERVAL = 0.02
PAUSE = 0.001  # of a producer that may not publish yet
RATE_WINDOW = 1.0

CLAIM = 64  # events that a producer takes on at a time
MEASURED_EVENTS = 10_000  # to tell the program's own share of the processor time


@dataclass(frozen=True)
class Plan:
    """What a run shall do. It ends at ``messages`` or after ``seconds``, whichever is first; one of them is needed.

    ``rate``: messages per second (None: as fast as it goes); ``max_depth``: messages published and not yet consumed.
    """

    broker: str = "memory://"
    messages: int | None = None
    seconds: float | None = None
    producers: int = 1
    consumers: int = 2
    prefetch: int = 1000
    queue: str = "kombulite.run"
    rate: float | None = None
    max_depth: int = 10_000


@dataclass(frozen=True)
class Sample:
    """A look at a run that is on. Rates are per second, over the last second."""

    elapsed: float
    published: int
    consumed: int
    publish_rate: float
    consume_rate: float
    depth: int
    latency: Percentiles | None


@dataclass(frozen=True)
class Report:
    """The closing figures.

    Rates are per second over the whole run. ``cpu`` is seconds per consumed message, ``own_cpu`` the part of them that
    the program takes to make and note events.
    """

    broker: str
    published: int
    consumed: int
    duplicates: int
    lost: int
    seconds: float
    publish_rate: float
    consume_rate: float
    peak_depth: int
    latency: Percentiles | None
    cpu: float
    own_cpu: float
    error: str | None

    @property
    def succeeded(self) -> bool:
        """Whether each message came once, and nothing failed."""
        return self.error is None and not self.lost and not self.duplicates


class Topology(NamedTuple):
    """What a run declares. All of it goes when the run's connections do, even if it is killed."""

    exchange: Exchange
    queues: tuple[Queue, ...]

    @classmethod
    def named(cls, name: str) -> Topology:
        """Return an exchange and two queues of a name that no other run has. Each event goes to one of the queues."""
        name = f"{name}-{uuid()[:8]}"
        exchange = Exchange(name, type="topic", auto_delete=True)
        open_orders = [binding(exchange, "order.created"), binding(exchange, "order.paid")]
        return cls(
            exchange,
            (
                Queue(f"{name}.fulfilment", bindings=open_orders, auto_delete=True),
                Queue(f"{name}.refunds", exchange, routing_key="*.cancelled", auto_delete=True),
            ),
        )


class Gate:
    """Gives the producers the numbers of the events to publish, as the bounds of the plan allow."""

    def __init__(self, plan: Plan, consumed: Callable[[], int]) -> None:
        self._plan = plan
        self._consumed = consumed
        self._lock = Lock()
        self._closed = False
        self.opened = 0.0
        self.claimed = 0

    def open(self) -> None:
        """Start the clock."""
        self.opened = perf_counter()

    def close(self) -> None:
        """Give no more."""
        self._closed = True

    def claim(self) -> range | None:
        """Numbers to publish: empty if there are none yet, None if there will be no more."""
        plan = self._plan
        with self._lock:
            elapsed = perf_counter() - self.opened
            left = CLAIM if plan.messages is None else plan.messages - self.claimed
            if self._closed or left <= 0 or (plan.seconds is not None and elapsed >= plan.seconds):
                return None
            room = plan.max_depth - (self.claimed - self._consumed())
            due = CLAIM if plan.rate is None else int(elapsed * plan.rate) + 1 - self.claimed
            first = self.claimed
            self.claimed += max(min(CLAIM, left, room, due), 0)
            return range(first, self.claimed)


class Worker(Thread):
    """A thread of a run. ``work(stack, ready)`` enters what it opens into the stack and sets ``ready``."""

    def __init__(
        self, name: str, work: Callable[[ExitStack, Event], None], on_error: Callable[[str, Exception], None]
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.ready = Event()
        self._work = work
        self._on_error = on_error

    def run(self) -> None:
        """Do the work, and report what it raises."""
        try:
            with ExitStack() as stack:
                try:
                    self._work(stack, self.ready)
                except Exception as error:
                    # Before the stack unwinds: with its queues and connections gone, others fail too.
                    self._on_error(self.name, error)
        except Exception as error:
            self._on_error(self.name, error)
        finally:
            self.ready.set()


class Host:
    """Declares the topology, watches how many messages wait until told to rest, and deletes it all to finish.

    It rests while the consumers end: the queues go with the last of them, and cannot be looked at any more.
    """

    def __init__(self, broker: str, topology: Topology) -> None:
        self.depth = 0
        self.peak = 0
        self.rest, self.resting, self.finish = Event(), Event(), Event()
        self._broker = broker
        self._topology = topology

    def __call__(self, stack: ExitStack, ready: Event) -> None:
        """Until told to finish."""
        try:
            queues = self._declare(stack)
            ready.set()
            while not self.rest.wait(GAUGE_INTERVAL):
                self._measure(queues)
        finally:
            self.resting.set()
        self.finish.wait(END_TIMEOUT)

    def _declare(self, stack: ExitStack) -> list[Queue]:
        """Declare all; the stack deletes it, also where some of it fails."""
        channel = stack.enter_context(Connection(self._broker)).channel()
        stack.callback(self._topology.exchange(channel).delete)
        queues = [queue(channel) for queue in self._topology.queues]
        for queue in queues:
            stack.callback(queue.delete)
            queue.declare()
        return queues

    def _measure(self, queues: list[Queue]) -> None:
        infos = [queue.queue_declare(passive=True) for queue in queues]
        self.depth = sum(info.message_count for info in infos if info is not None)
        self.peak = max(self.peak, self.depth)


class Producing:
    """A producer: publishes the events that the gate gives it."""

    def __init__(self, broker: str, topology: Topology, gate: Gate, opened: Event) -> None:
        self.ledger = Ledger()
        self.last = 0.0  # when it published last
        self._broker = broker
        self._topology = topology
        self._gate = gate
        self._opened = opened

    def __call__(self, stack: ExitStack, ready: Event) -> None:
        """Until the gate gives no more."""
        orders = Orders()
        connection = stack.enter_context(Connection(self._broker))
        # An auto-delete exchange would be declared again for each message; it is there already.
        producer = Producer(connection.channel(), self._topology.exchange, serializer="json", auto_declare=False)
        ready.set()
        if not self._opened.wait(START_TIMEOUT):
            return
        publish, enter = producer.publish, self.ledger.enter
        while (numbers := self._gate.claim()) is not None:
            if not numbers:
                sleep(PAUSE)
                continue
            for number in numbers:
                event = orders.event(number)
                publish(event, routing_key=event["type"], timeout=PUBLISH_TIMEOUT)
                enter(number)
            self.last = perf_counter()


class Consuming:
    """A consumer: takes events from all queues, checks and acknowledges them, until told to stop."""

    def __init__(self, plan: Plan, topology: Topology, gate: Gate, stop: Event) -> None:
        self.ledger = Ledger()
        self.latencies = Latencies()
        self.last = 0.0  # when it consumed last
        self._plan = plan
        self._topology = topology
        self._gate = gate
        self._stop = stop

    def __call__(self, stack: ExitStack, ready: Event) -> None:
        """Until told to stop."""
        connection = stack.enter_context(Connection(self._plan.broker))
        stack.enter_context(
            Consumer(
                connection.channel(),
                queues=self._topology.queues,
                callbacks=[self.on_event],
                accept=["json"],
                prefetch_count=self._plan.prefetch,
            )
        )
        ready.set()
        while not self._stop.is_set():
            try:
                connection.drain_events(timeout=RECEIVE_TIMEOUT)
            except TimeoutError:
                continue

    def on_event(self, event: Any, message: Message | NoMessage) -> None:
        """Note an event and acknowledge it. Raises ValueError for one that is not of this run."""
        now = perf_counter_ns()
        number = event["number"]
        if not 0 <= number < self._gate.claimed:
            raise ValueError(f"event {number!r} was never published")
        self.ledger.enter(number)
        self.latencies.add((now - event["sent"]) * 1e-9)
        self.last = now * 1e-9
        message.ack()


class NoMessage:
    """Stands for a message where only the program's own work is measured."""

    def ack(self) -> None:
        """Acknowledge nothing."""


def own_cost(plan: Plan) -> float:
    """Return the processor time, in seconds, that a run takes for an event besides publishing and consuming it."""
    gate = Gate(plan, int)
    gate.claimed = MEASURED_EVENTS
    consuming = Consuming(plan, Topology.named(plan.queue), gate, Event())
    orders, ledger, message = Orders(), Ledger(), NoMessage()
    started = process_time()
    for number in range(MEASURED_EVENTS):
        event = orders.event(number)
        ledger.enter(number)
        consuming.on_event(event, message)
    return (process_time() - started) / MEASURED_EVENTS


class Speedometer:
    """Rates over the last second, from the counts it is shown."""

    def __init__(self) -> None:
        self._seen = deque([(0.0, 0, 0)])

    def rates(self, elapsed: float, published: int, consumed: int) -> tuple[float, float]:
        """Messages published and consumed per second."""
        seen = self._seen
        while len(seen) > 1 and elapsed - seen[1][0] >= RATE_WINDOW:
            seen.popleft()
        since, published_then, consumed_then = seen[0]
        seen.append((elapsed, published, consumed))
        passed = max(elapsed - since, 1e-9)
        return (published - published_then) / passed, (consumed - consumed_then) / passed


class Run:
    """Starts and ends the threads of a run, and reads their figures. ``start``, ``wait`` until False, ``close``.

    Raises KeyError or ValueError, as ``Connection`` does, for a broker URL that cannot be.
    """

    def __init__(self, plan: Plan) -> None:
        if plan.messages is None and plan.seconds is None:
            raise ValueError("a run needs an end: messages or seconds")
        self.plan = plan
        self.broker: str = Connection(plan.broker).as_uri(mask="")
        self.error: str | None = None
        topology = Topology.named(plan.queue)
        self._gate = Gate(plan, self._consumed)
        self._opened, self._stopped, self._failed = Event(), Event(), Event()
        self._host = Host(plan.broker, topology)
        self._producing = [Producing(plan.broker, topology, self._gate, self._opened) for _ in range(plan.producers)]
        self._consuming = [Consuming(plan, topology, self._gate, self._stopped) for _ in range(plan.consumers)]
        self._host_thread = Worker("host", self._host, self._fail)
        self._producers = [Worker(f"producer {n}", work, self._fail) for n, work in enumerate(self._producing, 1)]
        self._consumers = [Worker(f"consumer {n}", work, self._fail) for n, work in enumerate(self._consuming, 1)]
        self._speedometer = Speedometer()
        self._cpu_started = 0.0
        self._moved: tuple[tuple[int, int], float] = (0, 0), 0.0  # counts, and since when they are the same

    # --- course

    def start(self) -> None:
        """Connect all, then let the producers begin. A failure is found in ``error``."""
        deadline = monotonic() + START_TIMEOUT
        for workers in ([self._host_thread], self._consumers, self._producers):
            for worker in workers:
                worker.start()
            for worker in workers:
                if not worker.ready.wait(deadline - monotonic()):
                    self._fail(worker.name, TimeoutError(f"not connected within {START_TIMEOUT:g} s"))
                if self.error is not None:
                    return
        self._cpu_started = process_time()
        self._moved = (0, 0), monotonic()
        self._gate.open()
        self._opened.set()

    def wait(self, seconds: float) -> bool:
        """Let some time pass. False, and at once, when the run is over."""
        deadline = monotonic() + seconds
        while not self._is_over():
            left = deadline - monotonic()
            if left <= 0:
                return True
            self._failed.wait(min(left, POLL_INTERVAL))
        return False

    def stop(self) -> None:
        """Publish no more; the run is over when all that was published is consumed."""
        self._gate.close()
        self._opened.set()

    def close(self) -> Report:
        """End the threads, delete what was declared, and draw up the figures."""
        cpu = process_time() - self._cpu_started
        deadline = monotonic() + END_TIMEOUT
        self.stop()
        self._host.rest.set()
        if self._host_thread.ident is not None:
            self._host.resting.wait(max(deadline - monotonic(), 0))
        self._stopped.set()
        self._end([*self._producers, *self._consumers], deadline)
        self._host.finish.set()
        self._end([self._host_thread], deadline)
        return self._report(cpu)

    def _end(self, workers: list[Worker], deadline: float) -> None:
        for worker in workers:
            if worker.ident is not None:
                worker.join(max(deadline - monotonic(), 0))
            if worker.is_alive():
                self._fail(worker.name, TimeoutError(f"did not end within {END_TIMEOUT:g} s"))

    def _is_over(self) -> bool:
        if self._failed.is_set():
            return True
        ended = not any(worker.is_alive() for worker in self._producers)  # first, so that what they published is final
        counts = self._published(), self._consumed()
        return (ended and counts[0] <= counts[1]) or self._has_stalled(counts)

    def _has_stalled(self, counts: tuple[int, int]) -> bool:
        now = monotonic()
        if counts != self._moved[0] or self._gate.claimed <= counts[1]:
            self._moved = counts, now
        elif now - self._moved[1] > STALL_TIMEOUT:
            missing = self._gate.claimed - counts[1]
            self._fail(
                "run", TimeoutError(f"no progress for {STALL_TIMEOUT:g} s, and {missing} events are outstanding")
            )
            return True
        return False

    def _fail(self, where: str, error: Exception) -> None:
        """Take note of the first error, and end the run."""
        if self.error is None:
            text = str(error).replace(self.plan.broker, self.broker)
            self.error = f"{where}: {type(error).__name__}: {text}"
        self._gate.close()
        self._failed.set()

    # --- figures

    def _published(self) -> int:
        return sum(each.ledger.total for each in self._producing)

    def _consumed(self) -> int:
        return sum(each.ledger.distinct for each in self._consuming)

    def _latest_latencies(self) -> Iterator[float]:
        return chain.from_iterable(each.latencies.latest() for each in self._consuming)

    def sample(self) -> Sample:
        """How it stands. To be called a few times a second."""
        elapsed = perf_counter() - self._gate.opened if self._gate.opened else 0.0
        consumed, published = self._consumed(), self._published()
        publish_rate, consume_rate = self._speedometer.rates(elapsed, published, consumed)
        latency = percentiles(self._latest_latencies())
        return Sample(elapsed, published, consumed, publish_rate, consume_rate, self._host.depth, latency)

    def _report(self, cpu: float) -> Report:
        published, consumed, duplicates, lost = balance(
            (each.ledger for each in self._producing), (each.ledger for each in self._consuming)
        )
        opened = self._gate.opened
        publishing = max(max(each.last for each in self._producing) - opened, 0.0)
        consuming = max(max(each.last for each in self._consuming) - opened, 0.0)
        return Report(
            broker=self.broker,
            published=published,
            consumed=consumed,
            duplicates=duplicates,
            lost=lost,
            seconds=max(publishing, consuming),
            publish_rate=published / publishing if publishing else 0.0,
            consume_rate=consumed / consuming if consuming else 0.0,
            peak_depth=self._host.peak,
            latency=percentiles(chain.from_iterable(each.latencies.kept for each in self._consuming)),
            cpu=cpu / consumed if consumed else 0.0,
            own_cpu=own_cost(self.plan) if self.error is None else 0.0,
            error=self.error,
        )
