"""What a number of seeds can show, planned from the spread of the effects of earlier runs; python -m experiments.power.

The runs are those before `protocol.md`: one learning rate a method, effects paired by seed.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import t

from evidence.effects import LEVEL, Effect
from lorantk.batches import check_integer, check_real

from .config import RESULTS
from .family import MARGINS
from .identified import HALVES
from .runs import at_rate, effects_of_findings, harms
from .table import ResultsTable

SPANS = {"finding-2": 6.0, "finding-5": float(np.log10(4 / 0.001))}
"""Trends over the whole range: doublings from r = 1 to 64, factors of 10 from k = .001 to 4."""


def spread(effect: Effect) -> float:
    """Standard deviation over seeds that gave the effect its standard error."""
    assert effect.error is not None
    return float(effect.error * effect.n**0.5)


def detectable(std: float, seeds: int, power: float = 0.8) -> float:
    """Size of a paired effect that a two-sided t test at 5 % over `seeds` seeds finds with probability `power`."""
    _check_plan(std, seeds)
    if not 1 - LEVEL < power < 1:
        raise ValueError(f"power must be between {1 - LEVEL:.2f} and 1; got {power}")
    return Effect("", 0.0, 0.0, 0.0, seeds, error=std / seeds**0.5, freedom=seeds - 1).detectable(power)


def power_negligible(std: float, seeds: int, margin: float) -> float:
    """Probability that two one-sided t tests at 5 % show an effect of 0 to be smaller than `margin`.

    Notes
    -----
    The estimate must fall within the margin less t_.95 standard errors; the standard error is taken as known there,
    Schuirmann's (1987) approximation.
    """
    _check_plan(std, seeds)
    check_real("margin", margin, minimum=0.0, exclusive=True)
    error = std / seeds**0.5
    reach = margin / error - float(t.ppf(LEVEL, seeds - 1))
    return max(0.0, float(2 * t.cdf(reach, seeds - 1) - 1))


def plan(seeds: int = 20) -> pd.DataFrame:
    """Spread, detectable effect and power of equivalence for each finding in each task, optimizer and attack."""
    rows = []
    for task, steps, dose in (("digits", 300, 0.02), ("spam", 150, 0.01), ("reuters", 150, 0.01)):
        rates = pd.read_csv(RESULTS / f"rates-{task}.csv", dtype={"variance": str, "scaling": str})
        runs = ResultsTable(RESULTS, task).read()
        attacked = harms(_at_shared(runs[(runs.seed < 20) & (runs.steps == steps)], rates))
        usual = attacked[(attacked.poison_rate == np.where(attacked.attack == "backdoor", dose, 0.3))]
        for (optimizer, attack), part in usual.groupby(["optimizer", "attack"]):
            found = effects_of_findings(part, "", rank=8, tolerance=0.01).items()
            for finding, effect in ((finding, effect) for finding, effects in found for effect in effects):
                if finding == "finding-3":  # a gap is planned with the trend of finding-5
                    continue
                std, margin = SPANS.get(finding, 1.0) * spread(effect), MARGINS[HALVES[str(attack)]]
                row = [finding, attack, task, optimizer, effect.n, std, detectable(std, seeds)]
                rows.append([*row, power_negligible(std, seeds, margin)])
    columns = ["finding", "attack", "task", "optimizer", "seeds so far", "std", "detectable", "power negligible"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns[:4]).round(3)


def _check_plan(std: float, seeds: int) -> None:
    check_real("std", std, minimum=0.0, exclusive=True)
    check_integer("seeds", seeds, 2)


def _at_shared(runs: pd.DataFrame, rates: pd.DataFrame) -> pd.DataFrame:
    chosen = at_rate(runs, rates, "shared")
    return chosen[chosen.scaling.isin(["1"]) | chosen.scaling.isna()]


if __name__ == "__main__":
    print(plan().to_markdown(index=False))
