"""Files of results: where a run writes them, whole or not at all, and where the committed ones are."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorantk.tiles import write_atomically

__all__ = ["committed", "results_directory", "save_record", "write_atomically"]

SOURCE_TREE = Path(__file__).resolve().parent.parent
"""Root of the tree that an editable install points to."""


def results_directory(kind: str) -> Path:
    """Directory for "figures" or "claims": below the environment's LORANTK_RESULTS, or below ./results."""
    directory = Path(os.environ.get("LORANTK_RESULTS", "results")) / kind
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def committed(folder: str, name: str, suffix: str) -> Path:
    """Path of a committed file ``<folder>/<name><suffix>`` of this source tree.

    Raises
    ------
    FileNotFoundError
        If there is no such file, as in an installation without the source tree.
    """
    path = SOURCE_TREE / folder / f"{name}{suffix}"
    if not path.is_file():
        known = sorted(
            p.relative_to(SOURCE_TREE / folder).with_suffix("").as_posix()
            for p in (SOURCE_TREE / folder).rglob(f"*{suffix}")
        )
        raise FileNotFoundError(
            f"name must be a table among {known} in {SOURCE_TREE / folder}; got {name!r}. "
            "Recorded runs come with the source tree: clone it and install it with pip install -e ."
        )
    return path


def save_record(kind: str, name: str, record: Mapping[str, Any], intervals: Sequence[dict[str, Any]]) -> None:
    """Write a record as JSON to the results directory of its kind; open ends of its intervals become null."""
    for entry in intervals:
        entry |= {end: entry[end] if math.isfinite(entry[end]) else None for end in ("low", "high")}
    path = results_directory(kind) / f"{name}.json"
    write_atomically(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
