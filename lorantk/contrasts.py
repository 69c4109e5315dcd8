"""Weights that turn a published table of means into the difference that a finding speaks of.

Each function takes rows of such a table, one a group of runs, with columns task, method, poison_rate, mean, std and
seeds, and returns the rows that enter with a column `weight`. Per task, the sum of weight times mean is the effect; no
rows are shared between tasks. `summarise` takes it from there.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from .effects import Effect, contrast, over_tasks


def between_methods(sweep: pd.DataFrame, near_clean: pd.DataFrame | None = None) -> pd.DataFrame:
    """Full fine-tuning minus LoRA, averaged over poison rates; minus the same in `near_clean`, if given.

    Only pairs count: a poison rate at which one method is absent is left out.
    """
    parts = []
    for table, sign in ((sweep, 1.0), (near_clean, -1.0)):
        if table is not None:
            pairs = table[table.groupby(["task", "poison_rate"]).method.transform("nunique") == 2]
            rates = pairs.groupby("task").poison_rate.transform("nunique")
            parts.append(pairs.assign(weight=sign * pairs.method.map({"FF": 1.0, "LoRA": -1.0}) / rates))
    return pd.concat(parts)


def along(sweep: pd.DataFrame, x: pd.Series, *, corrected: bool = True) -> pd.DataFrame:
    """Slope on x of accuracy under poison; minus the slope without poison, if `corrected`."""
    arms = [sweep.task, sweep.poison_rate > 0]
    centred = x - x.groupby(arms).transform("mean")
    slope = centred / centred.pow(2).groupby(arms).transform("sum")
    return sweep.assign(weight=slope * _arm(sweep, corrected))


def against_rest(sweep: pd.DataFrame, chosen: pd.Series, *, corrected: bool = True) -> pd.DataFrame:
    """Accuracy under poison where `chosen` is true minus the mean elsewhere; minus the same without poison."""
    arms = [sweep.task, sweep.poison_rate > 0, chosen]
    share = chosen.map({True: 1.0, False: -1.0}) / chosen.groupby(arms).transform("size")
    return sweep.assign(weight=share * _arm(sweep, corrected))


def robustness(sweep: pd.DataFrame, column: str) -> pd.DataFrame:
    """Accuracy under poison minus accuracy without, at each value of `column`: rows with task, mean, std and seeds."""
    poisoned, clean = (
        sweep[chosen].set_index(["task", column])[["mean", "std", "seeds"]]
        for chosen in (sweep.poison_rate > 0, sweep.poison_rate == 0)
    )
    change = pd.DataFrame(
        {"mean": poisoned["mean"] - clean["mean"], "std": np.hypot(poisoned["std"], clean["std"]), "seeds": clean.seeds}
    )
    return change.reset_index()


def average_task(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The average over tasks at each value of `column`, tasks being independent."""
    by_value = table.groupby(column)
    return pd.DataFrame(
        {
            "mean": by_value["mean"].mean(),
            "std": by_value["std"].agg(lambda std: np.sqrt((std**2).sum()) / len(std)),
            "seeds": by_value.seeds.first(),
        }
    ).reset_index()


def groups(table: pd.DataFrame) -> list[tuple[float, float, int]]:
    """Rows as (mean, std, n)."""
    return list(zip(table["mean"], table["std"], table.seeds, strict=True))


def summarise(cells: pd.DataFrame, name: str, unit: str = "accuracy") -> list[Effect]:
    """The effect on each task, on these tasks together, and on tasks in general.

    "These tasks" is their plain average: its error comes from the seeds alone. "Tasks in general" is the
    random-effects summary, which takes the tasks for a sample of all tasks.
    """
    each = [contrast(groups(rows), rows.weight.tolist(), str(task), unit) for task, rows in cells.groupby("task")]
    these = contrast(groups(cells), (cells.weight / len(each)).tolist(), f"{name}, these {len(each)} tasks", unit)
    return [*each, these, over_tasks(each, f"{name}, tasks in general")]


def _arm(sweep: pd.DataFrame, corrected: bool) -> np.ndarray:
    """1 for rows with poison; for rows without it -1, or 0 where the clean level is not corrected for."""
    return np.where(sweep.poison_rate > 0, 1.0, -1.0 if corrected else 0.0)
