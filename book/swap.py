"""One directory in another's place, at no moment neither: a killed run leaves the old one or the new one."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Constants of Linux's renameat2(2)."""


def swap_in(fresh: Path, target: Path) -> None:
    """Put the directory `fresh` where `target` is, and remove what was there.

    Linux exchanges the two names in one step. Where that is not to be had, two renames do it; `recover` undoes the
    first of them if a kill came in between.
    """
    if not target.exists():
        fresh.rename(target)
        return
    old = fresh
    if not _exchange(fresh, target):
        old = _aside(target)
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def recover(target: Path) -> None:
    """Put back what `swap_in` had set aside when it was killed between its two renames."""
    if not target.exists() and _aside(target).exists():
        _aside(target).rename(target)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False, with nothing done, where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0)
