"""A Django view's work: the order and the message about it are committed together."""

from pathlib import Path
from tempfile import mkdtemp

import django
from django.conf import settings
from django.db import connection, transaction

from kombulite import Connection, Queue

PATH = Path(mkdtemp()) / "shop.db"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": PATH}}
settings.configure(DATABASES=DATABASES)  # in a project: settings.py
django.setup()

broker = Connection(f"sqlite:///{PATH}")
orders = Queue("orders")(broker)


def place_order(number: int) -> None:
    """Store an order, and tell others once it is committed."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO purchase VALUES (%s)", [number])
        broker.Producer(routing_key="orders").publish({"purchase": number}, via=connection)


if __name__ == "__main__":
    orders.declare()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE purchase (id INTEGER UNIQUE)")
    place_order(7)
    try:
        place_order(7)
    except django.db.IntegrityError:
        print("refused")
    message = orders.get(no_ack=True)
    assert message is not None
    print(message.payload, orders.get())
    broker.release()
