"""Published runs by seed: the recorded ones agree with the recorded means, and seeds are the units."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, ttest_1samp

from experiments.contrasts import summarise
from experiments.data import recorded
from experiments.published_seeds import points, seed_cells


@pytest.fixture
def seeds() -> pd.DataFrame:
    return recorded("published/seeds")


@pytest.fixture
def near() -> pd.DataFrame:
    figures = recorded("published/figures")
    return figures[(figures.experiment == "backdoor_by_rate_clean_test") & (figures.metric == "accuracy")]


def test_published_deviations_divide_by_n_minus_1(seeds: pd.DataFrame) -> None:
    figures = recorded("published/figures")
    sweep = figures[(figures.experiment == "untargeted_by_rate") & (figures.metric == "accuracy")]
    keys = ["task", "method", "poison_rate"]
    both = points(seeds).merge(sweep, on=keys, suffixes=("", "_printed"))
    assert len(both) == len(sweep) == 64
    np.testing.assert_allclose(both["mean"], both.mean_printed, atol=2e-5)  # means are printed to 1e-5
    np.testing.assert_allclose(both["std"], both.std_printed, atol=3e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(both["std"] * 0.8**0.5, both.std_printed, atol=3e-5)


def test_the_effect_of_a_task_is_that_of_its_seeds(seeds: pd.DataFrame, near: pd.DataFrame) -> None:
    effects = {e.name: e for e in summarise(seed_cells(seeds, near), "loss")}
    for task in ("cola", "qqp"):
        mine, level = seeds[seeds.task == task], near[near.task == task].groupby("method")["mean"].mean()
        by_seed = mine.pivot_table(index="seed", columns="method", values="accuracy")
        difference = (by_seed.FF - by_seed.LoRA).to_numpy()
        assert effects[task].value == pytest.approx(difference.mean() - (level.FF - level.LoRA))
        interval = ttest_1samp(difference, 0).confidence_interval(0.95)
        width = effects[task].high - effects[task].low
        assert width == pytest.approx(interval.high - interval.low, rel=0.05)  # the clean level is known better


def test_colas_extra_loss_is_not_told_from_zero(seeds: pd.DataFrame, near: pd.DataFrame) -> None:
    """By two routes: t over seeds, and seeds drawn again."""
    effect = {e.name: e for e in summarise(seed_cells(seeds, near), "loss")}["cola"]
    assert (effect.value, effect.low, effect.high) == pytest.approx((0.020, -0.008, 0.048), abs=5e-4)
    by_seed = seeds[seeds.task == "cola"].pivot_table(index="seed", columns="method", values="accuracy")
    drawn = bootstrap(((by_seed.FF - by_seed.LoRA).to_numpy(),), np.mean, rng=np.random.default_rng(0))
    shrunk = effect.error * (4 / 5) ** 0.5  # drawing again n of n units divides by n, not n - 1
    assert drawn.standard_error == pytest.approx(shrunk, rel=0.1)


def test_a_run_that_is_missing_is_said(seeds: pd.DataFrame, near: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="a run of FF and of LoRA for each task, seed and poison rate"):
        seed_cells(seeds.iloc[1:], near)
