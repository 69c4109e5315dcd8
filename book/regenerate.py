"""Re-execute the chapters that changed, check their numbers, render the book.

Chapters run in a stage directory and move into the book only when they are whole; the rendered pages are swapped in
only when Sphinx is content. A failure leaves the previous good book as it was.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import nbformat
import papermill
import typer
from chapters import PACKAGES, Chapter, find_chapters, foreign_packages, parse_overrides
from pages import readme_with_results, write_generated_pages
from papermill.exceptions import PapermillExecutionError
from reference import Difference, compare, update
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from evidence.artifacts import write_atomically
from evidence.findings import missing_findings

ROOT = Path(__file__).resolve().parent.parent
console = Console(soft_wrap=True)


@dataclass(frozen=True)
class Outcome:
    """How one execution ended: seconds it took, and the failing cell's source and traceback if it failed."""

    chapter: Chapter
    seconds: float
    cell: str = ""
    traceback: str = ""


def execute(chapter: Chapter, overrides: dict[str, Any], stage: Path) -> Outcome:
    """Run one chapter with papermill inside `stage`; runs in its own process, whose environment it may change."""
    notebooks = stage / "notebooks"
    notebooks.mkdir(parents=True, exist_ok=True)
    parameters = chapter.defaults() | overrides
    kernels_log = (chapter.root / "book" / "_build" / "kernels.log").open("ab")
    os.dup2(kernels_log.fileno(), sys.stderr.fileno())  # start-up chatter of the kernels; errors come back in full
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core a chapter; chapters run side by side
    os.environ["TQDM_DISABLE"] = "1"  # a page shows results, not their progress
    os.environ["LORANTK_RESULTS"] = "../_static"
    os.environ["LORANTK_CHAPTER"] = chapter.name
    os.environ["LORANTK_PARAMETERS"] = json.dumps(parameters)
    content_hash = chapter.content_hash(parameters)
    start = time.perf_counter()
    try:
        notebook = papermill.execute_notebook(
            chapter.read(), None, overrides, cwd=notebooks, progress_bar=False, log_output=False
        )
    except PapermillExecutionError as error:
        return Outcome(chapter, time.perf_counter() - start, error.source, "\n".join(error.traceback))
    seconds = time.perf_counter() - start
    static = stage / "_static"
    files = sorted(p.relative_to(static).as_posix() for p in static.rglob("*") if p.is_file())
    notebook.metadata["lorantk"] = {"hash": content_hash, "seconds": round(seconds, 1), "files": files}
    nbformat.write(notebook, notebooks / f"{chapter.name}.ipynb")
    return Outcome(chapter, seconds)


def publish(chapter: Chapter, stage: Path, book: Path) -> None:
    """Move one executed chapter from its stage into `book`: figures and claims first, the notebook last."""
    target = book / "notebooks" / f"{chapter.name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    previous = chapter.recorded().get("files", []) if target == chapter.executed else []
    files = sorted(p.relative_to(stage) for p in (stage / "_static").rglob("*") if p.is_file())
    for path in files:
        (book / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage / path, book / path)
    os.replace(stage / "notebooks" / target.name, target)
    for name in set(previous) - {path.relative_to("_static").as_posix() for path in files}:
        (book / "_static" / name).unlink(missing_ok=True)


def run_chapters(chapters: list[Chapter], overrides: dict[str, dict[str, Any]], book: Path, jobs: int) -> list[Outcome]:
    """Execute `chapters`, `jobs` at a time, publishing each into `book` as it succeeds; return how each ended."""
    outcomes: list[Outcome] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    (book / "_build").mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=book / "_build", prefix="stage-") as stages,
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool,
        Progress(*columns, console=console, disable=not chapters) as progress,
    ):
        task = progress.add_task("chapters", total=len(chapters))
        futures = [pool.submit(execute, c, overrides.get(c.name, {}), Path(stages) / c.name) for c in chapters]
        for future in as_completed(futures):
            outcome = future.result()
            outcomes.append(outcome)
            if not outcome.traceback:
                publish(outcome.chapter, Path(stages) / outcome.chapter.name, book)
            progress.update(task, advance=1, description=outcome.chapter.name)
    return outcomes


def check_numbers(root: Path) -> list[Difference]:
    """What keeps a run from being accepted: numbers that moved, a README out of step, findings without evidence."""
    differences = compare(root / "book" / "_static", root / "tests" / "reference")
    if readme_with_results(root) != (root / "README.md").read_text():
        differences.append(Difference("README.md", "results", "differs from the reference", "equal"))
    missing = missing_findings(root / "book" / "_static" / "findings")
    return differences + [Difference(f"findings/{name}", "", "no chapter computes it", "present") for name in missing]


def render(root: Path) -> bool:
    """Render the book in strict mode unless nothing that goes in changed; return whether Sphinx ran.

    Raises
    ------
    typer.Exit
        If Sphinx warns or fails; the previous html stays.
    """
    build, html = root / "book" / "_build", root / "book" / "_build" / "html"
    fingerprint = _render_hash(root)
    stamp = html / ".fingerprint"
    if stamp.exists() and stamp.read_text() == fingerprint:
        return False
    stage = build / "render"
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", "book", "--config", "_config.yml", "--path-output", stage, "-W"]
    log = build / "render.log"
    with log.open("w") as stream:
        status = subprocess.run(command, cwd=root, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    if status != 0 or not (stage / "_build" / "html" / "index.html").exists():
        shutil.rmtree(stage, ignore_errors=True)  # or the next, incremental run would not repeat the warning
        said = [line for line in log.read_text().splitlines() if re.search("warning|error", line, re.IGNORECASE)]
        console.print("\n".join(said), markup=False, highlight=False)
        console.print(f"the book was not rendered, the previous one stays; the whole log is in {log}")
        raise typer.Exit(1)
    fresh, old = build / "html.new", build / "html.old"
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(stage / "_build" / "html", fresh)
    copy_mathjax(fresh / "_static" / "mathjax")
    (fresh / ".fingerprint").write_text(fingerprint)
    if html.exists():
        html.rename(old)
    fresh.rename(html)
    shutil.rmtree(old, ignore_errors=True)
    return True


def copy_mathjax(target: Path) -> None:
    """Copy the parts of MathJax 3 that a page asks for from the installed wheel: mathematics without a network.

    Not by way of book/_static: Jupyter Book would load every script it finds there on every page.
    """
    import mathjax

    source = Path(mathjax.__file__).parent / "static" / "mathjax" / "es5"
    shutil.copytree(source / "input" / "tex" / "extensions", target / "input" / "tex" / "extensions")
    shutil.copyfile(source / "tex-svg.js", target / "tex-svg.js")


def _render_hash(root: Path) -> str:
    """Hash of all files that Sphinx reads."""
    book = root / "book"
    paths = [p for p in sorted(book.rglob("*")) if p.is_file() and "_build" not in p.relative_to(book).parts]
    digest = hashlib.sha256()
    for path in [
        root / "_config.yml",
        root / "constraints.txt",
        *(path for package in PACKAGES for path in sorted(root.glob(f"{package}/*.py"))),
        *sorted(root.glob("tests/*/*.py")),
        *paths,
    ]:
        if path.suffix not in (".pyc", ".png"):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


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

    With --set the run is a trial: it goes to book/_build/trial and leaves the book alone.
    """
    start = time.perf_counter()
    foreign = foreign_packages(ROOT)
    if foreign:
        console.print(f"other code than this tree's would run: {foreign}", markup=False)
        console.print(f"mend it with: {sys.executable} -m pip install --no-deps -e {ROOT}", markup=False)
        raise typer.Exit(2)
    try:
        chapters = find_chapters(root, only)
        overrides = {c.name: parse_overrides(c, settings or []) for c in chapters}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    book = root / "book"
    build = book / "_build"
    build.mkdir(parents=True, exist_ok=True)
    lock = (build / "lock").open("w")  # held until the command ends, however it ends
    context.call_on_close(lock.close)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        console.print(f"another regeneration is at work on {root}: wait for its end", markup=False)
        raise typer.Exit(2) from None
    for leftover in [*build.glob("stage-*"), *(build / "trial" / "_build").glob("stage-*")]:
        shutil.rmtree(leftover, ignore_errors=True)  # of a run that was killed
    if settings:
        trial = book / "_build" / "trial"
        outcomes = run_chapters(chapters, overrides, trial, jobs)
        console.print(f"trial run: executed notebooks and figures are in {trial}")
    else:
        outcomes = run_chapters([c for c in chapters if not c.is_current()], {}, book, jobs)
    failures = [outcome for outcome in outcomes if outcome.traceback]
    for outcome in failures:
        report_failure(outcome)
    if failures:
        raise typer.Exit(1)
    if settings:
        return
    every = find_chapters(root)
    write_generated_pages(root)
    if update_reference:
        update(book / "_static", root / "tests" / "reference")
        write_atomically(root / "README.md", readme_with_results(root))
        for picture in (root / "docs").glob("*.png"):
            shutil.copyfile(book / "_static" / "figures" / picture.name, picture)
    rendered = False if no_render else render(root)
    report_book(root, every, {o.chapter.name: o.seconds for o in outcomes}, rendered, time.perf_counter() - start)
    if check:
        differences = check_numbers(root)
        if differences:
            report_differences(differences)
            raise typer.Exit(1)
        console.print("every recorded number and verdict agrees with tests/reference")


if __name__ == "__main__":
    typer.run(main)
