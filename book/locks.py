"""One command at a time on one thing: a lock that the system frees however the command ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout


class Busy(RuntimeError):
    """Another command is at work on the same thing."""


def hold(path: Path, said: str) -> Callable[[], None]:
    """Hold the lock of this file, and return what frees it.

    Raises
    ------
    Busy
        Saying `said`, if another process holds it.
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise Busy(said) from None
    return lock.release
