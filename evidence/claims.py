"""From numbers to verdicts: a claim is a statement's id, the evidence for and against it, and what follows.

A statement has parts, each one conclusion. A piece of evidence is a measured number, the interval that a reading of one
part predicts for it, and why it could fail. The readings are kept apart:

- *printed*: the words and formulas as they stand (on the poster, or on the page for a statement of ours);
- *as meant*: one slip mended where the poster's other text says what is meant, which the evidence names;
- *amended*: the same conclusion under another condition: the same measurement as a printed check, which it names;
- *corrected*: another conclusion, in place of one that fails.

The verdict of a part is computed: "holds" if every printed check passes ("definition" if the item defines something);
else "holds as meant" or "holds under another condition" if there are such checks and all pass; else "fails". A
statement has the verdict of its parts, or holds "in part" if they differ.

``python -m evidence`` prints all claims, and the findings, in a terminal.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lorantk.batches import check_choice

from .artifacts import read_record, save_record
from .routes import Measured
from .statements import STATEMENTS
from .tables import Badge, Cell, Code, Table, cell_html, interval, number

READINGS = ("printed", "as meant", "amended", "corrected")
VERDICTS = {
    "holds": "holds",
    "definition": "definition",
    "holds as meant": "holds",
    "holds under another condition": "amended",
    "in part": "amended",
    "fails": "fails",
}
KEYS = ("id", "evidence", "decisive", "figure", "statement", "parts", "verdict", "chapter", "proof")
"""What a saved claim holds."""
EVIDENCE_KEYS = (
    "name", "value", "low", "high", "passes", "part", "reading", "source", "repairs", "fails_if", "miss", "route"
)  # fmt: skip
"""What a saved piece of evidence holds."""


@dataclass(frozen=True)
class Evidence:
    """One measured number and the interval [low, high] that a reading of one part predicts for it.

    Parameters
    ----------
    name : str
        What was measured, readable in a table.
    measured : Measured
        The number, with the functions that computed it (see `evidence.routes.measure`).
    low, high : float
        The check passes when low <= value <= high; NaN never passes. An open end is an infinity.
    fails_if : str
        Why the check could fail: what would be wrong then.
    part : str
        A key of the statement's parts; "" if it has one conclusion only.
    reading : {"printed", "as meant", "amended", "corrected"}
        Which reading makes the prediction.
    source : str
        For "as meant": the place that says what is meant.
    repairs : str
        For "amended": name of the printed check that fails, whose quantity this is under another condition.
    miss : float
        For a random number: a bound on the probability that it falls on the wrong side of the interval's ends,
        whatever the seed, if the reading is true (or, for a check that is to fail, false).

    Raises
    ------
    TypeError, ValueError
        If `measured` is a bare number, no interval or reason is given, or a reading lacks its source or repair.
    """

    name: str
    measured: Measured[Any]
    low: float
    high: float
    fails_if: str
    part: str = ""
    reading: str = "printed"
    source: str = ""
    repairs: str = ""
    miss: float = 0.0

    def __post_init__(self) -> None:
        check_choice("reading", self.reading, READINGS)
        if not isinstance(self.measured, Measured):
            raise TypeError(f"measured must come from evidence.routes.measure; got {type(self.measured).__name__}")
        for end in ("low", "high"):
            object.__setattr__(self, end, float(getattr(self, end)))
        if not self.low <= self.high:
            raise ValueError(f"low must be at most high; got {self.low} and {self.high} for {self.name!r}")
        if not self.fails_if:
            raise ValueError(f"fails_if of {self.name!r} must say why the check could fail")
        if not 0 <= self.miss <= 0.01:
            raise ValueError(f"miss of {self.name!r} must be a probability of at most 0.01; got {self.miss}")
        for given, reading in (("source", "as meant"), ("repairs", "amended")):
            if bool(getattr(self, given)) != (self.reading == reading):
                raise ValueError(f"{given} of {self.name!r} must be given for reading {reading!r}, and for no other")

    @property
    def value(self) -> float:
        return float(self.measured.value)

    @property
    def route(self) -> str:
        """The functions that were asked for the number."""
        return ", ".join(self.measured.route)

    @property
    def passes(self) -> bool:
        return self.low <= self.value <= self.high

    def record(self) -> dict[str, Any]:
        """What is saved; a value that is no number becomes None."""
        record = {key: getattr(self, key) for key in EVIDENCE_KEYS}
        return record | {"value": self.value if math.isfinite(self.value) else None}


@dataclass(frozen=True)
class Claim:
    """A statement's evidence and the verdicts that it leads to.

    Parameters
    ----------
    id : str
        A key of `STATEMENTS`.
    evidence : sequence of Evidence
        For each part of the statement at least one printed check, and two checks that share no code.
    decisive : str
        Name of the piece of evidence that the claims table shows.
    figure : str, optional
        Name of the figure that shows it.
    definition : bool
        The item defines something; its checks certify that the code computes what is defined.
    tables : mapping
        What was computed on the way, for the page to draw; not saved.

    Raises
    ------
    ValueError
        On an unknown id, part or decisive name, a part without a printed check or without two routes, or an amended
        check that measures something else than the printed one. Never for what the numbers are: a check that fails
        is shown, and reported when the book is compared with its reference.
    """

    id: str
    evidence: Sequence[Evidence]
    decisive: str
    figure: str | None = None
    definition: bool = False
    tables: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("id", self.id, STATEMENTS)
        object.__setattr__(self, "evidence", tuple(self.evidence))
        names = [e.name for e in self.evidence]
        if len(set(names)) < len(names):
            raise ValueError(f"evidence of {self.id!r} must have names of its own; got {names}")
        check_choice("decisive", self.decisive, names)
        for e in self.evidence:
            check_choice("part", e.part, self.parts)
        for part in self.parts:
            self._check_part(part, [e for e in self.evidence if e.part == part])

    def _check_part(self, part: str, evidence: Sequence[Evidence]) -> None:
        named = f"evidence of {self.id!r}" + (f", part {part!r}," if part else "")
        printed = {e.name: e for e in evidence if e.reading == "printed"}
        if not printed:
            raise ValueError(f"{named} must hold a check of the statement as printed")
        pairs = itertools.combinations(evidence, 2)
        if all(one.measured.shares(other.measured) for one, other in pairs):
            routes = sorted({e.route for e in evidence})
            raise ValueError(f"{named} must come by two routes that share no code; got {routes}")
        for e in evidence:
            if e.reading == "amended" and (e.repairs not in printed or printed[e.repairs].route != e.route):
                raise ValueError(f"{e.name!r} must measure what the printed check {e.repairs!r} does, by its route")

    @property
    def parts(self) -> Mapping[str, str]:
        """The conclusions of the statement, by their keys; "" if it has one only."""
        return STATEMENTS[self.id].parts or {"": STATEMENTS[self.id].text}

    def verdict_of(self, part: str) -> str:
        """The verdict of one part."""
        passed = {
            reading: [e.passes for e in self.evidence if e.part == part and e.reading == reading]
            for reading in READINGS
        }
        if all(passed["printed"]):
            return "definition" if self.definition else "holds"
        for reading, verdict in (("as meant", "holds as meant"), ("amended", "holds under another condition")):
            if passed[reading] and all(passed[reading]):
                return verdict
        return "fails"

    @property
    def verdict(self) -> str:
        verdicts = {self.verdict_of(part) for part in self.parts}
        return verdicts.pop() if len(verdicts) == 1 else "in part"

    @property
    def turned(self) -> list[Evidence]:
        """Checks of our own reading that fail, as they may at other parameters than those of the book."""
        return [e for e in self.evidence if not e.passes and (self.definition or e.reading != "printed")]

    def save(self) -> Claim:
        """Write the claim as JSON to the results directory (see `results_directory`) and return it for display."""
        evidence = [e.record() for e in self.evidence]
        record = {
            "id": self.id,
            "evidence": evidence,
            "decisive": self.decisive,
            "figure": self.figure,
            "statement": STATEMENTS[self.id].text,
            "parts": [{"part": p, "text": text, "verdict": self.verdict_of(p)} for p, text in self.parts.items()],
            "verdict": self.verdict,
            "chapter": os.environ.get("LORANTK_CHAPTER"),
            "proof": self.id if self.definition else f"proof-{self.id}",
        }
        save_record("claims", self.id, record, evidence)
        return self

    def _repr_html_(self) -> str:
        title = cell_html((f"{self.id}: ", Badge(self.verdict, VERDICTS[self.verdict])))
        shown = [f"<p>{title}</p>"]
        for part, text in self.parts.items():
            verdict = self.verdict_of(part)
            if part:
                shown.append(f"<p>{cell_html((f'{text}: ', Badge(verdict, VERDICTS[verdict])))}</p>")
            shown.append(_checks([e for e in self.evidence if e.part == part]).html())
        if self.turned:
            names = "; ".join(e.name for e in self.turned)
            shown.append(f"<p>{cell_html(f'Turned at these parameters, against our own reading: {names}.')}</p>")
        return f'<div class="claim" id="claim-{self.id}">{"".join(shown)}</div>'


def _checks(evidence: Sequence[Evidence]) -> Table:
    """A row a check; a reading with its source, or with what it repairs; sentences are not said twice in a row."""
    rows: list[Sequence[Cell]] = []
    before = ("", "")
    for e in evidence:
        reason = f": {e.source}" if e.source else f", for: {e.repairs}" if e.repairs else ""
        fails = e.fails_if + (f" (by chance: {number(e.miss)})" if e.miss else "")
        reading = e.reading + (", as above" if reason and reason == before[0] else reason)
        predicted, met = interval(e.low, e.high), "yes" if e.passes else "no"
        route = ", ".join(name.rpartition(".")[2] for name in e.route.split(", "))
        said = "as above" if fails == before[1] else fails
        rows.append((e.name, number(e.value), predicted, met, reading, said, Code(route)))
        before = reason, fails
    return Table(("measured", "value", "predicted", "met", "reading", "fails if", "route"), rows)


def disagreement(first: Tensor, second: Tensor) -> float:
    """Largest difference between two tensors of one shape, relative to the largest entry of the second.

    Raises
    ------
    ValueError
        If the shapes differ: one would be repeated to fit the other.
    """
    if first.shape != second.shape:
        raise ValueError(f"first and second must have one shape; got {tuple(first.shape)} and {tuple(second.shape)}")
    return ((first - second).abs().max() / second.abs().max()).item()


def load_claims(directory: Path) -> list[dict[str, Any]]:
    """Claims saved in `directory` as dictionaries, in the order of `STATEMENTS`."""
    paths = {id: directory / f"{id}.json" for id in STATEMENTS}
    return [read_record(path, KEYS) for path in paths.values() if path.exists()]


def own_checks_that_fail(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Pieces of evidence of a saved claim by which our own reading of it fails."""
    definition = record["verdict"] == "definition"
    return [e for e in record["evidence"] if not e["passes"] and (definition or e["reading"] != "printed")]


def claims_table(directory: Path, links: Callable[[Mapping[str, Any]], Cell]) -> Table:
    """The claims saved in `directory`, one a row; `links` returns the cell of links for a record."""
    rows = [
        (
            Code(record["id"]),
            record["statement"],
            Badge(record["verdict"], VERDICTS[record["verdict"]]),
            decisive_number(record),
            links(record),
        )
        for record in load_claims(directory)
    ]
    return Table(("id", "statement", "verdict", "decisive number", "see"), rows)


def decisive_number(record: Mapping[str, Any]) -> str:
    """What decides a saved claim, as text: the measured number and its prediction."""
    evidence = next(e for e in record["evidence"] if e["name"] == record["decisive"])
    return f"{evidence['name']}: {number(evidence['value'])} (predicted {interval(evidence['low'], evidence['high'])})"
