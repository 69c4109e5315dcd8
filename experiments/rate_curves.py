"""Our runs over learning rates and doses, averaged over seeds: harm at each rate, success at each dose, frontiers.

Rows are recorded runs of one task and budget, as `identified.findings_of_grid` takes them. Statements ``finding-1``,
``finding-2``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from evidence.effects import LEVEL
from evidence.resampling import poison_rate_at
from lorantk.batches import check_integer

from .admissible import guessed, validation
from .arms import ARMS, ATTACKS, WORDS, PoisonRates, named_arms
from .identified import DIGITS, Grid
from .runs import ARM, harms, summary

KEYS = [*ARM, "learning_rate"]
CURVE = ["attack", "optimizer", "arm", "learning_rate", "admissible"]


def attacked_runs(runs: pd.DataFrame, grid: Grid = DIGITS) -> pd.DataFrame:
    """The attacked runs with harm, arm, and whether their learning rate is admissible ("admissible") or "best"."""
    runs = runs.astype({"rank": "float64"})
    table = validation(runs)[[*KEYS, "admissible", "best"]]
    return named_arms(harms(guessed(runs, grid.classes)).merge(table, how="left", on=KEYS))


def validation_over_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy of the runs without an attack, in the columns of `harm_over_rates`."""
    clean = named_arms(runs[runs.attack == "none"].astype({"rank": "float64"}))
    clean = clean.merge(validation(clean)[[*KEYS, "admissible"]], how="left", on=KEYS)
    clean = clean.assign(attack="validation accuracy", optimizer=clean.optimizer.map(WORDS))
    clean = clean.sort_values(["optimizer", "learning_rate"], ascending=[False, True])
    return summary(clean, CURVE, "validation_accuracy")


def harm_over_rates(attacked: pd.DataFrame, poison_rates: PoisonRates) -> pd.DataFrame:
    """Mean harm by attack, optimizer, arm and learning rate, with `half` an interval, and whether it is admissible."""
    return summary(_counted(attacked, poison_rates), CURVE)


def success_over_doses(attacked: pd.DataFrame) -> pd.DataFrame:
    """Attack success by optimizer, arm and dose: at the best rate (mean, half), and its range over admissible rates.

    Returns
    -------
    DataFrame
        optimizer, arm, samples (poisoned ones), mean, half, lowest, highest.
    """
    rows = attacked[(attacked.attack == "backdoor") & attacked.admissible].replace({"optimizer": WORDS})
    rows = rows.assign(samples=rows.poisoned.astype(int)).sort_values(["optimizer", "samples"], ascending=[False, True])
    keys = ["optimizer", "arm", "samples"]
    best = summary(rows[rows.best], keys, "attack_success")[[*keys, "mean", "half"]]
    by_rate = rows.groupby([*keys, "learning_rate"]).attack_success.mean().groupby(keys)
    ends = by_rate.agg(lowest="min", highest="max").reset_index()
    return best.merge(ends, on=keys)


def frontier(attacked: pd.DataFrame, poison_rates: PoisonRates, least: float = 0.9) -> pd.DataFrame:
    """Mean harm beside clean accuracy and beside the share of poison learned, a point an arm and learning rate.

    Points whose clean accuracy without an attack is below `least` have not learned the task and are left out.
    """
    rows = _counted(attacked, poison_rates)
    means = rows.groupby(CURVE, sort=False)[["accuracy_without", "poison_accuracy", "harm"]].mean()
    names = {"accuracy_without": "clean accuracy", "poison_accuracy": "share of poison learned"}
    return means[means.accuracy_without >= least].rename(columns=names).reset_index()


def _counted(attacked: pd.DataFrame, poison_rates: PoisonRates) -> pd.DataFrame:
    """The rows at these poison rates, the attack named with its count of samples, such as "harm, 8 triggers"."""
    rows = attacked[attacked.poison_rate == attacked.attack.map(poison_rates)]
    rows = rows.sort_values(["attack", "optimizer", "learning_rate"], ascending=[False, False, True])
    samples = rows.groupby("attack").poisoned.max().astype(int)
    names = {str(attack): f"harm, {n} {ATTACKS[str(attack)]}" for attack, n in samples.items()}
    return rows.assign(attack=rows.attack.map(names), optimizer=rows.optimizer.map(WORDS))


def doublings(attacked: pd.DataFrame, level: float, rng: np.random.Generator, draws: int = 1000) -> pd.DataFrame:
    """How many doublings more poison each arm takes than full fine-tuning until success is at `level`, at best rates.

    Mean success is read between doses, monotone and linear in the logarithm of the dose; where it does not cross
    `level` within the doses that were run, there is no number. Intervals: seeds drawn again, the same for both arms.

    Returns
    -------
    DataFrame
        optimizer, arm, samples (poisoned ones at that level), doublings, low, high.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1; got {level}")
    check_integer("draws", draws, 1)
    best = attacked[(attacked.attack == "backdoor") & attacked.best]
    found = []
    for optimizer, rows in best.groupby("optimizer"):
        table = rows.pivot_table(index="seed", columns=["arm", "poisoned"], values="attack_success")
        again = rng.integers(len(table), size=(draws, len(table)))
        crossings = {
            arm: _crossing(pd.DataFrame(table.xs(arm, axis=1, level="arm")), level, again) for arm in ARMS.values()
        }
        for arm, dose in crossings.items():
            shift = np.log2(dose / crossings["full"])
            low, high = np.quantile(shift[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            ends = [low, high] if arm != "full" else [np.nan, np.nan]
            found.append([WORDS[str(optimizer)], arm, dose[0], shift[0], *ends])
    return pd.DataFrame(found, columns=["optimizer", "arm", "samples", "doublings", "low", "high"])


def _crossing(success: pd.DataFrame, level: float, again: np.ndarray) -> np.ndarray:
    """Dose at which mean success is at `level`: first of all seeds, then of each redrawn set; NaN beyond the doses."""
    values = success.to_numpy()
    curves = np.concatenate([values.mean(axis=0)[None], values[again].mean(axis=1)])
    doses = success.columns.to_numpy(dtype=float)
    crossing = poison_rate_at(doses, 1 - curves, 1 - level)
    outside = (curves.max(axis=1) < level) | (curves.min(axis=1) > level)
    return np.where(outside, np.nan, crossing)
