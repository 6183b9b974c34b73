"""What went through a connection, in numbers: ``connection.counters``."""

from __future__ import annotations

from kombulite.utils.records import NamedTuple


class Counters(NamedTuple):
    """The numbers of one connection at one moment, all taken in one step.

    They count from when the ``Connection`` was made, and go on when it is lost, restored, closed and opened again. In a
    forked child they start from zero.

    Attributes:
        published: Messages that were handed to the broker, and not refused.
        confirmed: Those that the broker said it has, when ``publish`` returned (AMQP: with ``confirm_publish``).
        returned: Mandatory messages that came back; each counts as published too.
        consumed: Messages handed to the application, by a consumer or by ``basic_get``.
        redelivered: Those of them that may have been delivered before.
        acked: Acknowledgements; one that is for several messages (``multiple``) counts once.
        rejected: Messages rejected by their consumers.
        requeued: Messages requeued by their consumers.
        reconnects: Times that the connection came back after it was lost.
        bytes_sent: Bytes in the bodies of what was published, as they travel.
        bytes_received: Bytes in the bodies of what was consumed, as they travel.
    """

    published: int
    confirmed: int
    returned: int
    consumed: int
    redelivered: int
    acked: int
    rejected: int
    requeued: int
    reconnects: int
    bytes_sent: int
    bytes_received: int
