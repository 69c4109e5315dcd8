"""A trial: a chapter with other parameters, in a folder of its own, and what moved against tests/reference."""

from __future__ import annotations

import html
import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chapters import Chapter
from execution import Outcome, run_trials
from locks import hold
from reference import Difference, compare

from evidence.artifacts import read_record, write_atomically
from evidence.claims import VERDICTS
from evidence.findings import STYLES
from evidence.tables import Badge, Cell, Code, Link, Table, interval, number

HEADS = ("check", "reference", "this trial")
STYLE = """
:root { color-scheme: light dark; --pst-color-border: #8888; --pst-color-text-base: inherit; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1rem; }
.pair figure { margin: 0 0 1rem; } .pair img { width: 100%; height: auto; }
.claim-table { overflow-x: auto; } table { border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.8rem; border-bottom: 1px solid #8888; }
"""


@dataclass(frozen=True)
class Moved:
    """One claim or finding of a trial beside the committed one, which is None where there is none."""

    run: Mapping[str, Any]
    kept: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        return ", ".join(part for part in (self.run["id"], self.run.get("source")) if part)

    @property
    def verdicts(self) -> dict[str, tuple[str, str]]:
        """Each statement or finding, and each part of one -> the committed verdict and the trial's."""
        before, after = (self._verdicts(record) for record in (self.kept, self.run))
        return {name: (before.get(name, "absent"), verdict) for name, verdict in after.items()}

    def _verdicts(self, record: Mapping[str, Any] | None) -> dict[str, str]:
        if record is None:
            return {}
        if "verdicts" in record:  # a finding's, one for each half
            return {f"{self.name}, {half}": verdict for half, verdict in record["verdicts"].items()}
        parts = {f"{self.name}, {part['part']}": part["verdict"] for part in record.get("parts", ()) if part["part"]}
        return {self.name: record["verdict"]} | parts

    def beside(self, of: Callable[[Mapping[str, Any]], str]) -> dict[str, tuple[str, str]]:
        """Check or effect -> what `of` says of it in the reference and in the trial, where that is not the same."""
        before, after = ({part["name"]: of(part) for part in _parts(record)} for record in (self.kept, self.run))
        names = [*after, *(name for name in before if name not in after)]
        pairs = {name: (before.get(name, "absent"), after.get(name, "absent")) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def turned(self) -> list[str]:
        """The verdict, if it changed, and each check or effect that now says something else, as text."""
        said = {name: pair for name, pair in self.verdicts.items() if pair[0] != pair[1]}
        checks = self.beside(outcome).items()
        said |= {f"{self.name}: {name}": pair for name, pair in checks if "absent" not in pair}
        return [f"{name}: {before} -> {after}" for name, (before, after) in said.items()]

    def rows(self) -> list[list[Cell]]:
        """Each verdict, whether it changed or not, then each check or effect that did."""
        styles = {"absent": "definition"} | VERDICTS | STYLES
        verdicts = [
            [Code(name), *(Badge(verdict, styles.get(verdict, "fails")) for verdict in pair)]
            for name, pair in self.verdicts.items()
        ]
        return [*verdicts, *([name, *pair] for name, pair in self.beside(in_words).items())]


@dataclass(frozen=True)
class Report:
    """What a trial of one chapter changed: its claims and findings, and the numbers of its figures."""

    chapter: Chapter
    overrides: Mapping[str, Any]
    records: Sequence[Moved]
    differences: Sequence[Difference]

    @classmethod
    def of(cls, chapter: Chapter, overrides: Mapping[str, Any]) -> Report:
        """The report on what the last trial of the chapter left in its folder."""
        static, reference = folder_of(chapter) / "_static", chapter.root / "tests" / "reference"
        paths = [path for kind in ("claims", "findings") for path in sorted((static / kind).glob("*.json"))]
        kept = [reference / path.relative_to(static) for path in paths]
        records = [
            Moved(read_record(path), read_record(old) if old.exists() else None)
            for path, old in zip(paths, kept, strict=True)
        ]
        drawn = {f"figures/{path.stem}" for path in (static / "figures").glob("*.csv")}
        return cls(chapter, overrides, records, [d for d in compare(static, reference) if d.item in drawn])

    @property
    def command(self) -> str:
        """The line that repeats the trial."""
        return self._command(self.overrides)

    def _command(self, overrides: Mapping[str, Any]) -> str:
        values = (f"{name}={str(value).replace(', ', ',')}" for name, value in overrides.items())
        return f"make notebook N={self.chapter.name.split('-')[0]} SET={shlex.quote(' '.join(values))}"

    @property
    def advice(self) -> str:
        """How to tell what the settings move from what the profile moves; empty if only one of them was set."""
        others = {name: value for name, value in self.overrides.items() if name != "profile"}
        if "profile" not in self.overrides or not others:
            return ""
        alone = self._command({"profile": self.overrides["profile"]})
        return (
            f"The profile moves numbers too: {alone} shows which. "
            f"What {' and '.join(others)} alone moves: {self._command(others)}"
        )

    @property
    def verdicts(self) -> Table:
        """Every verdict, and the checks and effects that moved."""
        return Table(HEADS, [row for record in self.records for row in record.rows()])

    @property
    def figures(self) -> Table:
        """The columns of figures that moved."""
        rows = [(Code(d.item.partition("/")[2]), d.column.replace("_", " "), d.moved) for d in self.differences]
        return Table(("figure", "column", "what moved"), rows)

    def turned(self) -> list[str]:
        """What now says something else, a line each; one line if nothing does."""
        return [line for record in self.records for line in record.turned()] or ["no verdict and no check turned"]

    def text(self) -> str:
        """All that moved as lines: what turned, then the rows of both tables."""
        rows = [cells for table in (self.verdicts, self.figures) for cells in table.text_rows()]
        return "\n".join([*self.turned(), *(" | ".join(cells) for cells in [HEADS, *rows])])

    def show(self) -> None:
        """Print what moved in the terminal: tables, then what turned, then where the page is."""
        for table, title in ((self.verdicts, "verdicts and checks"), (self.figures, "numbers of figures that moved")):
            if table.rows:
                table.show(f"{self.chapter.name}: {title}")
        print(*self.turned(), sep="\n")
        if self.advice:
            print(self.advice)
        print(f"{self.command}: see {os.path.relpath(folder_of(self.chapter) / 'index.html')}")

    def html(self) -> str:
        """The trial's page: what was set, what turned, what moved, and each figure beside the book's."""
        name, defaults = self.chapter.name, self.chapter.defaults()
        settings = [(Code(key), Code(repr(defaults[key])), Code(repr(value))) for key, value in self.overrides.items()]
        pictures = sorted((folder_of(self.chapter) / "_static" / "figures").glob("*.csv"))
        body = [
            f"<h1>Trial of {name}</h1><p>{Code(self.command).html()}</p>",
            f"<p>{html.escape(self.advice)}</p>" if self.advice else "",
            Table(("parameter", "book", "this trial"), settings).html(),
            f"<h2>What turned</h2><ul>{''.join(f'<li>{html.escape(line)}</li>' for line in self.turned())}</ul>",
            "<h2>Verdicts and checks</h2>" + self.verdicts.html() if self.records else "",
            "<h2>Figures</h2>" + "".join(self._pair(path.stem) for path in pictures) if pictures else "",
            "<h2>Numbers of figures that moved</h2>" + self.figures.html() if self.differences else "",
            f"<p>{Link('The executed notebook', f'notebooks/{name}.ipynb').html()}</p>",
        ]
        return (
            f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Trial of {name}</title>'
            '<meta name="viewport" content="width=device-width"><link rel="stylesheet" '
            f'href="../../../_static/custom.css"><style>{STYLE}</style></head><body>{"".join(body)}</body></html>\n'
        )

    def _pair(self, name: str) -> str:
        """One figure as the book has it, if it was made, and as the trial drew it."""
        alt = html.escape(read_record(folder_of(self.chapter) / "_static" / "figures" / f"{name}.json")["alt"])
        places = {"in this trial": "_static/figures"}
        if (self.chapter.root / "book" / "_static" / "figures" / f"{name}.svg").exists():
            places = {"in the book": "../../../_static/figures"} | places
        figures = "".join(
            f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{place}/{name}-dark.svg">'
            f'<img src="{place}/{name}.svg" alt="{alt}"></picture><figcaption>{name}, {where}</figcaption></figure>'
            for where, place in places.items()
        )
        return f'<div class="pair">{figures}</div>'


def folder_of(chapter: Chapter) -> Path:
    """Where trials of a chapter go: its notebook, its figures and records, and its page index.html."""
    return chapter.root / "book" / "_build" / "trial" / chapter.name


def fresh_folder(chapter: Chapter) -> Path:
    """The folder of a chapter's trials, without what an earlier one left in it."""
    shutil.rmtree(folder_of(chapter), ignore_errors=True)
    return folder_of(chapter)


def run(chapters: Sequence[Chapter], overrides: Mapping[str, Mapping[str, Any]], jobs: int) -> list[Outcome]:
    """Execute each chapter afresh in its own folder; print, and write to its page, what moved against the reference.

    Raises
    ------
    Busy
        If another trial of one of the chapters is at work.
    """
    with ExitStack() as held:
        for chapter in chapters:
            folder = folder_of(chapter)
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = folder.with_suffix(".lock")
            held.callback(hold(lock, f"another trial of {chapter.name} is at work: wait for its end"))
        outcomes = sorted(run_trials(chapters, overrides, fresh_folder, jobs), key=lambda outcome: outcome.chapter.name)
        for outcome in outcomes:
            if not outcome.traceback:
                report = Report.of(outcome.chapter, overrides[outcome.chapter.name])
                write_atomically(folder_of(outcome.chapter) / "index.html", report.html())
                report.show()
    return outcomes


def outcome(part: Mapping[str, Any]) -> str:
    """Whether a check of a claim is met, or the outcome of an effect of a finding."""
    return ("met" if part["passes"] else "not met") if "passes" in part else str(part.get("outcome", "undecided"))


def in_words(part: Mapping[str, Any]) -> str:
    """A check of a claim with what was predicted, or an effect of a finding with its interval, and its outcome."""
    ends = interval(part["low"], part["high"])
    return f"{number(part['value'])} ({f'predicted {ends}' if 'passes' in part else ends}): {outcome(part)}"


def _parts(record: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    return [*record.get("evidence", ()), *record.get("effects", ())] if record else []
