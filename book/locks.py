"""One command at a time on one thing: a lock that the system frees however the command ends."""

from __future__ import annotations

import fcntl
from typing import IO


class Busy(RuntimeError):
    """Another command is at work on the same thing."""


def hold(lock: IO[str], said: str) -> None:
    """Hold an open file as a lock until it is closed.

    Raises
    ------
    Busy
        Saying `said`, if another process holds it.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(said) from None
