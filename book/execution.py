"""Execute chapters side by side, each in a process and a stage directory of its own, and publish what is whole."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from chapters import Chapter
from forks import ForkManager, ForkProvisioner, fork_server
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

console = Console(soft_wrap=True)
SURROUNDINGS = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "TQDM_DISABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
}
"""Chapters run side by side, and sums over two threads would round otherwise; a page shows results, not progress; and
memory that is given back (by glibc) costs time when it is taken again."""


@dataclass(frozen=True)
class Outcome:
    """How one execution ended: seconds it took, and the failing cell's source and traceback if it failed."""

    chapter: Chapter
    seconds: float
    cell: str = ""
    traceback: str = ""


def die_with_parent() -> None:
    """End this process at once when the one that started it ends, however it ends; its kernel then ends too."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def begin_worker(server: socket.socket | None) -> None:
    """End with the process that started this one; take kernels from `server` if there is one."""
    die_with_parent()
    ForkProvisioner.server = server


def _log(chapter: Chapter) -> Path:
    """Where the start-up chatter of kernels goes; their errors come back in full."""
    return chapter.root / "book" / "_build" / "kernels.log"


def execute(chapter: Chapter, overrides: dict[str, Any], stage: Path) -> Outcome:
    """Run one chapter with papermill inside `stage`, in a process for chapters only, whose environment it changes."""
    notebooks = stage / "notebooks"
    notebooks.mkdir(parents=True, exist_ok=True)
    parameters = chapter.defaults() | overrides
    kernels_log = _log(chapter).open("ab")
    os.dup2(kernels_log.fileno(), sys.stderr.fileno())
    os.environ.update(SURROUNDINGS)
    os.environ["LORANTK_RESULTS"] = "../_static"
    os.environ["LORANTK_CHAPTER"] = chapter.name
    os.environ["LORANTK_PARAMETERS"] = json.dumps(parameters)
    content_hash = chapter.content_hash(parameters)
    start = time.perf_counter()
    try:
        notebook = papermill.execute_notebook(
            chapter.read(),
            None,
            overrides,
            cwd=notebooks,
            progress_bar=False,
            log_output=False,
            kernel_manager_class=ForkManager,
        )
    except PapermillExecutionError as error:
        return Outcome(chapter, time.perf_counter() - start, error.source, "\n".join(error.traceback))
    except (DeadKernelError, ConnectionError):
        said = "its kernel was killed from outside, as for want of memory: run again, with --jobs 1 if memory is short"
        return Outcome(chapter, time.perf_counter() - start, "", said)
    seconds = time.perf_counter() - start
    static = stage / "_static"
    files = {
        path.relative_to(static).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(static.rglob("*"))
        if path.is_file()
    }
    notebook.metadata["lorantk"] = {"hash": content_hash, "seconds": round(seconds, 1), "files": files}
    nbformat.write(notebook, notebooks / f"{chapter.name}.ipynb")
    return Outcome(chapter, seconds)


def publish(chapter: Chapter, stage: Path, book: Path) -> None:
    """Move one executed chapter from its stage into `book`: figures and claims first, the notebook last.

    A kill in between leaves files that the old notebook's record does not describe: the chapter is executed again.
    """
    target = book / "notebooks" / f"{chapter.name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    previous = chapter.recorded().get("files", {}) if target == chapter.executed else {}
    files = sorted(p.relative_to(stage) for p in (stage / "_static").rglob("*") if p.is_file())
    for path in files:
        (book / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage / path, book / path)
    os.replace(stage / "notebooks" / target.name, target)
    for name in set(previous) - {path.relative_to("_static").as_posix() for path in files}:
        (book / "_static" / name).unlink(missing_ok=True)


def run_chapters(chapters: Sequence[Chapter], book: Path, jobs: int) -> list[Outcome]:
    """Execute `chapters`, `jobs` at a time, publishing each into `book` as it succeeds; return how each ended.

    Raises
    ------
    BrokenProcessPool
        If a worker was killed from outside; what was published stays.
    """
    outcomes: list[Outcome] = []
    (book / "_build").mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=book / "_build", prefix="stage-") as stages,
        closing(_executed(chapters, {}, lambda chapter: Path(stages) / chapter.name, jobs)) as ended,
    ):
        for outcome in ended:
            outcomes.append(outcome)
            if not outcome.traceback:
                publish(outcome.chapter, Path(stages) / outcome.chapter.name, book)
    return outcomes


def run_trials(
    chapters: Sequence[Chapter],
    overrides: Mapping[str, Mapping[str, Any]],
    place: Callable[[Chapter], Path],
    jobs: int,
) -> list[Outcome]:
    """Execute `chapters` with other parameters, each straight into its `place`; return how each ended."""
    return list(_executed(chapters, overrides, place, jobs))


def _executed(
    chapters: Sequence[Chapter],
    overrides: Mapping[str, Mapping[str, Any]],
    place: Callable[[Chapter], Path],
    jobs: int,
) -> Iterator[Outcome]:
    """How each chapter ended, as it ends; `jobs` at a time, in processes that end with this one.

    Where a worker has more than one chapter to run, kernels are forked from one that has the libraries imported.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    context = multiprocessing.get_context("spawn")
    forking = len(chapters) > jobs and sys.platform == "linux"  # elsewhere a fork may not use what was imported
    with (
        fork_server(os.environ | SURROUNDINGS, _log(chapters[0])) if forking else nullcontext() as server,
        ProcessPoolExecutor(jobs, context, begin_worker, (server,)) as pool,
        Progress(*columns, console=console, disable=not chapters) as progress,
    ):
        task = progress.add_task("chapters", total=len(chapters))
        futures = [pool.submit(execute, c, dict(overrides.get(c.name, {})), place(c)) for c in chapters]
        try:
            for future in as_completed(futures):
                outcome = future.result()
                yield outcome
                progress.update(task, advance=1, description=outcome.chapter.name)
        except BaseException:  # also on Ctrl-C or SIGTERM: nothing goes on behind our back
            for process in multiprocessing.active_children():
                process.kill()
            raise
