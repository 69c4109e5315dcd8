"""Weights that turn a published table of means into the difference that a finding is about.

Each function takes rows of such a table, one a group of runs, with columns task, method, poison_rate, mean, std and
seeds, and returns the rows that enter with a column `weight`. Per task, the sum of weight times mean is the effect; no
rows are shared between tasks. `summarise` takes it from there.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from evidence.effects import Effect, contrast, random_effects, slope_weights
from lorantk.batches import check_choice

COMPARED = {"change": (1.0, -1.0), "poison": (1.0, 0.0), "clean": (0.0, 1.0)}
"""What is compared: the change that poison makes, or one arm alone; weights of the rows with poison and without."""


def method_cells(sweep: pd.DataFrame, near_clean: pd.DataFrame | None = None) -> pd.DataFrame:
    """Full fine-tuning minus LoRA, averaged over poison rates; minus the same in `near_clean`, if given.

    Only pairs count: a poison rate at which one method is absent is left out.
    """
    parts = []
    for table, sign in ((sweep, 1.0), (near_clean, -1.0)):
        if table is not None:
            pairs = table[table.groupby(["task", "poison_rate"]).method.transform("nunique") == 2]
            points = pairs.groupby("task").poison_rate.transform("nunique")
            parts.append(pairs.assign(weight=sign * pairs.method.map({"FF": 1.0, "LoRA": -1.0}) / points))
    return pd.concat(parts)


def slope_cells(sweep: pd.DataFrame, x: pd.Series, arm: str = "change") -> pd.DataFrame:
    """Least-squares slope on x, one value a row, of what `arm` names in `COMPARED`."""
    slope = x.groupby([sweep.task, sweep.poison_rate > 0]).transform(slope_weights)
    return sweep.assign(weight=slope * _arm(sweep, arm))


def trend_cells(sweep: pd.DataFrame, x: pd.Series) -> pd.DataFrame:
    """`slope_cells` of the change that poison makes, times the range of x: the trend over all of it."""
    cells = slope_cells(sweep, x)
    return cells.assign(weight=cells.weight * (x.max() - x.min()))


def rest_cells(sweep: pd.DataFrame, chosen: pd.Series, arm: str = "change") -> pd.DataFrame:
    """Mean where `chosen` is true minus the mean elsewhere, of what `arm` names in `COMPARED`."""
    arms = [sweep.task, sweep.poison_rate > 0, chosen]
    share = chosen.map({True: 1.0, False: -1.0}) / chosen.groupby(arms).transform("size")
    return sweep.assign(weight=share * _arm(sweep, arm))


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
    return [*each, these, random_effects(each, f"{name}, tasks in general")]


def _arm(sweep: pd.DataFrame, arm: str) -> np.ndarray:
    check_choice("arm", arm, COMPARED)
    poisoned, clean = COMPARED[arm]
    return np.where(sweep.poison_rate > 0, poisoned, clean)
