"""What is left of a grid, as jobs for all cores of this machine or for a Dask cluster; results land as jobs finish."""

from __future__ import annotations

import functools
import importlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lorantk.batches import check_choice, check_integer

from .config import TASKS, Run
from .table import ResultsTable

Job = Sequence[Run]
console = Console(soft_wrap=True)


class WorkersLost(RuntimeError):
    """Processes that trained are gone, killed from outside; what to do about it."""

    def __init__(self, who: str) -> None:
        super().__init__(f"{who}; rows in the tables are kept: run the same command again for what is left")


def trainer(task: str) -> Any:
    """The module whose `finetune` and `together` serve this task."""
    check_choice("task", task, TASKS)
    return importlib.import_module(f"{__package__}.{'digits' if task.startswith('digits') else 'text'}")


def execute(job: Job) -> list[dict[str, Any]]:
    """Rows of results of one job, on one core: jobs run side by side.

    Raises
    ------
    RuntimeError
        If the rows are not those of the runs.
    """
    torch.set_num_threads(1)
    rows = trainer(job[0].task).finetune(job)
    if [row["id"] for row in rows] != [run.id for run in job]:
        raise RuntimeError(f"finetune must return a row for each of {[run.id for run in job]}; got {rows}")
    return rows


def left(runs: Sequence[Run], results: Path) -> list[Run]:
    """Runs without a row in the tables of `results`, each once, in their order."""
    finished = {identifier for task in {run.task for run in runs} for identifier in ResultsTable(results, task).ids()}
    return [run for identifier, run in {run.id: run for run in runs}.items() if identifier not in finished]


def jobs(runs: Sequence[Run], size: int) -> list[Job]:
    """Groups of at most `size` runs that can train as one, by seed: what a stopped grid leaves is whole seeds first.

    Runs that differ in their steps alone are one network and stay in one group, even if they are more than `size`.
    """
    check_integer("size", size, 1)
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        groups.setdefault((run.task, *trainer(run.task).together(run)), []).append(run)
    return sorted(itertools.chain(*(_parts(group, size) for group in groups.values())), key=lambda part: part[-1].seed)


def _parts(group: Job, size: int) -> Iterator[Job]:
    networks: dict[Run, list[Run]] = {}
    for run in group:
        networks.setdefault(replace(run, steps=1), []).append(run)
    part: list[Run] = []
    for along in networks.values():
        if part and len(part) + len(along) > size:
            yield part
            part = []
        part += along
    yield part


def sweep(
    runs: Sequence[Run], results: Path, *, processes: int = -1, scheduler: str | None = None, size: int = 20
) -> int:
    """Train what is left of `runs`, append a row for each to the table of its task, and return how many were new.

    Parameters
    ----------
    runs : sequence of Run
    results : Path
        Directory of the tables. Only this process writes there.
    processes : int
        Jobs that run side by side here; -1 for one a core.
    scheduler : str, optional
        Address of a Dask scheduler, tcp://HOST:PORT, whose workers get the jobs instead.
    size : int
        Largest number of runs in a job: what is lost when a machine dies.

    Raises
    ------
    ImportError
        If a scheduler is given and the extra ``distributed`` is not installed.
    WorkersLost
        If processes were killed; rows of finished jobs are in the tables.
    CorruptFile
        If a table is damaged.
    """
    todo = left(runs, results)
    parts = jobs(todo, size)
    finished = on_cluster(parts, scheduler) if scheduler else here(parts, processes)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    new = 0
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not todo) as progress:
        bar = progress.add_task("runs", total=len(todo))
        for rows in finished:
            new += ResultsTable(results, rows[0]["task"]).append(rows)
            progress.advance(bar, len(rows))
    for task in sorted({run.task for run in runs}):
        ResultsTable(results, task).tidy()
    return new


def here(parts: Collection[Job], processes: int) -> Iterator[list[dict[str, Any]]]:
    """Results of each job as it finishes in one of `processes` processes."""
    return side_by_side(execute, parts, processes, "generator_unordered")


def side_by_side(
    function: Callable[[Any], Any], items: Collection[Any], processes: int, order: str = "generator"
) -> Iterator[Any]:
    """The function's value at each item, in `processes` processes that end when this one does; -1 for one a core.

    `order` is joblib's: "generator" for that of the items, "generator_unordered" for that of arrival.

    Raises
    ------
    WorkersLost
        If one of the processes is killed.
    """
    if processes != -1:
        check_integer("processes", processes, 1)
    parallel = Parallel(n_jobs=processes, return_as=order, pre_dispatch="2*n_jobs")
    try:
        yield from parallel(delayed(_with_driver)(os.getpid(), function, item) for item in items)
    except BrokenProcessPool as error:
        raise WorkersLost("a worker was killed, as for want of memory (fewer --jobs need less)") from error


def _with_driver(driver: int, function: Callable[[Any], Any], item: Any) -> Any:
    """The function's value, in a process that ends when its driver does."""
    if os.getpid() != driver:
        _end_with(driver)
    return function(item)


@functools.cache
def _end_with(driver: int) -> None:
    """Watch over the driver, this process's parent, from now on: a killed one cannot say that it is gone."""

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def on_cluster(parts: Collection[Job], address: str) -> Iterator[list[dict[str, Any]]]:
    """Results of each job as it finishes on a worker of a Dask cluster; a dead worker's jobs go to the others.

    Raises
    ------
    ImportError
        Without the extra ``distributed``, or if a worker cannot import this package.
    OSError
        If no scheduler answers at `address`.
    WorkersLost
        If the scheduler is gone, or a job has ended worker after worker.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ModuleNotFoundError as error:
        raise ImportError("--scheduler needs the extra 'distributed': pip install 'lorantk[distributed]'") from error
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # WorkersLost says it in one line
    with Client(address) as client:
        for worker, trouble in client.run(exec, f"import {__package__}", {}, on_error="return").items():
            if trouble is not None:
                raise ImportError(f"worker {worker} must find the package {__package__}, by its PYTHONPATH: {trouble}")
        futures = [client.submit(execute, job, pure=False) for job in parts]
        try:
            for future in as_completed(futures):
                yield future.result()
                future.release()
        except CancelledError as error:
            raise WorkersLost(f"the scheduler at {address} is gone") from error
        except KilledWorker as error:
            raise WorkersLost(f"a job has ended worker after worker, as for want of memory ({error})") from error
