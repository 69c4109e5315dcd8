"""Whether a number known before training tells how an attack will fare: proxies against harm, and step against rank.

A configuration is what runs share but for the seed; its proxies are those of `proxies.proxies`. The paper's reading
predicts signs: more information, less harm from flipped labels and more from a backdoor. Which proxies are said to add
anything is fixed in `protocol.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from evidence.decisions import benjamini_hochberg
from evidence.effects import Effect, paired_contrast
from evidence.resampling import partial_spearman, spearman

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
    "of the run": {
        "kernel_drift": "kernel drift",
        "size of rank": "rank",
        "accuracy_without": "clean accuracy",
        "trace × rate": "trace × rate",
    },
}
"""Kind of proxy -> column of `predicted_and_measured` -> its recorded name."""

CLOUD_FIELDS = ["attack", "optimizer", "method", "rank", "variance", "scaling", "learning_rate", "harm",
                "information_bits", "cosine_noise"]  # fmt: skip
"""Columns of `predicted_and_measured` that are recorded beside the clouds."""

AT_ONE_LEARNING_RATE = ("fisher_trace", "information_bits", "cosine_noise", "size of rank")
"""Proxies that are compared at one learning rate too."""

NULL = ("size of rank", "accuracy_without")
BEFORE = ("size of rank", "learning_rate")
"""Proxies that need no theory, to which any other has to add something; and two that are known before training."""

NULLS = {"nothing": (), "rank and clean accuracy": NULL, "rank and learning rate": BEFORE,
         "all three": (*NULL, "learning_rate")}  # fmt: skip
"""What is held or known beside a proxy, in words."""

FULL_RANK = {"full": 256.0, "matched": 256.0, "head": 0.0}
"""Rank of the change of a hidden layer under methods without a rank."""

Correlations = dict[tuple[str, str], list[Effect]]
"""(optimizer, attack) -> one correlation a proxy, in the order of `GROUPS`."""


def of_kernel(proxies: pd.DataFrame, own: bool = True) -> pd.DataFrame:
    """The recorded proxies, a column each: of the kernel of the optimizer's own step, Adam's under AdamW, or not."""
    of_adam = [f"adam_{name}" for name in _theory()]
    values = {name: proxies[adam].fillna(proxies[name]) for name, adam in zip(_theory(), of_adam, strict=True) if own}
    return proxies.drop(columns=of_adam).assign(**values)


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


def beside_plain(own: pd.DataFrame, plain: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation with harm under AdamW, a row a proxy: of Adam's kernel and of the plain one, by attack.

    Parameters
    ----------
    own, plain : DataFrame
        Of `predicted_and_measured`, with the proxies of `of_kernel` for either kernel.
    """
    named = {**_theory(), "trace × rate": "trace × learning rate"}
    found: dict[str, list[float]] = {}
    for attack, word in (("untargeted", "flips"), ("backdoor", "backdoor")):
        for kernel, table in (("Adam's kernel", own), ("plain kernel", plain)):
            rows = table[(table.optimizer == "adamw") & (table.attack == attack)]
            found[f"{word}, {kernel}"] = [rows[column].corr(rows.harm, method="spearman") for column in named]
    return pd.DataFrame({"proxy": [*named.values()], **found})


def partial_correlations(table: pd.DataFrame, rng: np.random.Generator, held: Sequence[str] = NULL) -> Correlations:
    """What each proxy of the theory says of harm beyond the columns `held`: partial Spearman correlations."""
    return {
        (str(optimizer), str(attack)): [
            partial_spearman(rows[column], rows.harm, rows[list(held)].to_numpy().T, rng, name)
            for column, name in _theory().items()
        ]
        for (optimizer, attack), rows in table.groupby(["optimizer", "attack"])
    }


def added_on_held_out(table: pd.DataFrame, known: Sequence[str] = NULL) -> pd.DataFrame:
    """How much better each proxy makes the prediction of a configuration that was left out.

    Harm is regressed on the ranks of the columns `known`, and on those and one proxy more, over all others.

    Returns
    -------
    DataFrame
        optimizer, attack, proxy; error_null and error, mean absolute errors without it and with it; gain, their
        difference, with low and high over configurations; adds: whether the gain is above 0, by one-sided tests after
        Benjamini and Hochberg's correction over the rows.
    """
    found, gains = [], []
    for (optimizer, attack), rows in table.groupby(["optimizer", "attack"]):
        without = _left_out_errors(rows, known)
        for column, name in _theory().items():
            errors = _left_out_errors(rows, [*known, column])
            gain = paired_contrast(np.column_stack([without, errors]), [1, -1], name)
            gains.append(gain)
            found.append({"optimizer": optimizer, "attack": attack, "proxy": name, "error_null": without.mean(),
                          "error": errors.mean(), "gain": gain.value, "low": gain.low, "high": gain.high})  # fmt: skip
    return pd.DataFrame(found).assign(adds=benjamini_hochberg([gain.p_above() for gain in gains]))


def bits_by_held(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Correlation of the information bits with harm, by what is held: a row an optimizer and attack, as text."""
    rows = []
    for (optimizer, attack), part in table.groupby(["optimizer", "attack"]):
        row = {"optimizer": WORDS[str(optimizer)], "attack": WORDS[str(attack)]}
        for name, held in NULLS.items():
            controls = part[list(held)].to_numpy().T
            effect = (
                partial_spearman(part.information_bits, part.harm, controls, rng, name)
                if held
                else spearman(part.information_bits, part.harm, rng, name)
            )
            row[f"{name} held"] = f"{effect.value:.2f} ({effect.low:.2f} to {effect.high:.2f})"
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["attack", "optimizer"])


def null_errors(table: pd.DataFrame) -> pd.DataFrame:
    """Mean absolute error on a configuration left out, by what needs no theory: a row an optimizer and attack."""
    known = {"the mean alone": (), **{name: columns for name, columns in NULLS.items() if columns}}
    return pd.DataFrame([
        {"optimizer": WORDS[str(optimizer)], "attack": WORDS[str(attack)],
         **{name: _left_out_errors(part, columns).mean() for name, columns in known.items()}}
        for (optimizer, attack), part in table.groupby(["optimizer", "attack"])
    ]).sort_values(["attack", "optimizer"])  # fmt: skip


def most_added(added: pd.DataFrame) -> pd.DataFrame:
    """The proxy that adds most to the prediction, for each optimizer and attack, and how many add anything."""
    best = added.sort_values("gain", ascending=False).groupby(["optimizer", "attack"]).head(1).drop(columns="adds")
    counts = added[added.adds].groupby(["optimizer", "attack"]).size().rename("that add")
    best = best.join(counts, on=["optimizer", "attack"]).fillna({"that add": 0}).astype({"that add": int})
    return best.sort_values(["attack", "optimizer"]).replace({"optimizer": WORDS, "attack": WORDS})


def _theory() -> dict[str, str]:
    """Proxies that the theory proposes -> their names: all but those of the run."""
    return {c: name for kind, group in GROUPS.items() if kind != "of the run" for c, name in group.items()}


def _left_out_errors(rows: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Absolute errors (n,) of least squares on the ranks of the columns, each row predicted from all others."""
    ranks = rows[list(columns)].rank().to_numpy()
    design = np.column_stack([np.ones(len(rows)), ranks])
    hat = design @ np.linalg.pinv(design)
    harm = rows.harm.to_numpy()
    return np.abs((harm - hat @ harm) / (1 - np.diag(hat)))


def correlation_table(correlations: Correlations) -> pd.DataFrame:
    """The correlations as rows: optimizer, attack, kind, proxy, correlation, low, high, configurations."""
    kinds = {name: kind for kind, group in GROUPS.items() for name in group.values()}
    return pd.DataFrame(
        {"optimizer": optimizer, "attack": attack, "kind": kinds[e.name], "proxy": e.name, "correlation": e.value,
         "low": e.low, "high": e.high, "configurations": e.n}
        for (optimizer, attack), found in correlations.items()
        for e in found
    )  # fmt: skip


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
