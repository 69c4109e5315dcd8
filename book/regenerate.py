"""Re-execute the chapters that changed, check their numbers, render the book.

Chapters run in a stage directory and move into the book only when they are whole; the rendered pages are swapped in
only when Sphinx is content. A failure, or a kill at any moment, leaves the previous good book as it was.
"""

# ruff: noqa: E402

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated

sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]  # nbformat would make grammars of IRIs for seconds

import trial
import typer
from chapters import Chapter, find_chapters, foreign_packages, parse_settings
from execution import Outcome, console, run_chapters
from locks import Busy, hold
from pages import readme_with_results, write_generated_pages
from reference import Difference, compare, update
from render import RenderError, render
from rich.table import Table
from swap import recover

from evidence.artifacts import CorruptFile, write_atomically
from evidence.claims import load_claims, own_checks_that_fail
from evidence.findings import missing_findings

ROOT = Path(__file__).resolve().parent.parent


def check_numbers(root: Path) -> list[Difference]:
    """What keeps a run from being accepted: numbers that moved, own checks that fail, a README or findings amiss."""
    differences = compare(root / "book" / "_static", root / "tests" / "reference")
    if readme_with_results(root) != (root / "README.md").read_text():
        differences.append(Difference("README.md", "results", "differs from the reference", "equal"))
    for record in load_claims(root / "book" / "_static" / "claims"):
        for e in own_checks_that_fail(record):
            moved = f"{e['value']}, not in [{e['low']}, {e['high']}]"
            differences.append(Difference(f"claims/{record['id']}", e["name"], moved, "our own reading holds"))
    missing = missing_findings(root / "book" / "_static" / "findings")
    return differences + [Difference(f"findings/{name}", "", "no chapter computes it", "present") for name in missing]


def report_failure(outcome: Outcome) -> None:
    """Print the chapter, the failing cell's source and the traceback."""
    console.rule(f"[red]{outcome.chapter.name} failed after {outcome.seconds:.0f} s")
    console.print("cell:", style="bold")
    console.print(outcome.cell, markup=False, highlight=False)
    console.print("traceback:", style="bold")
    print(outcome.traceback)


def report_differences(differences: list[Difference]) -> None:
    """Print what moved against the reference, as a table."""
    table = Table("where", "column", "what moved", "allowed", title="Moved against tests/reference")
    for d in differences:
        table.add_row(d.item, d.column, d.moved, d.allowed)
    console.print(table)


def report_book(root: Path, chapters: list[Chapter], ran: dict[str, float], rendered: bool, seconds: float) -> None:
    """Print how long each chapter took, how many chapters and figures there are, and where the book is."""
    table = Table("chapter", "seconds", "this time")
    for chapter in chapters:
        state = "executed" if chapter.name in ran else "unchanged" if chapter.is_current() else "out of date"
        table.add_row(chapter.name, f"{chapter.recorded().get('seconds', 0):.1f}", state)
    console.print(table)
    figures = len(list((root / "book" / "_static" / "figures").glob("*.csv")))
    page = root / "book" / "_build" / "html" / "index.html"
    state = "rendered" if rendered else "unchanged"
    console.print(f"{len(chapters)} chapters, {figures} figures, {seconds:.0f} s in all; book ({state}): {page}")


def main(
    context: typer.Context,
    only: Annotated[list[str] | None, typer.Option(help="Chapter to execute, by number or name; repeatable.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Parameter name=value; repeatable.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Chapters executed at once.")] = os.cpu_count() or 1,
    check: Annotated[bool, typer.Option("--check", help="Compare all numbers with tests/reference.")] = False,
    update_reference: Annotated[bool, typer.Option("--update-reference", help="Replace tests/reference.")] = False,
    no_render: Annotated[bool, typer.Option("--no-render", help="Execute only.")] = False,
    root: Annotated[Path, typer.Option(hidden=True)] = ROOT,
) -> None:
    """Execute the chapters whose text, parameters or imported package code changed, then render the book.

    With --set the run is a trial: it goes to book/_build/trial, says what moved, and leaves the book alone.
    """
    start = time.perf_counter()
    foreign = foreign_packages(ROOT)
    if foreign:
        console.print(f"other code than this tree's would run: {foreign}", markup=False)
        console.print(f"mend it with: {sys.executable} -m pip install --no-deps -e {ROOT}", markup=False)
        raise typer.Exit(2)
    if not (root / "notebooks").is_dir() or not (root / "book").is_dir():
        raise typer.BadParameter(f"--root must be a folder with book/ and notebooks/; got {root}")
    try:
        chapters = find_chapters(root, only)
        overrides = parse_settings(chapters, settings or [])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    build = root / "book" / "_build"
    build.mkdir(parents=True, exist_ok=True)
    try:
        if settings:
            report_failures(trial.run([c for c in chapters if c.name in overrides], overrides, jobs))
            return
        free = hold(build / "lock", f"another regeneration is at work on {root}: wait for its end")
        context.call_on_close(free)
        sweep_leftovers(root)
        outcomes = run_chapters(outdated(chapters), root / "book", jobs)
        report_failures(outcomes)
        finish(root, outcomes, start, check=check, update_reference=update_reference, no_render=no_render)
    except Busy as error:
        console.print(str(error), markup=False)
        raise typer.Exit(2) from error
    except (CorruptFile, RenderError) as error:
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from error
    except BrokenProcessPool as error:
        console.print("a worker was killed from outside, as for want of memory; chapters that had finished are kept:")
        console.print("run the same command again, with --jobs 1 if memory is short")
        raise typer.Exit(1) from error


def report_failures(outcomes: list[Outcome]) -> None:
    """Print each chapter that failed; end with status 1 if one did."""
    failures = [outcome for outcome in outcomes if outcome.traceback]
    for outcome in failures:
        report_failure(outcome)
    if failures:
        raise typer.Exit(1)


def sweep_leftovers(root: Path) -> None:
    """Remove what killed runs left behind, and put back what one had set aside."""
    book, tests = root / "book", root / "tests"
    for target in (book / "_build" / "html", tests / "reference"):
        recover(target)
    for leftover in [*book.glob("_build/stage-*"), book / "_build" / "html.new", tests / ".reference.new"]:
        shutil.rmtree(leftover, ignore_errors=True)
    for pattern in ("book/.*.md.*", "book/_generated/.*.md.*", ".README.md.*"):
        for leftover in root.glob(pattern):
            leftover.unlink()


def outdated(chapters: list[Chapter]) -> list[Chapter]:
    """Chapters to execute: those whose sources changed, and, which is said, those whose results were damaged."""
    for chapter in chapters:
        for path in chapter.damaged():
            console.print(f"{path} is not as {chapter.name} wrote it: the chapter is executed again", markup=False)
    return [chapter for chapter in chapters if not chapter.is_current()]


def finish(
    root: Path, outcomes: list[Outcome], start: float, *, check: bool, update_reference: bool, no_render: bool
) -> None:
    """All that follows once the chapters are executed: generated pages, reference, html, reports."""
    static = root / "book" / "_static"
    write_generated_pages(root)
    if update_reference:
        update(static, root / "tests" / "reference")
        write_atomically(root / "README.md", readme_with_results(root))
        for picture in (root / "docs").glob("*.png"):
            write_atomically(picture, (static / "figures" / picture.name).read_bytes())
    rendered = False if no_render else render(root)
    ran = {outcome.chapter.name: outcome.seconds for outcome in outcomes}
    report_book(root, find_chapters(root), ran, rendered, time.perf_counter() - start)
    if check:
        differences = check_numbers(root)
        if differences:
            report_differences(differences)
            raise typer.Exit(1)
        console.print("every recorded number and verdict agrees with tests/reference")


def stop(signum: int, frame: object) -> None:
    """End by way of all that is to be undone or ended first."""
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    typer.run(main)
