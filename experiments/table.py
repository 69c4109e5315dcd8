"""Results of one task as a table on disk that only grows: a row a run, each at most once.

Rows are appended in one write under a lock, so that drivers side by side cannot interleave. A last line without its
newline is one that a kill cut short: readers skip it and the next append removes it. Any other line that is no row is
refused.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from evidence.artifacts import CorruptFile, table_rows, write_atomically

from .config import Run

TYPES = {
    "id": "str",
    "attack": "str",
    "method": "str",
    "rank": "Int64",
    "variance": "str",
    "scaling": "str",
    "optimizer": "str",
    "steps": "int64",
    "batch_size": "int64",
    "seed": "int64",
}
"""Columns that are no float64."""


class ResultsTable:
    """The file <task>.csv in `directory`: id, the fields of `Run` but the task, then what was measured.

    Parameters
    ----------
    directory : Path
        Created when the first row lands.
    task : str
    """

    def __init__(self, directory: Path, task: str) -> None:
        self.task = task
        self.path = directory / f"{task}.csv"

    def ids(self) -> set[str]:
        """Identifiers of the finished runs."""
        return {line.split(",", 1)[0] for line in self._whole().splitlines()[1:]}

    def read(self) -> pd.DataFrame:
        """All finished runs, a row each, with the same dtypes whatever is in them; empty without a file."""
        text = self._whole() or ",".join(["id", *_settings()]) + "\n"
        header = text.split("\n", 1)[0].split(",")
        types = {name: TYPES.get(name, "float64") for name in header}
        table = pd.read_csv(io.StringIO(text), dtype=types, float_precision="round_trip")
        table.insert(1, "task", pd.Series([self.task] * len(table), dtype="str"))
        return table

    def append(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Add rows of results and return how many are new: an id that is there already is not added again.

        Raises
        ------
        ValueError
            If a row is of another task, or its columns are not those of the table.
        """
        with self._locked():
            text = self._whole()
            if self.path.exists() and self.path.stat().st_size > len(text.encode()):
                os.truncate(self.path, len(text.encode()))
            header = text.split("\n", 1)[0].split(",") if text else ["id", *_settings(), *_metrics(rows[0])]
            seen, new = self.ids(), []
            for row in rows:
                if row["task"] != self.task or set(row) - {"task"} != set(header):
                    raise ValueError(f"rows must be of task {self.task!r} with columns {header}; got {dict(row)}")
                if row["id"] not in seen:
                    seen.add(row["id"])
                    new.append(row)
            addition = ("" if text else ",".join(header) + "\n") + "".join(_line(row, header) for row in new)
            with self.path.open("ab") as stream:
                stream.write(addition.encode())
                stream.flush()
                os.fsync(stream.fileno())
        return len(new)

    def tidy(self) -> None:
        """Sort the rows by the runs' fields, so that the table does not depend on what finished first."""
        with self._locked():
            header, *lines = self._whole().splitlines(keepends=True) or [""]
            order = self.read().sort_values([*_settings(), "id"], na_position="first").index
            if (text := header + "".join(lines[i] for i in order)) != self._whole():
                write_atomically(self.path, text)

    def _whole(self) -> str:
        """Text of the file up to its last newline."""
        data = self.path.read_bytes() if self.path.exists() else b""
        try:
            text = data[: data.rfind(b"\n") + 1].decode()
        except UnicodeDecodeError as error:
            raise CorruptFile(self.path, 1 + data[: error.start].count(b"\n"), "no text in UTF-8") from error
        self._check(text)
        return text

    def _check(self, text: str) -> None:
        """Refuse a text in which a row is no row: what an edit, a merge or a damaged disk leaves."""
        header, *rows = table_rows(self.path, text) or [["id", *_settings()]]
        if missing := {"id", *_settings()} - set(header):
            raise CorruptFile(self.path, 1, f"the header lacks {', '.join(sorted(missing))}")
        numbers = [(i, name) for i, name in enumerate(header) if TYPES.get(name) != "str"]
        for line, row in enumerate(rows, 2):
            for i, name in numbers:
                if row[i] and not _is_number(row[i]):
                    raise CorruptFile(self.path, line, f"{name} must be a number; got {row[i]!r}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of this table, which the operating system releases if the process dies."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            yield


def _settings() -> list[str]:
    return [field.name for field in fields(Run) if field.name != "task"]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _metrics(row: Mapping[str, Any]) -> list[str]:
    return [name for name in row if name not in {"id", "task", *_settings()}]


def _line(row: Mapping[str, Any], header: Sequence[str]) -> str:
    values = {name: None if pd.isna(value) else value for name, value in row.items()}
    if values.get("seconds") is not None:
        values["seconds"] = float(f"{values['seconds']:.3g}")
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(values[name] for name in header)
    return stream.getvalue()
