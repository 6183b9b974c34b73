"""What the server does in one step: scripts in Lua (``lua/``), run by EVALSHA, and by EVAL where a server lacks one.

All keys come as KEYS, with the key prefix in place. Times are the server's own (TIME), in seconds.

If memory is full, a server refuses a command that may need more, unless the script has written before. Scripts that
keep or free what is there must not be refused, so they begin with a write that is always allowed, and changes nothing:
they remove the member '' from a set that has none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any

from hiredis import ReplyError

from kombulite._core import pack_command
from kombulite.brokers.redis.errors import NOT_IN_SCRIPT, reply_error


class Script:
    """A script and its digest. ``names``: of its files, without the extension, one of which follows the other."""

    def __init__(self, *names: str) -> None:
        self.names = names
        folder = files(__package__).joinpath("lua")
        self.source = "".join(folder.joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in names)
        self.sha = sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        #: What it runs: not every server names what its user may not run.
        self.commands = sorted(set(re.findall(r"redis\.p?call\('([A-Z]+)'", self.source)))

    def pack(self, send_source: bool, keys: Sequence[str | bytes], *arguments: Any) -> bytes:
        """Return the command that runs it. ``send_source``: for a server that may lack it."""
        head = ("EVAL", self.source) if send_source else ("EVALSHA", self.sha)
        return pack_command((*head, len(keys), *keys, *arguments))

    def error(self, reply: ReplyError) -> Exception:
        """Return the error for the reply of a server that did not run it, or not to its end."""
        text = str(reply)
        if NOT_IN_SCRIPT.search(text):
            text += f" (it runs {', '.join(self.commands)})"
        return reply_error(text)


BIND = Script("bind")
BIND_EXPIRING = Script("bind_expiring")
CLAIM = Script("claim")
CLAIM_ACROSS_SLOTS = Script("across_slots", "claim")
DEAD_LETTER = Script("dead_letter")
DELETE_QUEUE = Script("delete_queue")
OVERDUE = Script("overdue")
RENEW = Script("renew")
RESTORE = Script("restore")
SWEEP = Script("sweep")
UNLOCK = Script("unlock")
