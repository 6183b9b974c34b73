"""An event loop for consumers that share a thread with timers and other descriptors."""

from kombulite.asynchronous.hub import Hub, get_event_loop, set_event_loop
from kombulite.utils.eventio import ERR, READ, WRITE

__all__ = ["ERR", "READ", "WRITE", "Hub", "get_event_loop", "set_event_loop"]
