"""From numbers to verdicts: a claim is a statement's id, the evidence for and against it, and what follows.

A piece of evidence is a measured number and the interval that a reading of the statement predicts for it. A claim keeps
the readings apart: the statement as *printed*; the same conclusion under an *amended* condition; a *corrected*
conclusion. The verdict is computed:

- every printed check passes: "holds" (for a definition: "definition");
- one fails, and there are amended checks and all pass: "holds with an amended condition";
- one fails otherwise: "fails as printed".

``python -m evidence`` prints all claims, and the findings, in a terminal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lorantk.batches import check_choice

from .artifacts import read_record, save_record
from .statements import STATEMENTS
from .tables import Badge, Cell, Code, Table, cell_html, interval, number

ROLES = ("printed", "amended", "corrected")
VERDICTS = {
    "holds": "holds",
    "definition": "definition",
    "holds with an amended condition": "amended",
    "fails as printed": "fails",
}
KEYS = ("id", "evidence", "decisive", "figure", "definition", "statement", "verdict", "chapter", "proof")
"""What a saved claim holds."""


@dataclass(frozen=True)
class Evidence:
    """One measured number and the interval [low, high] that a reading of the statement predicts for it.

    Parameters
    ----------
    name : str
        What was measured, readable in a table.
    value, low, high : float
        The check passes when low <= value <= high; NaN never passes. An open end is an infinity.
    route : str
        How it was computed, e.g. "autodiff Jacobian" or "Monte Carlo, 400 draws".
    role : {"printed", "amended", "corrected"}
        Which reading of the statement makes the prediction.
    """

    name: str
    value: float
    low: float
    high: float
    route: str
    role: str = "printed"

    def __post_init__(self) -> None:
        check_choice("role", self.role, ROLES)
        for field in ("value", "low", "high"):
            object.__setattr__(self, field, float(getattr(self, field)))
        if not self.low <= self.high:
            raise ValueError(f"low must be at most high; got {self.low} and {self.high} for {self.name!r}")

    @property
    def passes(self) -> bool:
        return self.low <= self.value <= self.high


@dataclass(frozen=True)
class Claim:
    """A statement's evidence and the verdict that it leads to.

    Parameters
    ----------
    id : str
        A key of `STATEMENTS`.
    evidence : sequence of Evidence
        At least one printed check, and two different routes.
    decisive : str
        Name of the piece of evidence that the claims table shows.
    figure : str, optional
        Name of the figure that shows it.
    definition : bool
        The item defines something; its checks certify that the code computes what is defined.

    Raises
    ------
    ValueError
        On an unknown id or decisive name, no printed check, fewer than two routes, or amended or corrected checks
        that fail: a correction that does not survive its own check is not one.
    """

    id: str
    evidence: Sequence[Evidence]
    decisive: str
    figure: str | None = None
    definition: bool = False

    def __post_init__(self) -> None:
        check_choice("id", self.id, STATEMENTS)
        object.__setattr__(self, "evidence", tuple(self.evidence))
        if not any(e.role == "printed" for e in self.evidence):
            raise ValueError(f"evidence of {self.id!r} must hold a check of the statement as printed")
        routes = {e.route for e in self.evidence}
        if len(routes) < 2:
            raise ValueError(f"evidence of {self.id!r} must come by two routes; got {sorted(routes)}")
        names = [e.name for e in self.evidence]
        check_choice("decisive", self.decisive, names)
        if len(set(names)) < len(names):
            raise ValueError(f"evidence of {self.id!r} must have names of its own; got {names}")
        failed = [e for e in self.evidence if e.role != "printed" and not e.passes]
        if failed or (self.definition and self.verdict != "definition"):
            failed = failed or [e for e in self.evidence if not e.passes]
            lines = "; ".join(f"{e.name} = {e.value:.6g}, not in [{e.low:.6g}, {e.high:.6g}]" for e in failed)
            raise ValueError(f"evidence of {self.id!r} contradicts our own reading of it: {lines}")

    @property
    def verdict(self) -> str:
        if all(e.passes for e in self.evidence if e.role == "printed"):
            return "definition" if self.definition else "holds"
        amended = [e for e in self.evidence if e.role == "amended"]
        return "holds with an amended condition" if amended else "fails as printed"

    def save(self) -> Claim:
        """Write the claim as JSON to the results directory (see `results_directory`) and return it for display."""
        record = asdict(self) | {
            "statement": STATEMENTS[self.id].text,
            "verdict": self.verdict,
            "chapter": os.environ.get("LORANTK_CHAPTER"),
            "proof": self.id if self.definition else f"proof-{self.id}",
        }
        for entry, evidence in zip(record["evidence"], self.evidence, strict=True):
            entry["passes"] = evidence.passes
        save_record("claims", self.id, record, record["evidence"])
        return self

    def _repr_html_(self) -> str:
        rows = [
            (e.name, number(e.value), interval(e.low, e.high), "yes" if e.passes else "no", e.role, e.route)
            for e in self.evidence
        ]
        table = Table(("measured", "value", "predicted", "met", "reading", "route"), rows)
        title = cell_html((f"{self.id}: ", Badge(self.verdict, VERDICTS[self.verdict])))
        return f'<div class="claim" id="claim-{self.id}"><p>{title}</p>{table.html()}</div>'


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
