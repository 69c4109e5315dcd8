"""Harm of flipped labels where an equal share of them was learned: the grid of memorisation of `protocol.md`.

Statements ``finding-1``, ``finding-2``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from evidence.effects import over_choices, slope_weights

from .arms import WORDS, named_arms
from .data import recorded
from .family import MARGINS
from .identified import RANK
from .runs import UNITS, compare, harms

FLIPS, SHARES, ENOUGH = (0.2, 0.4), (0.25, 0.5, 0.75), 10
"""Poison rates; shares of the flips at which arms are compared; seeds without which there is no effect."""

RATES = {"sgd": (0.05, 0.1, 0.2), "adamw": (0.001, 0.003, 0.01)}
"""Optimizer -> its learning rates."""

CHECKPOINTS = (30, 60, 100, 200, 300, 500, 800, 1200, 2000, 3000)
NETWORK = ["optimizer", "arm", "learning_rate", "poison_rate", "seed"]


def memorising_runs() -> pd.DataFrame:
    """The recorded runs of the grid, of the seeds for which all of them are there."""
    runs = recorded("results/digits-exact")
    mine = runs.method.eq("full") | (runs.method.eq("lora") & runs.variance.eq("peft"))
    rates = pd.concat([runs.optimizer.eq(name) & runs.learning_rate.isin(RATES[name]) for name in RATES], axis=1)
    mine &= rates.any(axis=1) & runs.steps.isin(CHECKPOINTS) & runs.poison_rate.isin((0.0, *FLIPS))
    counts = runs[mine].groupby("seed").size()
    arms = runs[mine][["method", "rank"]].drop_duplicates()
    whole = len(arms) * sum(map(len, RATES.values())) * len(CHECKPOINTS) * (1 + len(FLIPS))
    return runs[mine & runs.seed.isin(counts.index[counts == whole])]


def along(runs: pd.DataFrame) -> pd.DataFrame:
    """Harm and share of the flips learned at each checkpoint of each network.

    Returns
    -------
    DataFrame
        The columns in `NETWORK`, steps, share, harm; empty where it, or for harm its partner, diverged.
    """
    table = named_arms(harms(runs.astype({"rank": "float64"})))
    table = table.rename(columns={"poison_accuracy": "share"})
    return table[[*NETWORK, "steps", "share", "harm"]].sort_values([*NETWORK, "steps"])


def at_share(table: pd.DataFrame, share: float) -> pd.DataFrame:
    """Harm of each network where it has learned this share of the flips, between checkpoints by a line.

    Parameters
    ----------
    table : DataFrame
        As `along` returns it.
    share : float
        In (0, 1].

    Returns
    -------
    DataFrame
        The columns in `NETWORK` and harm; empty for a network that has not come to the share, or diverged before.

    Raises
    ------
    ValueError
        If the share is outside its range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1; got {share}")
    wide = table.set_index([*NETWORK, "steps"])[["share", "harm"]].unstack("steps")  # noqa: PD010, it keeps the empty
    shares, harm = (wide[name].to_numpy() for name in ("share", "harm"))
    reached = shares >= share
    last = reached.argmax(axis=1)
    rows, before = np.arange(len(wide)), np.maximum(last - 1, 0)
    (s0, s1), (h0, h1) = ((values[rows, before], values[rows, last]) for values in (shares, harm))
    rise = np.where(s1 > s0, s1 - s0, 1.0)
    value = np.where(last > 0, h0 + (h1 - h0) * (share - s0) / rise, h1)
    return wide.index.to_frame(index=False).assign(harm=np.where(reached.any(axis=1), value, np.nan))


def curves(table: pd.DataFrame, shares: Sequence[float]) -> pd.DataFrame:
    """Mean harm at each share, by arm, over its learning rates.

    Returns
    -------
    DataFrame
        optimizer, flips, arm, share; mean, lowest, highest: of the means over seeds at each learning rate, of those
        at which `ENOUGH` seeds came to the share; networks: how many did, of all.
    """
    rows = []
    for share in shares:
        found = at_share(table, share)
        for (optimizer, flips, arm), part in found.groupby(["optimizer", "poison_rate", "arm"]):
            by_rate = part.groupby("learning_rate").harm.agg(["mean", "count"])
            means = by_rate["mean"][by_rate["count"] >= ENOUGH]
            rows.append({"optimizer": WORDS[str(optimizer)], "flips": flips, "arm": arm, "share": share,
                         "mean": means.mean(), "lowest": means.min(), "highest": means.max(),
                         "networks": f"{part.harm.notna().sum()} of {len(part)}"})  # fmt: skip
    return pd.DataFrame(rows)


def comparisons(table: pd.DataFrame) -> pd.DataFrame:
    """Effects of method and rank at equal shares, over all combinations of the arms' learning rates.

    Positive is what the finding says: LoRA loses more than full fine-tuning; lower ranks lose more.

    Returns
    -------
    DataFrame
        effect, optimizer, flips, share; lowest, highest: over the combinations; low, high: ends of all their 95 %
        intervals; combinations: how many have `ENOUGH` seeds, of all; says: "above 0", "below 0", "within the margin"
        or "", for all of them.
    """
    doublings = np.log2([1, RANK, 64])
    trend = -np.ptp(doublings) * slope_weights(doublings)
    ranks = [f"LoRA, r = {rank}" for rank in (1, RANK, 64)]
    effects: Mapping[str, tuple[list[str], list[float]]] = {
        f"LoRA r = {RANK} − full": ([ranks[1], "full"], [1.0, -1.0]),
        "rank 1 − rank 64, by trend": (ranks, trend.tolist()),
    }
    rows = []
    for share in SHARES:
        harm = at_share(table, share).dropna().set_index("seed")
        for (optimizer, flips), part in harm.groupby(["optimizer", "poison_rate"]):
            for name, (arms, weights) in effects.items():
                rates = RATES[str(optimizer)]
                chosen = [[part.harm[(part.arm == a) & (part.learning_rate == rate)] for rate in rates] for a in arms]
                used = [(c, w) for c, w in zip(chosen, weights, strict=True) if w]
                every = list(itertools.product(*(c for c, _ in used)))
                kept = [s for s in every if len(pd.concat(s, axis=1, join="inner")) >= ENOUGH]
                row = {"effect": name, "optimizer": WORDS[str(optimizer)], "flips": flips, "share": share}
                if kept:
                    found = over_choices(
                        [compare(s, [w for _, w in used], name, UNITS["untargeted"]) for s in kept], name
                    )
                    row |= {"lowest": found.lowest, "highest": found.highest, "low": found.low, "high": found.high}
                    row["says"] = _said(found.lowest, found.highest, found.low, found.high)
                rows.append(row | {"combinations": f"{len(kept)} of {len(every)}"})
    columns = ["effect", "optimizer", "flips", "share", "lowest", "highest", "low", "high", "combinations", "says"]
    return pd.DataFrame(rows, columns=columns).sort_values(["effect", "optimizer", "flips", "share"], kind="stable")


def _said(lowest: float, highest: float, low: float, high: float) -> str:
    margin = MARGINS["flips"]
    sides = ["above 0"] * (lowest > 0) + ["below 0"] * (highest < 0)
    return ", ".join(sides + ["within the margin"] * (-margin < low and high < margin))
