"""The data, and the work that is the same source code for both libraries: it takes the library as an argument."""

from __future__ import annotations

import importlib
import tracemalloc
from itertools import repeat
from types import ModuleType
from typing import Any, NamedTuple

from bench.duel import Side

SMALL: dict[str, Any] = {
    "id": 184467,
    "type": "order.created",
    "customer": "c-20817",
    "amount": 129.95,
    "currency": "EUR",
    "items": 3,
}


def _address(name: str, street: str, postcode: str, city: str, country: str) -> dict[str, Any]:
    return {
        "name": name,
        "company": None,
        "street": street,
        "postcode": postcode,
        "city": city,
        "country": country,
        "residential": True,
    }


def _item(sku: str, title: str, quantity: int, price: float, note: str | None = None) -> dict[str, Any]:
    return {
        "sku": sku,
        "title": title,
        "quantity": quantity,
        "unit_price": price,
        "total": round(quantity * price, 2),
        "tax_rate": 0.19,
        "gift": note is not None,
        "note": note,
        "tags": ["in stock", "ships today"],
    }


#: About 2.3 kB as JSON.
NESTED: dict[str, Any] = {
    "id": 184467,
    "type": "order.created",
    "version": 3,
    "created_at": "2026-03-14T09:26:53.589793+00:00",
    "test": False,
    "customer": {
        "id": 20817,
        "email": "ada.example@mail.example",
        "name": "Ada Example",
        "vip": True,
        "since": "2019-11-02",
        "phone": None,
        "orders_before": 42,
        "lifetime_value": 5310.75,
    },
    "billing_address": _address("Ada Example", "12 Harbour Street", "20457", "Hamburg", "DE"),
    "shipping_address": _address("Grace Example", "7 Old Mill Lane, second floor", "1012 AB", "Amsterdam", "NL"),
    "items": [
        _item("KB-1044", "Mechanical keyboard, tenkeyless, brown switches", 1, 119.9),
        _item("MS-0220", "Wireless mouse with two buttons and a wheel", 2, 34.95, "Happy birthday to both of you"),
        _item("CB-3301", "Braided USB-C cable, two metres", 4, 8.49),
        _item("ST-7715", "Adjustable laptop stand made of aluminium", 1, 45.0),
        _item("NB-0042", "Dotted notebook, 192 pages, hard cover", 3, 14.25, "Please wrap each one separately"),
    ],
    "payment": {"method": "card", "brand": "visa", "last4": "4242", "captured": True, "attempts": 1, "fee": 3.27},
    "totals": {"net": 262.63, "tax": 49.9, "shipping": 0.0, "discount": -15.0, "gross": 311.51, "currency": "EUR"},
    "delivery": {
        "carrier": "parcel post",
        "express": False,
        "weight_kg": 3.42,
        "instructions": "Leave it at the back door",
    },
    "metadata": {"channel": "web", "campaign": None, "locale": "en-GB", "ab_tests": [17, 23, 108], "score": 0.87},
}


# --- the memory transport -----------------------------------------------------------------------------------------


class Place(NamedTuple):
    """A queue, and a producer whose messages reach it."""

    library: ModuleType
    connection: Any
    queue: Any
    producer: Any


def open_place(library: ModuleType, name: str, kind: str = "direct", key: str = "order.created") -> Place:
    """Declare an exchange and a queue bound to it."""
    connection = library.Connection("memory://")
    channel = connection.channel()
    exchange = library.Exchange(name, kind)
    queue = library.Queue(name, exchange, key)(channel)
    queue.declare()
    return Place(library, connection, queue, library.Producer(channel, exchange, key))


def add_bindings(place: Place, keys: list[str]) -> None:
    """Bind as many other queues to the exchange."""
    channel = place.producer.channel
    for i, key in enumerate(keys):
        place.library.Queue(f"{place.queue.name}-{i}", place.producer.exchange, key)(channel).declare()


def publishing(place: Place, key: str | None = None) -> Side:
    """Publish small messages one by one."""
    publish = place.producer.publish

    def run(n: int) -> None:
        for _ in repeat(None, n):
            publish(SMALL, routing_key=key)

    return Side(run, lambda n: place.queue.purge())


def publishing_many(place: Place) -> Side:
    """Publish small messages with one call."""
    return Side(lambda n: place.producer.publish_many(repeat(SMALL, n)), lambda n: place.queue.purge())


def publishing_in_batch(place: Place) -> Side:
    """Publish small messages one by one within a batch."""
    publish = place.producer.publish

    def run(n: int) -> None:
        with place.producer.batch():
            for _ in repeat(None, n):
                publish(SMALL)

    return Side(run, lambda n: place.queue.purge())


def consuming(place: Place, prefetch_count: int = 1000, no_ack: bool = False) -> Side:
    """Consume, decode and (unless ``no_ack``) acknowledge messages that wait in the queue."""
    channel, drain_events = place.producer.channel, place.connection.drain_events

    def run(n: int) -> None:
        left = n

        def callback(body: Any, message: Any) -> None:
            nonlocal left
            message.ack()
            left -= 1

        def callback_without_ack(body: Any, message: Any) -> None:
            nonlocal left
            left -= 1

        callbacks = [callback_without_ack if no_ack else callback]
        options = {"prefetch_count": prefetch_count, "no_ack": no_ack}
        with place.library.Consumer(channel, place.queue, callbacks=callbacks, **options):
            while left:
                drain_events(timeout=5)

    def prepare(n: int) -> None:
        place.queue.purge()
        for _ in repeat(None, n):
            place.producer.publish(SMALL)

    return Side(run, prepare)


def consuming_in_batches(place: Place, size: int = 100) -> Side:
    """The same in batches, each acknowledged at once. For our library only."""
    channel, drain_events = place.producer.channel, place.connection.drain_events

    def run(n: int) -> None:
        left = n

        def on_batch(messages: Any) -> None:
            nonlocal left
            messages.ack()
            left -= len(messages)

        options = {"batch_size": size, "batch_timeout": 0.1, "prefetch_count": 1000}
        with place.library.Consumer(channel, place.queue, on_batch=on_batch, **options):
            while left:
                drain_events(timeout=5)

    return Side(run, consuming(place).prepare)


def round_trips(place: Place) -> Side:
    """Publish a message, get it, decode and acknowledge it; then the next."""
    publish, get = place.producer.publish, place.queue.get

    def run(n: int) -> None:
        for _ in repeat(None, n):
            publish(SMALL)
            message = get()
            if message.payload["id"] != SMALL["id"]:
                raise AssertionError("not what was sent")
            message.ack()

    return Side(run, lambda n: place.queue.purge())


# --- work for a process of its own --------------------------------------------------------------------------------


def held_bytes(library: str, messages: int = 50_000) -> float:
    """Bytes allocated for each small message that waits in a queue; all bodies differ."""
    place = open_place(importlib.import_module(library), "held")
    publish = place.producer.publish
    for i in range(1000):
        publish({**SMALL, "id": i})
    tracemalloc.start()
    for i in range(messages):
        publish({**SMALL, "id": 100_000 + i})
    return tracemalloc.get_traced_memory()[0] / messages


def resident_bytes(library: str, messages: int = 50_000) -> float:
    """The same by what the process takes from the system, where that can be had (Linux)."""
    place = open_place(importlib.import_module(library), "held")
    publish = place.producer.publish
    for i in range(1000):
        publish({**SMALL, "id": i})
    before = _resident()
    for i in range(messages):
        publish({**SMALL, "id": 100_000 + i})
    return (_resident() - before) / messages


def _resident() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))
