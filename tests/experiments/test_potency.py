"""How much more poison LoRA takes: curves that are one doubling apart by construction."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from experiments import potency
from experiments.published_figures import draw_crossings

RATES = 0.001 * 2.0 ** np.arange(6)
CLEAN, FLOORS = pd.Series({"flat": 0.9, "steep": 0.9}), pd.Series({"flat": 0.5, "steep": 0.5})


@pytest.fixture
def curves() -> dict[str, pd.DataFrame]:
    """On "steep", LoRA's accuracy is a logistic curve one doubling behind that of FF; on "flat" nothing falls."""
    places = np.arange(6)
    left = {"FF": 1 / (1 + np.exp(2 * (places - 2))), "LoRA": 1 / (1 + np.exp(2 * (places - 3)))}
    rows = [
        {"task": task, "method": method, "poison_rate": rate, "mean": mean, "std": 0.001}
        for method, curve in left.items()
        for task, means in (("steep", 0.5 + 0.4 * curve), ("flat", np.full(6, 0.9)))
        for rate, mean in zip(RATES, means, strict=True)
    ]
    return potency.curves_by_task(pd.DataFrame(rows))


def test_both_routes_find_one_doubling(curves: dict[str, pd.DataFrame]) -> None:
    target = potency.levels(CLEAN, FLOORS, 0.25)
    assert target["steep"] == pytest.approx(0.6)
    assert potency.tasks_reached(curves, target) == ["steep"]
    effect = potency.extra_doublings(curves["steep"], 0.6, np.random.default_rng(0), "steep", draws=200)
    assert effect.value == pytest.approx(1)
    assert 0.9 < effect.low < 1 < effect.high < 1.1
    assert potency.logistic_doublings(curves["steep"], 0.9, 0.5) == pytest.approx(1)


def test_ratios_stand_beside_each_other(curves: dict[str, pd.DataFrame]) -> None:
    both = {"steep": curves["steep"], "too": curves["steep"]}
    levels = pd.Series({"steep": 0.9, "too": 0.9}), pd.Series({"steep": 0.5, "too": 0.5})
    target = potency.levels(*levels, 0.25)
    table = potency.ratios_by_task(both, *levels, target, np.random.default_rng(0), draws=200)
    assert table.index.tolist() == ["steep", "too", "2 tasks"]
    assert table["by logistic curves"].tolist() == ["2.00"] * 3
    assert table["LoRA takes, times as much"].str.startswith("2.00").all()


def test_crossings_are_read_where_the_level_is_reached(curves: dict[str, pd.DataFrame]) -> None:
    half = potency.levels(CLEAN, FLOORS, 0.5)
    read = potency.crossings(curves, FLOORS, half).set_index(["task", "method"])
    assert read.rate["steep"].to_numpy() == pytest.approx([RATES[2], RATES[3]])
    assert read.rate["flat"].isna().all()
    assert read.level["steep"].to_numpy() == pytest.approx([0.7, 0.7])
    assert len(draw_crossings({"flat": curves["flat"], "steep": curves["steep"]}, read.reset_index()).axes) == 4
