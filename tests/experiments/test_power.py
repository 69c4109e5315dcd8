"""What seeds can show: planned powers are those of simulated experiments."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from evidence.effects import paired_contrast
from experiments.power import detectable, plan, power_negligible, spread

SEEDS, DRAWS = 20, 20_000


def simulated(mean: float, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard errors of simulated experiments of SEEDS seeds."""
    sample = np.random.default_rng(0).normal(mean, std, (DRAWS, SEEDS))
    return sample.mean(axis=1), sample.std(axis=1, ddof=1) / SEEDS**0.5


def test_the_detectable_effect_is_detected_with_the_power_asked_for() -> None:
    mean, error = simulated(detectable(0.06, SEEDS), 0.06)
    found = (np.abs(mean) / error > t.ppf(0.975, SEEDS - 1)).mean()
    assert found == pytest.approx(0.8, abs=4 * (0.16 / DRAWS) ** 0.5)


@pytest.mark.parametrize("std", [0.03, 0.07])
def test_the_power_of_equivalence_is_that_of_simulated_experiments(std: float) -> None:
    mean, error = simulated(0.0, std)
    inside = (np.abs(mean) + t.ppf(0.95, SEEDS - 1) * error < 0.05).mean()
    assert power_negligible(std, SEEDS, 0.05) == pytest.approx(inside, abs=0.02)  # its standard error is not random
    assert power_negligible(10 * std, SEEDS, 0.05) == 0.0


def test_the_spread_is_that_of_the_pairs() -> None:
    pairs = np.random.default_rng(1).normal(size=(9, 2))
    effect = paired_contrast(pairs, [1, -1], "difference")
    assert spread(effect) == pytest.approx((pairs[:, 0] - pairs[:, 1]).std(ddof=1))


def test_the_plan_covers_each_task_optimizer_and_attack() -> None:
    table = plan()
    assert len(table) == 3 * 2 * (4 + 3)  # findings 1, 2, 4, 5 under a backdoor; 1, 2, 5 under flips
    assert (table.detectable > 0).all()
