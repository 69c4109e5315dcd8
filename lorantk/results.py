"""Where a run writes what it found, and how: whole files or nothing."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path


def results_directory(kind: str) -> Path:
    """Directory for "figures" or "claims": below the environment's LORANTK_RESULTS, or below ./results."""
    directory = Path(os.environ.get("LORANTK_RESULTS", "results")) / kind
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to a temporary file beside `path`, then rename it: readers see the old file or the new one."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with ExitStack() as undo:
        undo.callback(os.unlink, temporary)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        undo.pop_all()
