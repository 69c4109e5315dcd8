"""Learning rates chosen on clean validation data: for each cell the best of one and the same list per optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from evidence.artifacts import write_atomically

from .config import CELL, Run


def check_rates(runs: Sequence[Run]) -> None:
    """Refuse a grid that would not compare like with like.

    Raises
    ------
    ValueError
        If a run is attacked, budgets differ, or a cell lacks one of the pairs of learning rate and seed that others
        with its optimizer have.
    """
    if attacked := [run for run in runs if run.attack != "none"]:
        raise ValueError(f"learning rates must be chosen without an attack; got attack {attacked[0].attack!r}")
    if len(budgets := {(run.steps, run.batch_size) for run in runs}) > 1:
        described = ", ".join(map(str, sorted(budgets)))
        raise ValueError(f"learning rates must be chosen at one budget; got (steps, batch_size) {described}")
    table = pd.DataFrame([vars(run) for run in runs])
    for optimizer, part in table.groupby("optimizer"):
        everything = set(zip(part.learning_rate, part.seed, strict=True))
        for values, cell in part.groupby(list(CELL), dropna=False):
            if missing := everything - set(zip(cell.learning_rate, cell.seed, strict=True)):
                described = ", ".join(f"{name} {value}" for name, value in zip(CELL, values, strict=True))
                raise ValueError(
                    f"each cell must have the same learning rates and seeds for {optimizer!r}; {described} lacks "
                    f"(learning rate, seed) {min(missing)}"
                )


def choose(results: pd.DataFrame) -> pd.DataFrame:
    """The learning rate with the best mean validation accuracy over seeds in each cell; of equals the smallest.

    A run that diverged counts as accuracy 0. LoRA has a cell without a rank too: over all ranks with PEFT's variance
    and s = 1.

    Parameters
    ----------
    results : DataFrame
        Rows of clean runs, as `ResultsTable.read` gives them.

    Returns
    -------
    DataFrame
        The fields in `CELL`, learning_rate, validation_accuracy (mean, 0 to 1), standard_error of that mean, runs
        (their number), and at_edge: whether the list might have been too short, the choice being its first or last.
    """
    default = (results.method == "lora") & (results.variance == "peft") & (results.scaling == "1")
    results = pd.concat([results, results[default].assign(rank=None)]).astype({"rank": "Int64"})
    results = results.fillna({"validation_accuracy": 0.0})
    by_rate = results.groupby([*CELL, "learning_rate"], dropna=False).validation_accuracy
    means = by_rate.agg(["mean", "sem", "size"]).round({"mean": 6, "sem": 6}).reset_index()
    cells = means.groupby(list(CELL), dropna=False)
    low, high = cells.learning_rate.transform("min"), cells.learning_rate.transform("max")
    means["at_edge"] = (means.learning_rate == low) | (means.learning_rate == high)
    ranked = means.sort_values(["mean", "learning_rate"], ascending=[False, True])
    best = ranked.groupby(list(CELL), dropna=False, sort=True).head(1).sort_values(list(CELL), na_position="first")
    names = {"mean": "validation_accuracy", "sem": "standard_error", "size": "runs"}
    return best.rename(columns=names)[[*CELL, "learning_rate", *names.values(), "at_edge"]].reset_index(drop=True)


def write_rates(table: pd.DataFrame, path: Path) -> None:
    """Write the table of `choose` for `config.read_rates`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, table.to_csv(index=False))
