"""How much more poison LoRA takes than full fine-tuning until a backdoor has done a given part of its work.

A curve is triggered accuracy against the poison rate, for both methods on one task. It falls from the clean level to a
floor, the share of the target class. Two routes lead to the ratio of the poison rates: monotone curves read at one
level, and, as in a bioassay, two logistic curves of one slope. Statement ``finding-1``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from evidence.effects import Effect, random_effects
from evidence.resampling import parametric_bootstrap, poison_rate_at

from .published import RUNS


def curves_by_task(sweep: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each task's curve: a row a method (FF, then LoRA), columns (mean or std, poison rate)."""
    return {
        str(task): rows.pivot_table(index="method", columns="poison_rate", values=["mean", "std"])
        for task, rows in sweep.groupby("task")
    }


def levels(clean: pd.Series, floors: pd.Series, part_left: float) -> pd.Series:
    """Accuracy at which `part_left` of the way from the floor to the clean level is left, a value a task."""
    return floors + part_left * (clean - floors)


def tasks_reached(curves: Mapping[str, pd.DataFrame], target: pd.Series) -> list[str]:
    """Tasks on which both methods fall below the task's value of `target`."""
    return [task for task, curve in curves.items() if (curve["mean"].to_numpy().min(axis=1) < target[task]).all()]


def extra_doublings(curve: pd.DataFrame, target: float, rng: np.random.Generator, name: str, draws: int) -> Effect:
    """log2 of the poison rate that LoRA takes down to `target` over that of full fine-tuning, by parametric bootstrap.

    Parameters
    ----------
    curve : DataFrame
        Of `curves_by_task`.
    target : float
        Accuracy, between the lowest and the highest of both methods.
    rng, name, draws
        See `evidence.resampling.parametric_bootstrap`.
    """
    poison_rates = curve["mean"].columns.to_numpy()
    return parametric_bootstrap(
        lambda means: np.log2(
            poison_rate_at(poison_rates, means[:, 1], target) / poison_rate_at(poison_rates, means[:, 0], target)
        ),
        curve["mean"], curve["std"], RUNS, rng, name, "doublings", draws,
    )  # fmt: skip


def logistic_doublings(curve: pd.DataFrame, clean: float, floor: float) -> float:
    """The same log2 of a ratio: distance of two logistic curves in log2 of the poison rate that share their slope.

    They are fitted to the part of the way from `floor` to `clean` that is left, cut to 0..1.
    """
    import statsmodels.api as sm

    doses = np.log2(curve["mean"].columns.to_numpy())
    left = ((curve["mean"] - floor) / (clean - floor)).clip(0, 1).to_numpy().ravel()
    design = np.column_stack([np.ones(left.size), np.tile(doses, 2), np.repeat([0, 1], doses.size)])
    _, slope, shift = sm.GLM(left, design, family=sm.families.Binomial()).fit().params
    return float(-shift / slope)


def ratios_by_task(
    curves: Mapping[str, pd.DataFrame],
    clean: pd.Series,
    floors: pd.Series,
    target: pd.Series,
    rng: np.random.Generator,
    draws: int,
) -> pd.DataFrame:
    """How many times the poison LoRA takes on each task that reaches `target`, and over them, by both routes as text.

    Over tasks, the first route takes the random-effects summary, the second the mean of the logarithms.
    """
    tasks = tasks_reached(curves, target)
    shifts = [extra_doublings(curves[task], target[task], rng, task, draws) for task in tasks]
    logistic = [logistic_doublings(curves[task], clean[task], floors[task]) for task in tasks]
    shifts.append(random_effects(shifts, f"{len(tasks)} tasks"))
    logistic.append(float(np.mean(logistic)))
    return _as_ratios(shifts, logistic)


def _as_ratios(shifts: Sequence[Effect], logistic: Sequence[float]) -> pd.DataFrame:
    rows = {
        e.name: {
            "LoRA takes, times as much": f"{2**e.value:.2f} ({2**e.low:.2f} to {2**e.high:.2f})",
            "by logistic curves": f"{2**other:.2f}",
        }
        for e, other in zip(shifts, logistic, strict=True)
    }
    return pd.DataFrame(rows).T


def crossings(curves: Mapping[str, pd.DataFrame], floors: pd.Series, target: pd.Series) -> pd.DataFrame:
    """Where each method's curve crosses the task's value of `target`.

    Returns
    -------
    DataFrame
        task, method, level (the target), floor, and rate: the poison rate, NaN on a task that does not reach the level.
    """
    reached, rows = tasks_reached(curves, target), []
    for task, curve in curves.items():
        for method, mean in curve["mean"].iterrows():
            read = poison_rate_at(mean.index, mean.to_numpy()[None], target[task])[0] if task in reached else np.nan
            rows.append({"task": task, "method": method, "level": target[task], "floor": floors[task], "rate": read})
    return pd.DataFrame(rows)
