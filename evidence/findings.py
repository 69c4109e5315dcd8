"""The paper's five findings: what each source of evidence says, as effects with intervals and computed outcomes.

A finding is empirical: no proof settles it. Three sources speak, kept apart: the numbers that the paper *published*,
read again; our small networks on *digits*; our sentence encoders on real *text*. A finding has a half for each attack
that it speaks of, "flips" or "backdoor". Effects are oriented: positive is what the finding says. Each has one of the
four outcomes of `evidence.decisions`, decided over all effects of all sources at once. A source's verdict on a half,
and the verdict over all sources, follow from the outcomes of its primary effects:

- one outcome, if all agree;
- "mixed" if some are supported and some reversed;
- "supported in part" or "reversed in part" if some are and the others show nothing;
- "inconclusive" if some are negligible and the others inconclusive.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lorantk.batches import check_choice, check_real

from .artifacts import read_record, save_record
from .decisions import OUTCOMES
from .effects import Effect, EffectRange
from .statements import FINDINGS, HALVES, SOURCES
from .tables import Badge, Cell, Code, Table, interval, join, number

STYLES = {
    "supported": "holds",
    "supported in part": "amended",
    "mixed": "amended",
    "negligible": "definition",
    "inconclusive": "definition",
    "reversed in part": "fails",
    "reversed": "fails",
    "missing": "fails",
}
"""Verdict -> style of its badge."""

TOLERANCE = {"rtol": 1e-6, "atol": 1e-9}
"""Declared agreement of effects across machines: double-precision arithmetic on recorded runs, explicit generators."""

KEYS = ("id", "source", "effects", "figure", "command", "statement", "verdicts", "chapter", "tolerance")
"""What a saved finding holds."""


@dataclass(frozen=True)
class Member:
    """One effect of the family that is decided together.

    Parameters
    ----------
    finding : str
        A key of `FINDINGS`.
    half : {"flips", "backdoor"}
    source : {"published", "digits", "text"}
    setting : str
        What tells it from the source's other effects on this half, such as "AdamW, 8 of 500".
    effect : Effect
        Oriented: positive is what the finding says.
    margin : float
        Size that does not matter, in the effect's unit.
    primary : bool
        Whether it enters the half's verdict; the others are shown beside it.
    failed : str
        Why the setting failed, which makes the effect inconclusive; empty if it did not.
    diverged : int
        Runs behind the effect that diverged.
    outcome : str
        One of `evidence.decisions.OUTCOMES`; empty before the family is decided.

    Raises
    ------
    ValueError
        On an unknown finding, half, source or outcome, or a margin that is not above 0.
    """

    finding: str
    half: str
    source: str
    setting: str
    effect: Effect
    margin: float
    primary: bool = True
    failed: str = ""
    diverged: int = 0
    outcome: str = ""

    def __post_init__(self) -> None:
        check_choice("finding", self.finding, FINDINGS)
        check_choice("half", self.half, HALVES[self.finding])
        check_choice("source", self.source, SOURCES)
        check_choice("outcome", self.outcome, ("", *OUTCOMES))
        check_real("margin", self.margin, minimum=0.0, exclusive=True)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value over admissible learning rates."""
        e = self.effect
        return (e.lowest, e.highest) if isinstance(e, EffectRange) else (e.value, e.value)

    def record(self) -> dict[str, Any]:
        """All that is saved, flat, under a name of its own among the finding's effects in one source."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("finding", "source", "effect")}
        measured = {f.name: getattr(self.effect, f.name) for f in fields(Effect)}
        name = f"{self.half}, {self.setting}: {self.effect.name}"
        return measured | {"name": name, "lowest": self.range[0], "highest": self.range[1]} | own


@dataclass(frozen=True)
class Finding:
    """What one source of evidence says about one finding.

    Parameters
    ----------
    id : str
        A key of `FINDINGS`.
    source : {"published", "digits", "text"}
    members : sequence of Member
        Decided ones, of this finding and source; at least one primary effect for each half.
    figure : str
        Name of the figure that shows them.
    command : str
        What to type to rerun it, e.g. "make notebook N=11".

    Raises
    ------
    ValueError
        On an unknown id or source, members of another one or undecided, two of one name, or a half without an effect.
    """

    id: str
    source: str
    members: Sequence[Member]
    figure: str
    command: str

    def __post_init__(self) -> None:
        check_choice("id", self.id, FINDINGS)
        check_choice("source", self.source, SOURCES)
        object.__setattr__(self, "members", tuple(self.members))
        for member in self.members:
            if (member.finding, member.source) != (self.id, self.source) or not member.outcome:
                raise ValueError(f"members must be decided, of {self.id} and {self.source}; got {member}")
        names = [(m.half, m.setting, m.effect.name) for m in self.members]
        if len(set(names)) < len(names):
            raise ValueError(f"members of {self.id!r} must have names of their own; got {names}")
        if silent := set(HALVES[self.id]) - {m.half for m in self.members if m.primary}:
            raise ValueError(f"members of {self.id!r} must hold a primary effect on {', '.join(sorted(silent))}")

    @property
    def verdicts(self) -> dict[str, str]:
        """Half -> verdict of its primary effects."""
        return {
            half: verdict([m.outcome for m in self.members if m.primary and m.half == half]) for half in HALVES[self.id]
        }

    def save(self) -> Finding:
        """Write the finding as JSON to the results directory (see `results_directory`) and return it for display."""
        record = {key: value for key, value in asdict(self).items() if key != "members"} | {
            "effects": [member.record() for member in self.members],
            "statement": FINDINGS[self.id],
            "verdicts": self.verdicts,
            "chapter": os.environ.get("LORANTK_CHAPTER"),
            "tolerance": TOLERANCE,
        }
        save_record("findings", f"{self.id}.{self.source}", record, record["effects"])
        return self


@dataclass(frozen=True)
class Shown:
    """Findings as one table: a row a primary effect, the other effects left to the records."""

    findings: Sequence[Finding]

    def save(self) -> Shown:
        """Save each finding and return the table for display."""
        for finding in self.findings:
            finding.save()
        return self

    def _repr_html_(self) -> str:
        rows: list[tuple[Cell, ...]] = [
            (join([Code(m.finding), m.half]), Badge(m.outcome, STYLES[m.outcome]),
             f"{m.source}, {m.setting}: {m.effect.name}" + f"; failed: {m.failed}" * bool(m.failed),
             f"{number(m.effect.value)} ({interval(m.effect.low, m.effect.high)})", number(m.margin))
            for finding in self.findings for m in finding.members if m.primary
        ]  # fmt: skip
        head = ("finding", "outcome", "effect", "value (95 % interval)", "margin")
        anchors = "".join(f'<span id="{f.id}-{f.source}"></span>' for f in self.findings)
        return f'<div class="claim outcomes">{anchors}{Table(head, rows).html()}</div>'


def verdict(outcomes: Iterable[str]) -> str:
    """The verdict of several outcomes; the rule is the same for the effects of one source and of all sources."""
    found = set(outcomes)
    if len(found) == 1:
        return found.pop()
    if {"supported", "reversed"} <= found:
        return "mixed"
    for word in ("supported", "reversed"):
        if word in found:
            return f"{word} in part"
    return "inconclusive"


def load_findings(directory: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Findings saved in `directory`, by (id, source), in the order of `FINDINGS` and `SOURCES`."""
    paths = {(id, source): directory / f"{id}.{source}.json" for id in FINDINGS for source in SOURCES}
    return {pair: read_record(path, KEYS) for pair, path in paths.items() if path.exists()}


def missing_findings(directory: Path) -> list[str]:
    """Each "id.source" without a finding in `directory`."""
    found = load_findings(directory)
    return [f"{id}.{source}" for id in FINDINGS for source in SOURCES if (id, source) not in found]


def primary(record: Mapping[str, Any], half: str) -> list[dict[str, Any]]:
    """The primary effects of a saved finding on one half."""
    return [effect for effect in record["effects"] if effect["half"] == half and effect["primary"]]


def overall(records: Iterable[Mapping[str, Any]], half: str) -> str:
    """Verdict of a half of a finding over its sources: that of all their primary effects; "missing" if a source is."""
    kept = list(records)
    if {record["source"] for record in kept} != set(SOURCES):
        return "missing"
    return verdict(effect["outcome"] for record in kept for effect in primary(record, half))


def rows_of_findings() -> list[tuple[str, str]]:
    """Every finding and half: the rows of the table."""
    return [(id, half) for id in FINDINGS for half in HALVES[id]]


def overall_verdicts(directory: Path) -> list[str]:
    """The verdict over all sources of each finding and half, from the findings saved in `directory`."""
    records = load_findings(directory)
    return [overall([r for (of, _), r in records.items() if of == id], half) for id, half in rows_of_findings()]


def findings_table(directory: Path, links: Callable[[Mapping[str, Any]], Cell]) -> Table:
    """A row for each half of a finding, a column a source; `links` returns the cell of links for a record."""
    records = load_findings(directory)
    rows: list[list[Cell]] = []
    for id, half in rows_of_findings():
        mine = {source: records[id, source] for source in SOURCES if (id, source) in records}
        word = overall(mine.values(), half)
        cells = [
            join([badge(mine.get(source), half), *_shown(mine.get(source), half, links)], " ") for source in SOURCES
        ]
        rows.append([Code(id), half, FINDINGS[id], *cells, Badge(word, STYLES[word])])
    return Table(("id", "half", "finding", *SOURCES, "over all"), rows)


def badge(record: Mapping[str, Any] | None, half: str) -> Badge:
    """The verdict of a saved finding on a half; "missing" without one."""
    word = record["verdicts"][half] if record else "missing"
    return Badge(word, STYLES[word])


def _shown(record: Mapping[str, Any] | None, half: str, links: Callable[[Mapping[str, Any]], Cell]) -> list[Cell]:
    return [f"{primary_effects(record, half)};", links(record)] if record else []


def primary_effects(record: Mapping[str, Any], half: str) -> str:
    """The primary effects of a saved finding on a half as text, each with interval, margin and outcome."""
    return "; ".join(
        f"{e['setting']}: {number(e['value'])}{' ' * bool(e['unit'])}{e['unit']} ({interval(e['low'], e['high'])}; "
        f"margin {number(e['margin'])}): {_said(e)}"
        for e in primary(record, half)
    )


def _said(effect: Mapping[str, Any]) -> str:
    """The outcome of a saved effect, or why its setting failed."""
    return f"failed, {effect['failed']}" if effect["failed"] else str(effect["outcome"])
