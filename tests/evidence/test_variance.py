"""Do levels matter: F tests against other routes, the sphericity correction by simulation, the largest gap."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from statsmodels.stats.anova import AnovaRM
from statsmodels.stats.oneway import anova_oneway

from evidence.variance import (
    gap_between_groups,
    gap_within_seeds,
    greenhouse_geisser,
    variance_explained,
    variance_explained_within,
)

SEEDS, LEVELS, DRAWS = 12, 5, 1000


def summary(sample: NDArray[np.float64]) -> tuple[float, float, int]:
    return float(sample.mean()), float(sample.std(ddof=1)), len(sample)


def test_levels_test_as_the_raw_runs_would() -> None:
    rng = np.random.default_rng(0)
    runs = [rng.normal(m, s, 6) for m, s in ((0, 1), (2, 1), (4, 3))]
    ours = variance_explained([summary(r) for r in runs], "level")
    assert ours.p == pytest.approx(anova_oneway(runs, use_var="unequal").pvalue)
    assert 0 < ours.low < ours.value < ours.high < 1
    alike = variance_explained([(1.0, 1.0, 6)] * 3, "level")
    assert alike.low == alike.value == 0


def repeated(table: NDArray[np.float64]) -> pd.Series:
    """Repeated measures by statsmodels, which takes sphericity for granted."""
    long = pd.DataFrame(table).reset_index(names="seed").melt("seed", var_name="level", value_name="outcome")
    return AnovaRM(long, "outcome", "seed", ["level"]).fit().anova_table.iloc[0]


def test_repeated_levels_take_off_what_seeds_differ_by() -> None:
    rng = np.random.default_rng(3)
    seeds = rng.normal(0, 10, (12, 1))
    noise, shift = rng.normal(0, 0.1, (12, 4)), np.array([0.0, 0.1, 0.2, 0.3])
    found, none = variance_explained_within(seeds + noise + shift, "k"), variance_explained_within(seeds + noise, "k")
    assert found.low > 0
    assert none.low == 0
    other, epsilon = repeated(seeds + noise + shift), greenhouse_geisser(seeds + noise + shift)
    assert found.p == pytest.approx(scipy.stats.f.sf(other["F Value"], 3 * epsilon, 33 * epsilon))
    assert 1 / 3 <= epsilon < 1
    with pytest.raises(ValueError, match="two or more of each"):
        variance_explained_within(seeds, "k")


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_epsilon_is_that_of_orthonormal_contrasts(seed: int, levels: int) -> None:
    table = np.random.default_rng(seed).normal(size=(9, levels)) * np.arange(1, levels + 1)
    contrasts = scipy.linalg.helmert(levels)
    eigenvalues = np.linalg.eigvalsh(np.cov(contrasts @ table.T).reshape(levels - 1, -1))
    expected = eigenvalues.sum() ** 2 / (levels - 1) / (eigenvalues**2).sum()
    assert greenhouse_geisser(table) == pytest.approx(expected)
    assert 1 / (levels - 1) - 1e-9 <= greenhouse_geisser(table) <= 1 + 1e-9


def test_levels_that_vary_unlike_need_the_correction() -> None:
    """One level varies far more than the rest, and no level matters: the plain test rejects too often."""
    tables = np.random.default_rng(0).normal(size=(DRAWS, SEEDS, LEVELS)) * np.array([0.1, 0.1, 0.1, 0.1, 1.0])
    corrected = np.mean([variance_explained_within(table, "k").p < 0.05 for table in tables])
    plain = np.mean([repeated_p(table) < 0.05 for table in tables])
    allowed = 0.05 + 3 * (0.05 * 0.95 / DRAWS) ** 0.5
    assert corrected < allowed
    assert plain > allowed


def repeated_p(table: NDArray[np.float64]) -> float:
    """The plain p-value of repeated measures, by hand."""
    centred = table - table.mean(axis=1, keepdims=True)
    left = centred - centred.mean(axis=0)
    seeds, levels = table.shape
    statistic = seeds * (seeds - 1) * (centred.mean(axis=0) ** 2).sum() / (left**2).sum()
    return float(scipy.stats.f.sf(statistic, levels - 1, (levels - 1) * (seeds - 1)))


def test_a_gap_is_the_difference_of_the_most_different_levels() -> None:
    rng = np.random.default_rng(6)
    table = rng.normal(0, 1, (SEEDS, 1)) + rng.normal([0.0, 0.1, 0.5], 0.05, (SEEDS, 3))
    gap = gap_within_seeds(table, "k", "accuracy")
    pairs = [scipy.stats.ttest_rel(table[:, a], table[:, b]) for a, b in combinations(range(3), 2)]
    assert gap.value == pytest.approx(np.ptp(table.mean(axis=0)))
    assert gap.high == pytest.approx(max(np.abs(pair.confidence_interval(0.95)).max() for pair in pairs))
    assert gap.p_difference() == pytest.approx(variance_explained_within(table, "k").p)
    assert gap.p_within(0.2) > 0.9
    assert gap.p_within(0.8) < 0.05
    with pytest.raises(TypeError, match="no other side"):
        gap.__neg__()


def test_gaps_of_levels_that_are_alike_are_within_a_margin_and_seldom_shown() -> None:
    tables = np.random.default_rng(7).normal(0, 0.02, (DRAWS // 4, SEEDS, 3))
    gaps = [gap_within_seeds(table, "k") for table in tables]
    shown = np.mean([gap.p_difference() < 0.05 for gap in gaps])
    assert shown < 0.05 + 3 * (0.05 * 0.95 / len(gaps)) ** 0.5
    assert np.mean([gap.p_within(0.05) < 0.05 for gap in gaps]) > 0.95
    assert all(gap.low <= gap.value <= gap.high for gap in gaps)


def test_a_margin_that_a_gap_reaches_is_seldom_undercut() -> None:
    tables = np.random.default_rng(8).normal([0.0, 0.0, 0.05], 0.02, (DRAWS // 4, SEEDS, 3))
    wrong = np.mean([gap_within_seeds(table, "k").p_within(0.05) < 0.05 for table in tables])
    assert wrong < 0.05 + 3 * (0.05 * 0.95 / len(tables)) ** 0.5


def test_gaps_between_groups_test_as_the_raw_runs_would() -> None:
    rng = np.random.default_rng(9)
    runs = [rng.normal(mean, std, 6) for mean, std in ((0, 1), (2, 1), (4, 3))]
    gap = gap_between_groups([summary(sample) for sample in runs], "k")
    assert gap.p_difference() == pytest.approx(anova_oneway(runs, use_var="unequal").pvalue)
    assert gap.value == pytest.approx(max(map(np.mean, runs)) - min(map(np.mean, runs)))
