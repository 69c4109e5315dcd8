"""Whether a number known before training tells how an attack will fare: proxies against harm, and step against rank.

A configuration is what runs share but for the seed; its proxies are those of `proxies.proxies`. The paper's reading
predicts signs: more information, less harm from flipped labels and more from a backdoor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from evidence.effects import Effect
from evidence.resampling import spearman

from .arms import KINDS, WORDS, PoisonRates, at_poison_rates
from .runs import at_rate, by_seed, compare, configurations, harms

GROUPS = {
    "scale-carrying": {
        "fisher_trace": "Fisher trace",
        "information_bits": "information bits",
        "regularised_bits": "bits, regularised",
        "entropy_unnormalised": "entropy, unnormalised",
        "alignment": "alignment",
    },
    "scale-free": {
        "entropy_normalised": "entropy, normalised",
        "cosine": "cosine",
        "cosine_noise": "noise of the cosine",
    },
    "of the run": {"kernel_drift": "kernel drift", "size of rank": "rank", "trace × rate": "trace × rate"},
}
"""Kind of proxy -> column of `predicted_and_measured` -> its recorded name."""

CLOUD_FIELDS = ["attack", "optimizer", "method", "rank", "variance", "scaling", "learning_rate", "harm",
                "information_bits", "cosine_noise"]  # fmt: skip
"""Columns of `predicted_and_measured` that are recorded beside the clouds."""

AT_ONE_LEARNING_RATE = ("fisher_trace", "information_bits", "cosine_noise", "size of rank")
"""Proxies that are compared at one learning rate too."""

FULL_RANK = {"full": 256.0, "matched": 256.0, "head": 0.0}
"""Rank of the change of a hidden layer under methods without a rank."""

Correlations = dict[tuple[str, str], list[Effect]]
"""(optimizer, attack) -> one correlation a proxy, in the order of `GROUPS`."""


def predicted_and_measured(
    runs: pd.DataFrame, proxies: pd.DataFrame, poison_rates: PoisonRates, steps: int
) -> pd.DataFrame:
    """`runs.configurations` at the given poison rates and steps, with "size of rank" and "trace × rate" (learning)."""
    attacked = at_poison_rates(harms(runs[runs.steps == steps]), poison_rates)
    table = configurations(attacked, proxies)
    table["size of rank"] = table["rank"].where(table.method == "lora", table.method.map(FULL_RANK))
    table["trace × rate"] = table.fisher_trace * table.learning_rate
    return table


def proxy_correlations(table: pd.DataFrame, rng: np.random.Generator) -> Correlations:
    """Spearman's correlation of each proxy with harm, over the configurations of an optimizer and attack."""
    named = {column: name for group in GROUPS.values() for column, name in group.items()}
    return {
        (str(optimizer), str(attack)): [spearman(rows[column], rows.harm, rng, named[column]) for column in named]
        for (optimizer, attack), rows in table.groupby(["optimizer", "attack"])
    }


def correlation_table(correlations: Correlations) -> pd.DataFrame:
    """The correlations as rows: optimizer, attack, kind, proxy, correlation, low, high, configurations."""
    kinds = [kind for kind, group in GROUPS.items() for _ in group]
    return pd.DataFrame(
        {"optimizer": optimizer, "attack": attack, "kind": kind, "proxy": e.name, "correlation": e.value, "low": e.low,
         "high": e.high, "configurations": e.n}
        for (optimizer, attack), found in correlations.items()
        for kind, e in zip(kinds, found, strict=True)
    )  # fmt: skip


def best_proxy_of_each_kind(rows: pd.DataFrame) -> pd.DataFrame:
    """The proxy with the largest correlation of each kind, whatever its sign, beside that of the rank alone.

    Parameters
    ----------
    rows : DataFrame
        Of `correlation_table`.
    """
    groups = ["optimizer", "attack"]
    rows = rows.assign(size=rows.correlation.abs())
    rank = rows[rows.proxy == "rank"].set_index(groups)["size"].rename("rank alone")
    known = rows[rows.kind != "of the run"].sort_values("size", ascending=False)
    best = known.groupby([*groups, "kind"]).head(1).join(rank, on=groups).sort_values([*groups, "kind"])
    best["better"] = best["size"] > best["rank alone"]
    return best[[*groups, "kind", "proxy", "correlation", "low", "high", "rank alone", "better"]]


def correlations_at_one_learning_rate(
    table: pd.DataFrame, rates: pd.DataFrame, rng: np.random.Generator
) -> pd.DataFrame:
    """The correlations of `AT_ONE_LEARNING_RATE` with harm over configurations at the learning rate of their method."""
    return pd.DataFrame(
        {"optimizer": WORDS[str(optimizer)], "attack": WORDS[str(attack)], "proxy": e.name.replace("_", " "),
         "correlation": e.value, "low": e.low, "high": e.high, "configurations": e.n}
        for (optimizer, attack), rows in at_rate(table, rates, "shared").groupby(["optimizer", "attack"])
        for e in (spearman(rows[column], rows.harm, rng, column) for column in AT_ONE_LEARNING_RATE)
    )  # fmt: skip


def step_and_rank(at_full: pd.DataFrame, poison_rates: PoisonRates, steps: int) -> list[Effect]:
    """What LoRA spares under SGD in two parts: full minus matched, the step; and matched minus LoRA, low rank.

    Parameters
    ----------
    at_full : DataFrame
        Harms at full fine-tuning's learning rate.
    """
    parts = []
    for attack, poison_rate in poison_rates.items():
        setting = {"attack": attack, "poison_rate": poison_rate, "optimizer": "sgd", "steps": steps}
        full = by_seed(at_full, "harm", method="full", **setting)
        for rank in (1, 8, 64):
            matched, lora = (
                by_seed(at_full, "harm", rank=rank, **KINDS[kind], **setting) for kind in ("matched", "LoRA")
            )
            label = f"{WORDS[attack]}, r = {rank}"
            parts.append(compare([full, matched], [1, -1], f"{label}: step size", "step"))
            parts.append(compare([matched, lora], [1, -1], f"{label}: low rank", "rank"))
    return parts


def parts_table(parts: Sequence[Effect]) -> pd.DataFrame:
    """Effects of `step_and_rank` as rows: part, spared, low, high."""
    return pd.DataFrame({"part": e.name, "spared": e.value, "low": e.low, "high": e.high} for e in parts)
