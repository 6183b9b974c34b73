"""A service on SQLAlchemy: the order and the message about it are committed together."""

from pathlib import Path
from tempfile import mkdtemp

from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from kombulite import Connection, Queue


class Base(DeclarativeBase):
    """The tables of the shop."""


class Purchase(Base):
    """An order."""

    __tablename__ = "purchase"
    id: Mapped[int] = mapped_column(primary_key=True)


PATH = Path(mkdtemp()) / "shop.db"
engine = create_engine(f"sqlite:///{PATH}")
broker = Connection(f"sqlite:///{PATH}")
orders = Queue("orders")(broker)


def place_order(number: int) -> None:
    """Store an order, and tell others once it is committed."""
    with Session(engine) as session, session.begin():
        session.add(Purchase(id=number))
        broker.Producer(routing_key="orders").publish({"purchase": number}, via=session)


if __name__ == "__main__":
    Base.metadata.create_all(engine)
    orders.declare()
    place_order(7)
    try:
        place_order(7)
    except IntegrityError:
        print("refused")
    message = orders.get(no_ack=True)
    assert message is not None
    print(message.payload, orders.get())
    broker.release()
