"""The committed numbers: compare a run with tests/reference entry by entry, or replace the reference by the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from swap import swap_in

from evidence import claims, findings
from evidence.artifacts import CorruptFile, read_record
from evidence.effects import Effect


@dataclass(frozen=True)
class Difference:
    """One thing that moved: where, what, by how much, and what was allowed."""

    item: str
    column: str
    moved: str
    allowed: str


@dataclass(frozen=True)
class Layout:
    """What a saved record holds: its keys, the key of its parts, their keys, and which of those are measured."""

    keys: Collection[str]
    parts: str
    part_keys: Collection[str]
    measured: Collection[str]


CLAIM = Layout(claims.KEYS, "evidence", claims.EVIDENCE_KEYS, {"value", "low", "high", "miss"})
FINDING = Layout(
    findings.KEYS,
    "effects",
    {f.name for f in fields(Effect)}
    | {f.name for f in fields(findings.Member)} - {"finding", "source", "effect"}
    | {"lowest", "highest"},
    {"value", "low", "high", "n", "error", "p", "freedom", "lowest", "highest", "margin", "diverged"},
)


def compare(results: Path, reference: Path) -> list[Difference]:
    """Differences between `results` (figures/*.csv, claims/*.json, findings/*.json) and `reference`."""
    differences = []
    kinds = (
        ("figures", ".csv", _compare_figure),
        ("claims", ".json", partial(_compare_record, layout=CLAIM)),
        ("findings", ".json", partial(_compare_record, layout=FINDING)),
    )
    for kind, suffix, compare_one in kinds:
        run = {p.stem: p for p in (results / kind).glob(f"*{suffix}")}
        kept = {p.stem: p for p in (reference / kind).glob(f"*{suffix}")}
        for name in sorted(run.keys() | kept.keys()):
            item = f"{kind}/{name}"
            if name not in kept:
                differences.append(Difference(item, "", "new: not in the reference", ""))
            elif name not in run:
                differences.append(Difference(item, "", "missing from this run", ""))
            else:
                try:
                    differences += compare_one(item, run[name], kept[name])
                except (CorruptFile, FileNotFoundError) as error:
                    differences.append(Difference(item, "", f"cannot be read: {error}", "a whole file"))
    return differences


def update(results: Path, reference: Path) -> None:
    """Make `reference` hold exactly the numbers of `results`; whenever it is killed, either the old or the new ones."""
    fresh = reference.with_name(f".{reference.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    for kind in ("figures", "claims", "findings"):
        (fresh / kind).mkdir(parents=True)
    for path in sorted((results / "figures").glob("*.csv")):
        shutil.copyfile(path, fresh / "figures" / path.name)
        declared = json.dumps({"columns": json.loads(path.with_suffix(".json").read_text())["columns"]}, indent=1)
        (fresh / "figures" / f"{path.stem}.json").write_text(declared + "\n")
    for kind in ("claims", "findings"):
        for path in sorted((results / kind).glob("*.json")):
            shutil.copyfile(path, fresh / kind / path.name)
    swap_in(fresh, reference)


def _compare_figure(item: str, run: Path, kept: Path) -> list[Difference]:
    new, old = _read_table(run), _read_table(kept)
    declared = read_record(kept.with_suffix(".json"), ["columns"])["columns"]
    wrong = [c for c in declared if set(declared[c]) != {"rtol", "atol"}]
    if set(declared) != set(old.columns) or wrong or old.empty:
        moved = f"{len(old)} rows of {list(old.columns)}, tolerances for {sorted(declared)}, malformed for {wrong}"
        return [Difference(item, "", moved, "rows, and rtol and atol for every column of the reference")]
    if list(new.columns) != list(old.columns):
        return [Difference(item, "", f"columns {list(new.columns)}", f"{list(old.columns)}")]
    if len(new) != len(old):
        return [Difference(item, "", f"{len(new)} rows", f"{len(old)} rows")]
    differences = []
    for column, tolerance in declared.items():
        a, b = new[column].to_numpy(), old[column].to_numpy()
        if not (np.issubdtype(a.dtype, np.number) and np.issubdtype(b.dtype, np.number)):
            changed = int((new[column].fillna("").astype(str) != old[column].fillna("").astype(str)).sum())
            if changed:
                differences.append(Difference(item, column, f"{changed} entries differ", "equal"))
            continue
        close = np.isclose(a, b, rtol=tolerance["rtol"], atol=tolerance["atol"], equal_nan=True)
        if not close.all():
            worst = int(np.argmax(np.where(close, -1.0, np.abs(a - b))))
            moved = f"row {worst}: {b[worst]:.7g} -> {a[worst]:.7g} ({int((~close).sum())} of {len(a)} rows)"
            differences.append(Difference(item, column, moved, _allowed(tolerance)))
    return differences


def _compare_record(item: str, run: Path, kept: Path, layout: Layout) -> list[Difference]:
    """A claim's texts and outcomes, but not its measured numbers, or all of a finding, numbers by its tolerance."""
    new, old = read_record(run, layout.keys), read_record(kept, layout.keys)
    differences = [
        Difference(item, key, f"{old[key]} -> {new[key]}", "equal")
        for key in layout.keys
        if key != layout.parts and new[key] != old[key]
    ]
    after, before = (_parts(path, record, layout) for path, record in ((run, new), (kept, old)))
    for name in [name for name in [*before, *after] if (name in after) != (name in before)]:
        differences.append(Difference(item, name, "new" if name in after else "gone", "equal"))
    tolerance = old.get("tolerance")
    for name in [name for name in before if name in after]:
        for key in sorted(set(layout.part_keys) - set(layout.measured)):
            a, b = after[name][key], before[name][key]
            if a != b:
                differences.append(Difference(item, name, f"{key}: {b} -> {a}", "equal"))
        if tolerance is None:
            continue
        numbers = [[part[name][key] for key in sorted(layout.measured)] for part in (after, before)]
        a, b = np.array(numbers, dtype=float)  # what is absent, such as an open end, is None, and nan here
        if not np.isclose(a, b, **tolerance, equal_nan=True).all():
            moved = f"{', '.join(sorted(layout.measured))}: {b} -> {a}"
            differences.append(Difference(item, name, moved, _allowed(tolerance)))
    return differences


def _parts(path: Path, record: Mapping[str, Any], layout: Layout) -> dict[str, Mapping[str, Any]]:
    """The parts of a record by their names, each with the keys that it should have."""
    parts = record[layout.parts]
    for part in parts:
        if not isinstance(part, dict) or part.keys() != set(layout.part_keys):
            raise CorruptFile(path, 1, f"each of {layout.parts} must have {sorted(layout.part_keys)}; got {part}")
    return {part["name"]: part for part in parts}


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except ValueError as error:  # as pandas' errors are: an empty file, a row that is too long, bytes that are no text
        raise CorruptFile(path, 1, f"no table: {error}") from error


def _allowed(tolerance: Mapping[str, float]) -> str:
    return f"rtol {tolerance['rtol']:g}, atol {tolerance['atol']:g}"
