"""What the conclusions from the published numbers hang on: other ways to analyse them, trends in order, confounders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import pandas as pd

from evidence.effects import Effect
from evidence.resampling import parametric_bootstrap, rank_correlation

from .contrasts import method_cells, robustness, slope_cells, summarise
from .published import NEAR_CLEAN, PANELS, RUNS, accuracy_sweeps

Variants = dict[str, tuple[pd.DataFrame, str]]
"""What is changed -> rows of published accuracies, and what of them is compared (a key of `contrasts.COMPARED`)."""


def variants(figures: pd.DataFrame, collapsed: float) -> Variants:
    """The published accuracies with one thing changed at a time; all from means, poison rates taken for independent.

    Parameters
    ----------
    figures : DataFrame
        The table ``published/figures``.
    collapsed : float
        A point is dropped in all its arms if a standard deviation among them exceeds this.
    """
    whole = figures[figures.metric == "accuracy"]
    return {
        "as analysed": (whole, "change"),
        "clean level not taken off": (whole, "poison"),
        "collapsed points dropped": (without_collapsed_points(whole, collapsed), "change"),
        "without CoLA": (whole[whole.task != "CoLA"], "change"),
        "without rank 512": (whole[whole["rank"] != 512], "change"),
        "flips at 30 % alone": (
            whole[(whole.experiment != "untargeted_by_rate") | (whole.poison_rate == 0.3)],
            "change",
        ),
    }


def without_collapsed_points(rows: pd.DataFrame, collapsed: float) -> pd.DataFrame:
    """The rows but for each point of a sweep at which some arm has a standard deviation above `collapsed`.

    A task of which one point of a sweep is left has no trend there and is left out of it.
    """
    by_poison_rate = rows.experiment.str.contains("by_rate")
    point = rows.poison_rate.where(by_poison_rate, rows["rank"] * rows.variance_times_n)
    pointed = rows.assign(point=point)
    widest = pointed.groupby(["experiment", "task", "point"])["std"].transform("max")
    kept = pointed[widest <= collapsed]
    points = kept.groupby(["experiment", "task"]).point.transform("nunique")
    return rows.loc[kept.index[(points > 1) | by_poison_rate[kept.index]]]


def effects_under_variants(variants: Variants) -> pd.DataFrame:
    """Each effect averaged over its tasks, with its interval as text: a row a variant, a column an effect.

    An effect has no average over fewer than two tasks.
    """
    texts = {label: {name: str(e) for name, e in _averages(*variant).items()} for label, variant in variants.items()}
    return pd.DataFrame(texts).sort_index().T


def _averages(rows: pd.DataFrame, arm: str) -> dict[str, Effect | str]:
    """Effects on method, rank and variance averaged over tasks; positive is what the finding says."""
    sweeps = defaultdict(lambda: rows.iloc[:0], accuracy_sweeps(rows))
    base = sweeps[NEAR_CLEAN] if arm == "change" else None
    cells = {
        "LoRA's extra loss, flips": (1, method_cells(sweeps["untargeted_by_rate"], base)),
        "LoRA − FF, backdoor": (-1, method_cells(sweeps["backdoor_by_rate"], base)),
    }
    for attack, name, sign in (("untargeted", "flips", 1), ("backdoor", "backdoor", -1)):
        rank, variance = sweeps[f"{attack}_by_rank"], sweeps[f"{attack}_by_variance"]
        cells[f"per doubling of r, {name}"] = sign, slope_cells(rank, np.log2(rank["rank"]), arm)
        cells[f"per decade of k, {name}"] = -1, slope_cells(variance, np.log10(variance.variance_times_n), arm)
    means = {
        name: (sign, summarise(weighted, "")[-2])
        for name, (sign, weighted) in cells.items()
        if len(set(weighted.task)) > 1
    }
    found = {name: effect if sign > 0 else -effect for name, (sign, effect) in means.items()}
    return {name: found.get(name, "fewer than two tasks are left") for name in cells}


def trends_in_order(sweeps: Mapping[str, pd.DataFrame], rng: np.random.Generator, draws: int) -> pd.DataFrame:
    """Spearman's correlation of the change that poison makes with rank and variance: a row a task, a column a sweep."""
    texts: dict[str, dict[str, str]] = {}
    for column in ("rank", "variance_times_n"):
        for sweep in PANELS[column]:
            for task, change in robustness(sweeps[sweep], column).groupby("task"):
                effect = parametric_bootstrap(
                    rank_correlation(change[column]), change["mean"], change["std"], RUNS, rng, str(task), draws=draws
                )
                texts.setdefault(sweep.replace("_by_", ", "), {})[str(task)] = str(effect)
    return pd.DataFrame(texts).sort_index(axis=1)


def confounders(sweeps: Mapping[str, pd.DataFrame], floors: pd.Series) -> pd.DataFrame:
    """What differed beside the poison, a row a task: clean levels by method, rank and sweep; room above the floor."""
    near = sweeps[NEAR_CLEAN].pivot_table(index="task", columns="method", values="mean")
    flips, backdoor = (
        sweeps[name].query("poison_rate == 0 and rank <= 256").set_index(["task", "rank"])["mean"]
        for name in PANELS["rank"]
    )
    return pd.DataFrame(
        {
            "clean, FF − LoRA": near.FF - near.LoRA,
            "clean gain, rank 4 to 256, flips": flips.xs(256, level="rank") - flips.xs(4, level="rank"),
            "same clean curve, two sweeps: largest difference": (flips - backdoor).abs().groupby("task").max(),
            "lowest triggered accuracy − floor": sweeps["backdoor_by_rate"].groupby("task")["mean"].min() - floors,
        }
    )
