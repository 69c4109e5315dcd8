"""Recorded fine-tuning runs as arms that can be compared: one number a seed, and pairs that share a seed.

A run's harm is what the attack changed against the same arm without an attack: accuracy lost to flipped labels, or
triggered inputs won by the backdoor. Statements ``finding-1`` to ``finding-5``; the runs are those of `experiments`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import t

from evidence.effects import LEVEL, Effect, paired_contrast, slope_weights
from evidence.variance import gap_within_seeds
from lorantk.batches import check_choice

OUTCOMES = {"untargeted": ("clean_accuracy", -1.0), "backdoor": ("attack_success", 1.0)}
"""Attack -> the column that it moves, and the sign that makes harm positive."""

UNITS = {"untargeted": "accuracy", "backdoor": "attack success"}
"""Attack -> what its harm is a fraction of."""

ARM = ("method", "rank", "variance", "scaling", "optimizer")
"""Fields that make an arm: within a task, a learning rate is chosen for each."""

POOLED: dict[str, object] = {"rank": np.nan, "variance": "peft", "scaling": "1"}
"""The cell of LoRA over all its ranks."""


def at_rate(runs: pd.DataFrame, rates: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The runs whose learning rate is the one that `rule` gives them.

    Parameters
    ----------
    runs : DataFrame
        Recorded runs of one task, a row each.
    rates : DataFrame
        Selected learning rates of the same task, a row a cell of `ARM`.
    rule : {"selected", "shared", "full"}
        The learning rate selected for the run's own cell; for LoRA over all its ranks (with PEFT's variance and
        s = 1); or for full fine-tuning. "matched" runs take full fine-tuning's under each.
    """
    check_choice("rule", rule, ("selected", "shared", "full"))
    cells = runs[list(ARM)].copy()
    borrowed = (cells.method == "matched") | (rule == "full")
    adapted = (cells.method == "lora") & (rule == "shared")
    cells["method"] = cells.method.mask(borrowed, "full")
    for name, pooled in POOLED.items():
        cells[name] = cells[name].mask(borrowed, np.nan).mask(adapted, pooled)
    wanted = cells.merge(rates[[*ARM, "learning_rate"]], how="left", on=list(ARM)).learning_rate
    return runs[np.isclose(runs.learning_rate, wanted.to_numpy())]


def harms(runs: pd.DataFrame) -> pd.DataFrame:
    """The attacked runs, each beside the run of the same arm, learning rate, budget and seed without an attack.

    Returns
    -------
    DataFrame
        The attacked rows of `runs` with two columns more: ``accuracy_without``, the clean accuracy without the attack,
        and ``harm``, a fraction of 1: the clean accuracy lost ("untargeted") or the attack success won ("backdoor").

    Raises
    ------
    ValueError
        If an attacked run has no such partner.
    """
    keys = [*ARM, "learning_rate", "steps", "batch_size", "seed"]
    columns = [column for column, _ in OUTCOMES.values()]
    clean, attacked = (runs[(runs.attack == "none") == wanted] for wanted in (True, False))
    joined = attacked.merge(clean[keys + columns], how="left", on=keys, suffixes=("", "_without"), indicator=True)
    if (alone := joined._merge != "both").any():
        raise ValueError(f"runs must hold a run without attack for each attacked one; {alone.sum()} lack theirs")
    joined["harm"] = np.nan
    for attack, (column, sign) in OUTCOMES.items():
        change = sign * (joined[column] - joined[f"{column}_without"])
        joined["harm"] = joined.harm.where(joined.attack != attack, change)
    joined = joined.rename(columns={"clean_accuracy_without": "accuracy_without"})
    return joined.drop(columns=["_merge", "attack_success_without"])


def by_seed(runs: pd.DataFrame, column: str = "harm", **settings: object) -> pd.Series:
    """One column of the rows in which each column named in `settings` has that value, indexed by seed.

    Raises
    ------
    ValueError
        If there is no such row, two for one seed, or one that diverged.
    """
    if unknown := {column, "seed", *settings} - set(runs.columns):
        raise ValueError(f"runs must have columns {sorted(unknown)}; got {list(runs.columns)}")
    for name, value in settings.items():
        runs = runs[runs[name] == value]
    if runs.empty or runs.seed.duplicated().any() or runs[column].isna().any():
        raise ValueError(f"settings must name one finite {column} a seed; {settings} names {len(runs)} rows")
    return runs.set_index("seed")[column].sort_index()


def compare(
    arms: Mapping[Any, pd.Series] | Sequence[pd.Series], weights: ArrayLike, name: str, unit: str = ""
) -> Effect:
    """Weighted sum of arms, each an outcome indexed by seed, over the seeds that all of them have.

    Parameters
    ----------
    arms : sequence or mapping of Series
    weights : sequence of float
        One an arm: (1, -1) is a difference, `evidence.effects.slope_weights` a slope.
    name, unit : str
        See `evidence.effects.Effect`.
    """
    series = list(arms.values()) if isinstance(arms, Mapping) else list(arms)
    return paired_contrast(pd.concat(series, axis=1, join="inner"), weights, name, unit)


def times_n(variance: pd.Series) -> pd.Series:
    """k of each variance k/n; PEFT's own draw has k = 1/3, and anything else is NaN."""
    return pd.to_numeric(variance.replace("peft", f"{1 / 3}/n").str.removesuffix("/n"), errors="coerce")


def summary(runs: pd.DataFrame, by: Sequence[str], column: str = "harm") -> pd.DataFrame:
    """Mean of a column over the seeds of each group: the columns in `by`, mean, half, runs, diverged.

    `half` is half the 95 % interval, by t; `diverged` counts the runs without a number. A group that has one has no
    mean: what is left would be a choice of the lucky seeds.
    """
    groups = runs.groupby(list(by), dropna=False, sort=False)[column]
    found = groups.agg(["mean", "sem", "size", "count"]).reset_index().rename(columns={"size": "runs"})
    found["half"] = found["sem"] * t.ppf((1 + LEVEL) / 2, found.runs - 1)
    found["diverged"] = found.runs - found["count"]
    found[["mean", "half"]] = found[["mean", "half"]].where(found.diverged == 0)
    return found[[*by, "mean", "half", "runs", "diverged"]]


def effects_of_findings(attacked: pd.DataFrame, label: str, *, rank: int, tolerance: float) -> dict[str, list[Effect]]:
    """What runs of one task, optimizer and attack say of the five findings; positive is what the finding says.

    Parameters
    ----------
    attacked : DataFrame
        Of `harms`, at one poison rate and budget: "full", and "lora" with s = 1 over ranks (PEFT's variance) and over
        variances (at `rank`).
    label : str
        Put before the name of each effect.
    rank : int
        LoRA's in the comparison with full fine-tuning, and in the sweep over variances.
    tolerance : float
        A rank performs if its mean accuracy without attack is at most this below the best rank's.

    Returns
    -------
    dict of finding id to effects
        finding-1: extra harm of LoRA under "untargeted", spared harm under "backdoor"; finding-2: slope of harm per
        doubling of the rank, down or up; finding-3: largest gap between harms at two variances of A; finding-4
        (backdoor only): harm at the next rank minus harm at the lowest, of those that perform; finding-5: slope of
        harm per factor of 10 of the variance.
    """
    attack = attacked.attack.iloc[0]
    unit, flips = UNITS[attack], attack == "untargeted"
    full, by_rank, by_k = by_seed(attacked, method="full"), harm_by_rank(attacked), harm_by_variance(attacked, rank)
    effects: dict[str, list[Effect]] = {
        "finding-1": [between_methods(full, by_rank[rank], flips, label, unit)],
        "finding-2": [trend_in_rank(by_rank, flips, label, unit)],
        "finding-3": [
            gap_within_seeds(pd.concat(by_k, axis=1, join="inner"), f"{label}: largest gap between values of k", unit)
        ],
        "finding-5": [compare(by_k, slope_weights(np.log10(list(by_k))), f"{label}: harm per tenfold k", unit)],
    }
    if not flips:
        effects["finding-4"] = lowest_rank(attacked, by_rank, tolerance, label, unit)
    return effects


def harm_by_rank(attacked: pd.DataFrame) -> dict[int, pd.Series]:
    """Harm of LoRA with PEFT's variance and s = 1, indexed by seed, at each rank."""
    lora = attacked[(attacked.method == "lora") & (attacked.scaling == "1") & (attacked.variance == "peft")]
    return {int(r): by_seed(lora, rank=r) for r in sorted(lora["rank"].unique())}


def harm_by_variance(attacked: pd.DataFrame, rank: int) -> dict[float, pd.Series]:
    """Harm of LoRA at one rank with s = 1, indexed by seed, at each k of a variance k/n."""
    lora = attacked[(attacked.method == "lora") & (attacked.scaling == "1") & (attacked["rank"] == rank)]
    lora = lora.assign(k=times_n(lora.variance)).dropna(subset="k")
    return {k: by_seed(lora, k=k) for k in sorted(lora.k.unique())}


def between_methods(full: pd.Series, lora: pd.Series, flips: bool, label: str, unit: str) -> Effect:
    """finding-1: under flips LoRA's extra harm, under a backdoor the harm that it is spared."""
    if flips:
        return compare([lora, full], [1, -1], f"{label}: extra harm of LoRA", unit)
    return compare([full, lora], [1, -1], f"{label}: harm that LoRA is spared", unit)


def trend_in_rank(by_rank: Mapping[int, pd.Series], flips: bool, label: str, unit: str) -> Effect:
    """finding-2: how harm changes with each doubling of the rank, down under flips and up under a backdoor."""
    slope = compare(by_rank, slope_weights(np.log2(list(by_rank))), f"{label}: harm per doubling of r", unit)
    return (-slope).renamed(f"{label}: fall of harm per doubling of r") if flips else slope


def lowest_rank(
    attacked: pd.DataFrame, by_rank: Mapping[int, pd.Series], tolerance: float, label: str, unit: str
) -> list[Effect]:
    """finding-4: harm at the next rank minus harm at the lowest, among those that perform; nothing if fewer than two.

    The rest of the ranks would add what every finding on the trend says already.
    """
    peft = attacked[(attacked.method == "lora") & (attacked.scaling == "1") & (attacked.variance == "peft")]
    accuracy = peft.groupby("rank").accuracy_without.mean()
    performing = sorted(int(rank) for rank in accuracy.index[accuracy >= accuracy.max() - tolerance])
    if len(performing) < 2:
        return []
    lowest, following = performing[:2]
    name = f"{label}: r = {following} minus r = {lowest}"
    return [compare([by_rank[following], by_rank[lowest]], [1, -1], name, unit)]


def configurations(attacked: pd.DataFrame, proxies: pd.DataFrame) -> pd.DataFrame:
    """Mean harm of each configuration beside the mean of its proxies, if it has both and none of its runs diverged.

    Parameters
    ----------
    attacked : DataFrame
        Of `harms`; a configuration is what its runs share but for the seed.
    proxies : DataFrame
        A row a run: its id, then one column a proxy. Fewer seeds than in `attacked` will do.

    Returns
    -------
    DataFrame
        attack, the columns in `ARM`, learning_rate, harm, accuracy_without and the columns of `proxies`, a row a
        configuration.
    """
    keys = ["attack", *ARM, "learning_rate"]
    groups = attacked.merge(proxies, how="left", on="id").groupby(keys, dropna=False)
    means = groups[["harm", "accuracy_without", *proxies.columns.drop("id")]].mean()
    whole = groups.harm.count() == groups.size()
    return means[whole].dropna().reset_index()
