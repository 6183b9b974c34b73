"""The events that a run sends: orders of a shop."""

from __future__ import annotations

from datetime import datetime, timezone
from random import Random
from time import perf_counter_ns
from typing import Any

#: Event types, which are the routing keys too, and how often each comes.
TYPES = {"order.created": 5, "order.paid": 4, "order.cancelled": 1}

PRODUCTS = {
    "espresso machine": 34900,
    "coffee grinder": 12950,
    "filter papers, 100": 495,
    "kombucha starter": 1890,
    "tea, 250 g": 1275,
    "mug": 990,
    "teapot": 3450,
    "gift card": 2500,
}  # prices in cents
CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CHF")

#: Different orders; the stream repeats them under new numbers, so that making events does not cost more than sending.
VARIETY = 1000


class Orders:
    """A stream of order events. The same seed gives the same events, but for their times."""

    def __init__(self, seed: int = 1, variety: int = VARIETY) -> None:
        random = Random(seed)  # noqa: S311 - not for secrets
        self._orders = [_order(random) for _ in range(variety)]

    def event(self, number: int) -> dict[str, Any]:
        """Event ``number`` of the stream, sent now."""
        event = self._orders[number % len(self._orders)].copy()
        event["id"] = f"evt-{number:010}"
        event["number"] = number
        event["created"] = datetime.now(timezone.utc)
        event["sent"] = perf_counter_ns()  # seconds with nine decimals would take four times as long to write
        return event


def _order(random: Random) -> dict[str, Any]:
    items: list[dict[str, Any]] = []
    cents = 0
    for product in random.sample(sorted(PRODUCTS), random.randint(1, 4)):
        quantity = random.choice((1, 1, 1, 2, 3))
        items.append({"product": product, "quantity": quantity, "price": PRODUCTS[product] / 100})
        cents += PRODUCTS[product] * quantity
    customer = random.randrange(100_000)
    return {
        "type": random.choices(list(TYPES), list(TYPES.values()))[0],
        "customer": {
            "id": f"c-{customer:06}",
            "email": f"customer{customer}@example.com",
            "vip": random.random() < 0.1,
        },
        "amount": cents / 100,
        "currency": random.choice(CURRENCIES),
        "items": items,
    }
