"""The paper's runs under flipped labels, seed by seed: seeds are the units, since each runs through all poison rates.

The means of one sweep at different poison rates therefore move together; taking them for independent makes intervals
too narrow. Statement ``finding-1``.
"""

from __future__ import annotations

import pandas as pd

from .contrasts import method_cells, summarise


def seed_cells(seeds: pd.DataFrame, near_clean: pd.DataFrame) -> pd.DataFrame:
    """Full fine-tuning minus LoRA in one seed, averaged over its poison rates; minus the same in `near_clean`.

    Parameters
    ----------
    seeds : DataFrame
        A row a run: task, method ("FF", "LoRA"), poison_rate, seed, accuracy; every seed at every poison rate.
    near_clean : DataFrame
        The sweep that stands for no poison: means and standard deviations over seeds.

    Returns
    -------
    DataFrame
        Rows for `contrasts.summarise`: of each task one whose std is that of the seeds' differences (n - 1 in the
        denominator), and those of `near_clean`.

    Raises
    ------
    ValueError
        If a seed lacks a poison rate or a method.
    """
    runs = seeds.pivot_table(index=["task", "seed"], columns=["poison_rate", "method"], values="accuracy")
    if runs.isna().to_numpy().any() or set(runs.columns.get_level_values("method")) != {"FF", "LoRA"}:
        raise ValueError("seeds must hold a run of FF and of LoRA for each task, seed and poison rate")
    by_seed = seeds.pivot_table(index=["task", "seed"], columns="method", values="accuracy", aggfunc="mean")
    difference = (by_seed.FF - by_seed.LoRA).groupby("task")
    units = difference.agg(["mean", "std", "size"]).rename(columns={"size": "seeds"})
    clean = method_cells(near_clean)
    return pd.concat([units.assign(weight=1.0).reset_index(), clean.assign(weight=-clean.weight)])


def units_in_words(seeds: pd.DataFrame, sweep: pd.DataFrame, near_clean: pd.DataFrame) -> pd.DataFrame:
    """LoRA's extra loss with its interval as text, a row a scope, by unit: seeds, or points of `sweep`."""
    cells = {"seeds are the units": seed_cells(seeds, near_clean), "points are": method_cells(sweep, near_clean)}
    return pd.DataFrame({how: {e.name: str(e) for e in summarise(rows, "average")} for how, rows in cells.items()})


def points(seeds: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (n - 1) over seeds at each point of the sweep, as `published/figures` gives them."""
    by_point = seeds.groupby(["task", "method", "poison_rate"]).accuracy
    return by_point.agg(["mean", "std", "size"]).rename(columns={"size": "seeds"}).reset_index()
