"""A FastAPI application: each request's order and message are committed together, on the event loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp

from fastapi import FastAPI, HTTPException
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from kombulite import Queue, aio

PATH = Path(mkdtemp()) / "shop.db"
engine = create_async_engine(f"sqlite+aiosqlite:///{PATH}")
orders = Queue("orders")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connect to the broker for as long as the application runs."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS purchase (id INTEGER UNIQUE)"))
    async with aio.connect(f"sqlite:///{PATH}") as broker:
        await broker.declare(orders)
        app.state.producer = broker.producer()
        yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/orders/{number}")
async def place_order(number: int) -> dict[str, int]:
    """Store an order, and tell others once it is committed."""
    try:
        async with AsyncSession(engine) as session, session.begin():
            await app.state.producer.publish({"purchase": number}, "orders", via=session)
            await session.execute(text("INSERT INTO purchase VALUES (:number)"), {"number": number})
    except IntegrityError:
        raise HTTPException(409, "there is such an order") from None
    return {"purchase": number}
