"""Files of results: where a run writes them, whole or not at all, and where the committed ones are."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorantk.tiles import write_atomically

__all__ = [
    "CorruptFile",
    "committed",
    "read_record",
    "results_directory",
    "save_record",
    "table_rows",
    "write_atomically",
]

SOURCE_TREE = Path(__file__).resolve().parent.parent
"""Root of the tree that an editable install points to."""


class CorruptFile(ValueError):
    """A file that is not what this project writes: its path, the line where it stops being so, and the reason."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}:{line}: {reason}")


def read_record(path: Path, keys: Collection[str] | None = None) -> dict[str, Any]:
    """The JSON object in a file, whose keys must be `keys` if they are given.

    Raises
    ------
    CorruptFile
        If it is no JSON, as after a truncation or a merge, or no object with these keys.
    """
    try:
        record = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise CorruptFile(path, error.lineno, f"no JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise CorruptFile(path, 1 + error.object[: error.start].count(b"\n"), "no text in UTF-8") from error
    if not isinstance(record, dict):
        raise CorruptFile(path, 1, f"must hold one JSON object; got a {type(record).__name__}")
    if keys is None:
        return record
    if missing := sorted(set(keys) - record.keys()):
        raise CorruptFile(path, 1, f"has no {', '.join(missing)}")
    if extra := sorted(record.keys() - set(keys)):
        raise CorruptFile(path, 1, f"has more than it should: {', '.join(extra)}")
    return record


def table_rows(path: Path, text: str) -> list[list[str]]:
    """Rows of the CSV `text` of a file, the header first: of one length, and with ids of their own if it has ids.

    Raises
    ------
    CorruptFile
        On the marks of a merge, a row that is shorter or longer than the header, an id that is none or stands twice.
    """
    rows = list(csv.reader(io.StringIO(text)))
    place = rows[0].index("id") if rows and "id" in rows[0] else None
    lines: dict[str, int] = {}
    for line, row in enumerate(rows, 1):
        if re.match(r"<{7}|={7}|>{7}|\|{7}", "".join(row[:1])):
            raise CorruptFile(path, line, "two versions were merged: keep the rows of both, each once")
        if len(row) != len(rows[0]):
            raise CorruptFile(path, line, f"{len(row)} values below {len(rows[0])} columns: delete the row, run again")
        if place is None or line == 1:
            continue
        if not re.fullmatch("[0-9a-f]{12}", identifier := row[place]):
            raise CorruptFile(path, line, f"an id has twelve hexadecimal digits; got {identifier!r}")
        if identifier in lines:
            raise CorruptFile(path, line, f"id {identifier} stands in line {lines[identifier]} already: keep one")
        lines[identifier] = line
    return rows


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
    if not path.is_file() or ".." in path.relative_to(SOURCE_TREE / folder).parts:
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
