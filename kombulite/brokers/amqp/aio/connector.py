"""Connecting a socket on an event loop."""

from __future__ import annotations

import asyncio
import socket
from time import monotonic

from kombulite.brokers.amqp.connector import address_of, shares
from kombulite.brokers.base import Settings


async def connect_socket(settings: Settings) -> socket.socket:
    """Connect to the first address of the host that takes a connection, within ``connect_timeout`` seconds.

    Raises:
        OSError: There is none; or, as asyncio.TimeoutError, there was none in time.
    """
    deadline = None if settings.connect_timeout is None else monotonic() + settings.connect_timeout
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(*address_of(settings), type=socket.SOCK_STREAM)
    error: Exception | None = None
    for (family, kind, protocol, _, address), seconds in shares(addresses, deadline):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await asyncio.wait_for(loop.sock_connect(sock, address), seconds)
            return sock
        except (OSError, asyncio.TimeoutError) as failure:  # two classes before Python 3.11
            sock.close()
            error = failure
        except BaseException:
            sock.close()
            raise
    assert error is not None
    raise error
