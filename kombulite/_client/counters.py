"""What went through a connection, in numbers: ``connection.counters``."""

from __future__ import annotations

from kombulite.utils.records import NamedTuple


class Counters(NamedTuple):
    """The numbers of one connection at one moment, all taken in one step.

    They count from when the ``Connection`` was made, and go on when it is lost, restored, closed and opened again. In a
    forked child they start from zero.
    """

    published: int  #: messages that were handed to the broker, and not refused
    confirmed: int  #: those that the broker said it has, when ``publish`` returned (AMQP: with ``confirm_publish``)
    returned: int  #: mandatory messages that came back; each counts as published too
    consumed: int  #: messages handed to the application, by a consumer or by ``basic_get``
    redelivered: int  #: those of them that may have been delivered before
    acked: int  #: acknowledgements; one that is for several messages (``multiple``) counts once
    rejected: int  #: messages rejected by their consumers
    requeued: int  #: messages requeued by their consumers
    reconnects: int  #: times that the connection came back after it was lost
    bytes_sent: int  #: in the bodies of what was published, as they travel
    bytes_received: int  #: in the bodies of what was consumed, as they travel
