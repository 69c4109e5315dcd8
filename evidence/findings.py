"""The paper's five findings: what each source of evidence says, as effects with intervals and a computed verdict.

A finding is empirical: no proof settles it. Three sources speak, kept apart: the numbers that the paper *published*,
read again; our small networks on *digits*; our sentence encoder on real *text*. Effects are oriented: positive is
what the finding says. Readings and verdicts follow:

- an effect is "supported" if its whole interval is above 0, "reversed" if it is below, else "not shown";
- a source, and a finding over all its sources, is "supported" or "reversed" if all its effects are; "mixed" if some
  are supported and some reversed; "supported in part" or "reversed in part" if some are and the rest is not shown;
  "not shown" if no effect says anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorantk.batches import check_choice

from .artifacts import read_record, save_record
from .effects import Effect
from .statements import FINDINGS, SOURCES
from .tables import Badge, Cell, Code, Table, cell_html, interval, join, number

STYLES = {
    "supported": "holds",
    "supported in part": "amended",
    "mixed": "amended",
    "not shown": "definition",
    "reversed in part": "fails",
    "reversed": "fails",
    "missing": "fails",
}
"""Verdict -> style of its badge."""

TOLERANCE = {"rtol": 1e-6, "atol": 1e-9}
"""Declared agreement of effects across machines: double-precision arithmetic on recorded runs, explicit generators."""

KEYS = (
    "id", "source", "effects", "decisive", "figure", "command", "statement", "verdict", "chapter", "tolerance",
)  # fmt: skip
"""What a saved finding holds."""


@dataclass(frozen=True)
class Finding:
    """What one source of evidence says about one finding.

    Parameters
    ----------
    id : str
        A key of `FINDINGS`.
    source : {"published", "digits", "text"}
    effects : sequence of Effect
        One per part of the finding, oriented: positive is what the finding says.
    decisive : str
        Name of the effect that the table shows.
    figure : str
        Name of the figure that shows it.
    command : str
        What to type to rerun it, e.g. "make notebook N=11".

    Raises
    ------
    ValueError
        On an unknown id, source or decisive name, or two effects of one name.
    """

    id: str
    source: str
    effects: Sequence[Effect]
    decisive: str
    figure: str
    command: str

    def __post_init__(self) -> None:
        check_choice("id", self.id, FINDINGS)
        check_choice("source", self.source, SOURCES)
        object.__setattr__(self, "effects", tuple(self.effects))
        names = [e.name for e in self.effects]
        check_choice("decisive", self.decisive, names)
        if len(set(names)) < len(names):
            raise ValueError(f"effects of {self.id!r} must have names of their own; got {names}")

    @property
    def verdict(self) -> str:
        return verdict([reading(e.low, e.high) for e in self.effects])

    def save(self) -> Finding:
        """Write the finding as JSON to the results directory (see `results_directory`) and return it for display."""
        record = asdict(self) | {
            "statement": FINDINGS[self.id],
            "verdict": self.verdict,
            "chapter": os.environ.get("LORANTK_CHAPTER"),
            "tolerance": TOLERANCE,
        }
        for entry, effect in zip(record["effects"], self.effects, strict=True):
            entry["reading"] = reading(effect.low, effect.high)
        save_record("findings", f"{self.id}.{self.source}", record, record["effects"])
        return self

    def _repr_html_(self) -> str:
        rows = [
            (e.name, number(e.value), interval(e.low, e.high), e.unit, str(e.n), reading(e.low, e.high))
            for e in self.effects
        ]
        table = Table(("effect", "value", "95 % interval", "unit", "n", "reading"), rows)
        title = cell_html((f"{self.id}, {self.source}: ", Badge(self.verdict, STYLES[self.verdict])))
        return f'<div class="claim" id="{self.id}-{self.source}"><p>{title}</p>{table.html()}</div>'


def reading(low: float, high: float) -> str:
    """What one oriented effect says about its finding: "supported", "reversed" or "not shown"."""
    return "supported" if low > 0 else "reversed" if high < 0 else "not shown"


def verdict(readings: Sequence[str]) -> str:
    """The verdict of several readings; the rule is the same for the effects of one source and of all sources."""
    found = set(readings)
    if {"supported", "reversed"} <= found:
        return "mixed"
    for word in ("supported", "reversed"):
        if word in found:
            return word if found == {word} else f"{word} in part"
    return "not shown"


def load_findings(directory: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Findings saved in `directory`, by (id, source), in the order of `FINDINGS` and `SOURCES`."""
    paths = {(id, source): directory / f"{id}.{source}.json" for id in FINDINGS for source in SOURCES}
    return {pair: read_record(path, KEYS) for pair, path in paths.items() if path.exists()}


def missing_findings(directory: Path) -> list[str]:
    """Each "id.source" without a finding in `directory`."""
    found = load_findings(directory)
    return [f"{id}.{source}" for id in FINDINGS for source in SOURCES if (id, source) not in found]


def overall(records: Sequence[dict[str, Any]]) -> str:
    """Verdict of a finding over its sources: `verdict` of all their readings, "missing" if a source is."""
    if {record["source"] for record in records} != set(SOURCES):
        return "missing"
    return verdict([effect["reading"] for record in records for effect in record["effects"]])


def findings_table(directory: Path, links: Callable[[Mapping[str, Any]], Cell]) -> Table:
    """The findings in `directory`, a row each, a column a source; `links` returns the cell of links for a record."""
    records = load_findings(directory)
    rows: list[list[Cell]] = []
    for id, text in FINDINGS.items():
        mine = {source: records[id, source] for source in SOURCES if (id, source) in records}
        verdicts = {source: record["verdict"] for source, record in mine.items()} | {
            "all": overall(list(mine.values()))
        }
        badges = {source: Badge(word, STYLES[word]) for source, word in verdicts.items()}
        missing = Badge("missing", STYLES["missing"])
        cells = [
            join([badges[source], f"{deciding_effects(mine[source])};", links(mine[source])], " ")
            if source in mine
            else missing
            for source in SOURCES
        ]
        rows.append([Code(id), text, *cells, badges["all"]])
    return Table(("id", "finding", *SOURCES, "over all"), rows)


def overall_verdicts(directory: Path) -> list[str]:
    """Each finding's verdict over all sources, from the findings saved in `directory`."""
    records = load_findings(directory)
    return [overall([record for (of, _), record in records.items() if of == id]) for id in FINDINGS]


def deciding_effects(record: Mapping[str, Any]) -> str:
    """An effect with its interval for each reading that the verdict rests on, as text; for a part, of how many.

    The effect that the record calls decisive comes first if it has that reading, else the one furthest from 0 in units
    of its interval.
    """
    readings = [effect["reading"] for effect in record["effects"]]
    word, part, _ = record["verdict"].partition(" in part")
    count = f"{readings.count(word)} of {len(readings)} effects; " if part else ""
    shown = []
    for deciding in ("supported", "reversed") if word == "mixed" else (word,):
        effects = [effect for effect in record["effects"] if effect["reading"] == deciding] or record["effects"]
        shown.append(max(effects, key=lambda effect: (effect["name"] == record["decisive"], _distance(effect))))
    return count + "; ".join(
        f"{e['name']}: {number(e['value'])}{' ' * bool(e['unit'])}{e['unit']} ({interval(e['low'], e['high'])})"
        for e in shown
    )


def _distance(effect: Mapping[str, Any]) -> float:
    """Distance of an effect from 0 in units of the length of its interval towards 0."""
    end = effect["low"] if effect["value"] > 0 else effect["high"]
    return abs(effect["value"] / (effect["value"] - end)) if end not in (None, effect["value"]) else 0.0
