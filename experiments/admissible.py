"""Learning rates that clean validation data cannot tell from the best one, and effects over all of them.

The rules are those of `protocol.md`: they were written before the runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pandas as pd

from evidence.effects import EffectRange, over_choices
from lorantk.batches import check_integer

from .runs import ARM, compare

Choices = Mapping[float, pd.Series]
"""An outcome of one arm by seed, at each of its admissible learning rates, the best one first."""


def guessed(runs: pd.DataFrame, classes: int) -> pd.DataFrame:
    """The runs, those that diverged with the accuracy and the attack success of a guess."""
    check_integer("classes", classes, 2)
    outcomes = ["clean_accuracy", "triggered_accuracy", "attack_success"]
    filled = runs.copy()
    filled[outcomes] = filled[outcomes].mask(filled.diverged == 1, 1 / classes)
    return filled


def validation(runs: pd.DataFrame, within: float = 1.0) -> pd.DataFrame:
    """How each arm and learning rate does on clean validation data.

    Parameters
    ----------
    runs : DataFrame
        Recorded runs of one task and budget; those without an attack count, a diverged one with accuracy 0.
    within : float
        How many standard errors below the best mean a rate is still admissible.

    Returns
    -------
    DataFrame
        The columns in `ARM`, learning_rate, mean and standard_error over seeds, runs, diverged; best: whether it is
        the arm's best mean, of equals the smallest rate; admissible: whether the mean is `within` standard errors of
        the best (its own); at_edge: whether it is the smallest or largest rate of its arm.
    """
    clean = runs[runs.attack == "none"].fillna({"validation_accuracy": 0.0})
    by_rate = clean.groupby([*ARM, "learning_rate"], dropna=False)
    table = by_rate.validation_accuracy.agg(["mean", "sem", "size"]).assign(diverged=by_rate.diverged.sum())
    table = table.round({"mean": 6}).rename(columns={"sem": "standard_error", "size": "runs"}).reset_index()
    ranked = table.sort_values(["mean", "learning_rate"], ascending=[False, True])
    best = ranked.groupby(list(ARM), dropna=False).head(1)
    table["best"] = table.index.isin(best.index)
    best = best.assign(least=best["mean"] - within * best.standard_error)[[*ARM, "least"]]
    least = table[list(ARM)].merge(best, how="left", on=list(ARM)).least.to_numpy()
    table["admissible"] = table["mean"] >= least - 1e-12
    rates = table.groupby(list(ARM), dropna=False).learning_rate
    ends = rates.transform("min"), rates.transform("max")
    table["at_edge"] = (table.learning_rate == ends[0]) | (table.learning_rate == ends[1])
    return table


def performing(table: pd.DataFrame) -> list[int]:
    """Ranks, from the lowest, whose best mean is within one standard error of the best rank's (its own).

    Parameters
    ----------
    table : DataFrame
        Rows of `validation` for LoRA with one optimizer, variance and scaling.
    """
    best = table[table.best]
    top = best.sort_values("mean", ascending=False, kind="stable").iloc[0]
    return sorted(int(rank) for rank in best[best["mean"] >= top["mean"] - top.standard_error - 1e-12]["rank"])


def choices(rows: pd.DataFrame, table: pd.DataFrame, column: str = "harm") -> dict[float, pd.Series]:
    """One column of the rows of one arm, indexed by seed, at each admissible learning rate, the best first.

    Parameters
    ----------
    rows : DataFrame
        Runs of one arm, attack, poison rate and budget.
    table : DataFrame
        Rows of `validation` for the same arm.
    """
    rates = table[table.admissible].sort_values("best", ascending=False, kind="stable").learning_rate
    return {rate: rows[rows.learning_rate == rate].set_index("seed")[column].sort_index() for rate in rates}


def over_rates(arms: Sequence[Choices], weights: Sequence[float], name: str, unit: str) -> EffectRange:
    """Weighted sum of arms, paired by seed, over every combination of their admissible learning rates.

    An arm of weight 0 is left out. The preferred combination is that of the best rates.
    """
    if len(arms) != len(weights):
        raise ValueError(f"weights must match the {len(arms)} arms; got {len(weights)}")
    used = [(arm, weight) for arm, weight in zip(arms, weights, strict=True) if weight]
    combinations = itertools.product(*(arm.values() for arm, _ in used))
    kept = [weight for _, weight in used]
    return over_choices([compare(parts, kept, name, unit) for parts in combinations], name)
