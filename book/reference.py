"""The committed numbers: compare a run with tests/reference column by column, or replace the reference by the run."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Difference:
    """One thing that moved: where, what, by how much, and what was allowed."""

    item: str
    column: str
    moved: str
    allowed: str


def compare(results: Path, reference: Path) -> list[Difference]:
    """Differences between `results` (figures/*.csv, claims/*.json, findings/*.json) and `reference`."""
    differences = []
    kinds = (
        ("figures", ".csv", _compare_figure),
        ("claims", ".json", _compare_claim),
        ("findings", ".json", _compare_finding),
    )
    for kind, suffix, compare_one in kinds:
        run = {p.stem: p for p in (results / kind).glob(f"*{suffix}")}
        kept = {p.stem: p for p in (reference / kind).glob(f"*{suffix}")}
        for name in sorted(run.keys() | kept.keys()):
            if name not in kept:
                differences.append(Difference(f"{kind}/{name}", "", "new: not in the reference", ""))
            elif name not in run:
                differences.append(Difference(f"{kind}/{name}", "", "missing from this run", ""))
            else:
                differences += compare_one(f"{kind}/{name}", run[name], kept[name])
    return differences


def update(results: Path, reference: Path) -> None:
    """Make `reference` hold exactly the numbers of `results`."""
    fresh = reference.with_name(f".{reference.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    for kind in ("figures", "claims", "findings"):
        (fresh / kind).mkdir(parents=True)
    for path in sorted((results / "figures").glob("*.csv")):
        shutil.copyfile(path, fresh / "figures" / path.name)
        columns = json.loads(path.with_suffix(".json").read_text())["columns"]
        _write_json(fresh / "figures" / f"{path.stem}.json", {"columns": columns})
    for kind in ("claims", "findings"):
        for path in sorted((results / kind).glob("*.json")):
            shutil.copyfile(path, fresh / kind / path.name)
    shutil.rmtree(reference, ignore_errors=True)
    fresh.rename(reference)


def _compare_figure(item: str, run: Path, kept: Path) -> list[Difference]:
    try:
        new, old = pd.read_csv(run), pd.read_csv(kept)
        declared = json.loads(kept.with_suffix(".json").read_text())["columns"]
    except (OSError, ValueError, KeyError) as error:  # an empty CSV and broken JSON are ValueErrors
        return [Difference(item, "", f"cannot be read: {error!r}", "a table and its tolerances")]
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
        allowed = f"rtol {tolerance['rtol']:g}, atol {tolerance['atol']:g}"
        if not (np.issubdtype(a.dtype, np.number) and np.issubdtype(b.dtype, np.number)):
            changed = int((new[column].fillna("").astype(str) != old[column].fillna("").astype(str)).sum())
            if changed:
                differences.append(Difference(item, column, f"{changed} entries differ", "equal"))
            continue
        close = np.isclose(a, b, rtol=tolerance["rtol"], atol=tolerance["atol"], equal_nan=True)
        if not close.all():
            worst = int(np.argmax(np.where(close, -1.0, np.abs(a - b))))
            moved = f"row {worst}: {b[worst]:.7g} -> {a[worst]:.7g} ({int((~close).sum())} of {len(a)} rows)"
            differences.append(Difference(item, column, moved, allowed))
    return differences


def _compare_claim(item: str, run: Path, kept: Path) -> list[Difference]:
    new, old = json.loads(run.read_text()), json.loads(kept.read_text())
    differences = []
    if new["verdict"] != old["verdict"]:
        differences.append(Difference(item, "verdict", f"{old['verdict']} -> {new['verdict']}", "equal"))
    outcome = [{e["name"]: e["passes"] for e in claim["evidence"]} for claim in (new, old)]
    for name in sorted(outcome[0].keys() | outcome[1].keys()):
        if outcome[0].get(name) != outcome[1].get(name):
            moved = f"{outcome[1].get(name)} -> {outcome[0].get(name)}"
            differences.append(Difference(item, name, moved, "equal"))
    return differences


def _compare_finding(item: str, run: Path, kept: Path) -> list[Difference]:
    new, old = json.loads(run.read_text()), json.loads(kept.read_text())
    differences = []
    if new["verdict"] != old["verdict"]:
        differences.append(Difference(item, "verdict", f"{old['verdict']} -> {new['verdict']}", "equal"))
    after, before = ({effect["name"]: effect for effect in finding["effects"]} for finding in (new, old))
    for name in sorted(after.keys() ^ before.keys()):
        differences.append(Difference(item, name, "new effect" if name in after else "effect gone", "equal"))
    tolerance = old["tolerance"]
    for name in sorted(after.keys() & before.keys()):
        if after[name]["reading"] != before[name]["reading"]:
            moved = f"{before[name]['reading']} -> {after[name]['reading']}"
            differences.append(Difference(item, name, moved, "equal"))
        numbers = [[effect[key] for key in ("value", "low", "high", "n")] for effect in (after[name], before[name])]
        a, b = np.array(numbers, dtype=float)  # an open end is None, and nan here
        if not np.isclose(a, b, **tolerance, equal_nan=True).all():
            allowed = f"rtol {tolerance['rtol']:g}, atol {tolerance['atol']:g}"
            differences.append(Difference(item, name, f"{b} -> {a}", allowed))
    return differences


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
