"""From numbers to verdicts: a claim is a statement's id, the evidence for and against it, and what follows.

A piece of evidence is a measured number and the interval in which a reading of the statement puts it. A claim holds
several readings apart: the statement as *printed*; the same conclusion under an *amended* condition; a *corrected*
conclusion. The verdict is computed:

- every printed check passes: "holds" (for a definition: "definition");
- one fails, and there are amended checks and all pass: "holds with an amended condition";
- one fails otherwise: "fails as printed".

``python -m evidence.claims`` prints the table in a terminal, and that of `evidence.findings` below it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lorantk.validation import check_choice

from .artifacts import results_directory, write_atomically
from .statements import STATEMENTS

ROLES = ("printed", "amended", "corrected")
VERDICTS = {
    "holds": "holds",
    "definition": "definition",
    "holds with an amended condition": "amended",
    "fails as printed": "fails",
}


@dataclass(frozen=True)
class Evidence:
    """One measured number against the interval [low, high] where a reading of the statement puts it.

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
        check_choice("decisive", self.decisive, [e.name for e in self.evidence])
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
        heads = ("measured", "value", "predicted", "met", "reading", "route")
        table = html_table(
            heads,
            [
                (e.name, number(e.value), interval(e.low, e.high), "yes" if e.passes else "no", e.role, e.route)
                for e in self.evidence
            ],
        )
        title = f"<p><strong>{self.id}</strong>: {badge(self.verdict)}</p>"
        return f'<div class="claim" id="claim-{self.id}">{title}{table}</div>'


def html_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that scrolls in a box of its own on a page; cells are HTML."""
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        '<div class="claim-table" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def save_record(kind: str, name: str, record: Mapping[str, Any], intervals: Sequence[dict[str, Any]]) -> None:
    """Write a record as JSON to the results directory of its kind; open ends of its intervals become null."""
    for entry in intervals:
        entry |= {end: entry[end] if math.isfinite(entry[end]) else None for end in ("low", "high")}
    path = results_directory(kind) / f"{name}.json"
    write_atomically(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def disagreement(first: Tensor, second: Tensor) -> float:
    """Largest difference between two tensors of one shape, relative to the largest entry of the second."""
    return ((first - second).abs().max() / second.abs().max()).item()


def load_claims(directory: Path) -> list[dict[str, Any]]:
    """Claims saved in `directory` as dictionaries, in the order of `STATEMENTS`."""
    records = {path.stem: json.loads(path.read_text()) for path in directory.glob("*.json")}
    return [records[id] for id in STATEMENTS if id in records]


def missing_claims(directory: Path) -> list[str]:
    """Ids of `STATEMENTS` without a claim in `directory`."""
    return [id for id in STATEMENTS if not (directory / f"{id}.json").exists()]


def render_markdown(claims_dir: Path, *, link_prefix: str) -> str:
    """The claims table as markdown; links to chapters start with `link_prefix` and end in .html."""
    lines = ["| id | statement | verdict | decisive number | see |", "|---|---|---|---|---|"]
    for record in load_claims(claims_dir):
        page = f"{link_prefix}{record['chapter']}.html"
        statement = STATEMENTS[record["id"]]
        package, module, name = statement.code.split(".")
        targets = {"proof": f"{page}#{record['proof']}"}
        if record["figure"]:
            targets["figure"] = f"{page}#fig-{record['figure']}"
        targets["code"] = f"_modules/{package}/{module}.html#{name}"
        targets["test"] = f"tests.html#test-{record['id']}"
        links = ", ".join(f'<a href="{target}">{text}</a>' for text, target in targets.items())
        cells = [f"`{record['id']}`", record["statement"], badge(record["verdict"]), _decisive(record), links]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def render_tests() -> str:
    """A section for each statement with the code of its test, as MyST markdown for a page of the book."""
    sections = []
    for id, statement in STATEMENTS.items():
        package, module, name = statement.test.split(".")
        path = f"tests/{package}/test_{module}.py"
        options = f":language: python\n:pyobject: {name}\n"
        code = f"```{{literalinclude}} ../{path}\n{options}```\n"
        sections.append(f"(test-{id})=\n## {id}\n\n{statement.text}. From `{path}`:\n\n{code}")
    return "\n".join(sections)


def render_plain(claims_dir: Path) -> str:
    """The claims table as plain markdown for the README; chapters link to their sources."""
    lines = ["| id | statement | verdict | decisive number | chapter |", "|---|---|---|---|---|"]
    for record in load_claims(claims_dir):
        chapter = f"[{record['chapter'].split('-')[0]}](notebooks/{record['chapter']}.md)"
        cells = [f"`{record['id']}`", record["statement"], f"**{record['verdict']}**", _decisive(record), chapter]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def render_summary(claims_dir: Path) -> str:
    """One markdown line: how many statements ended in which verdict."""
    verdicts = [record["verdict"] for record in load_claims(claims_dir)]
    counts = [f"{verdicts.count(v)} {badge(v)}" for v in VERDICTS if v in verdicts]
    return f"Of {len(verdicts)} statements checked so far: {', '.join(counts)}.\n"


def badge(verdict: str, styles: Mapping[str, str] = VERDICTS) -> str:
    """The verdict as HTML, in the style that `styles` gives it."""
    return f'<span class="verdict verdict-{styles[verdict]}">{verdict}</span>'


def _decisive(record: dict[str, Any]) -> str:
    evidence = next(e for e in record["evidence"] if e["name"] == record["decisive"])
    return f"{evidence['name']}: {number(evidence['value'])} (predicted {interval(evidence['low'], evidence['high'])})"


def number(value: float) -> str:
    """Three significant digits; round-off, which varies between machines, as what it is."""
    if 0 < abs(value) < 1e-12:
        return "below 1e-12"
    return f"{value:.3g}"


def interval(low: float | None, high: float | None) -> str:
    """An interval in words; an open end is an infinity, or None in a saved claim."""
    if high is None or high == math.inf:
        return "anything" if low is None or low == -math.inf else f"at least {number(low)}"
    if low is None or low == -math.inf:
        return f"at most {number(high)}"
    if low < high and number(low) == number(high):
        return f"{number((low + high) / 2)} ± {(high - low) / 2:.0e}"
    return f"{number(low)} to {number(high)}"


def main(directory: Path) -> None:
    """Print the claims saved in `directory` as a table in the terminal."""
    from rich.console import Console
    from rich.table import Table

    if not load_claims(directory):
        raise SystemExit(f"no claims in {directory}: run from the project's root, or name a directory of claims")
    table = Table("id", "verdict", "decisive number", "chapter", title="Claims, as computed")
    for record in load_claims(directory):
        table.add_row(record["id"], record["verdict"], _decisive(record), record["chapter"])
    Console().print(table)


if __name__ == "__main__":
    from evidence.findings import show

    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("tests/reference/claims")
    main(directory)
    show(directory.with_name("findings"))
