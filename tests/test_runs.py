"""Recorded runs as arms: rates by rule, harm against the clean arm, pairs by seed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lorantk.runs import at_rate, by_seed, difference, harms, trend

RATES = pd.DataFrame(
    [
        ["full", np.nan, np.nan, np.nan, "sgd", 0.1],
        ["lora", 1.0, "peft", "1", "sgd", 0.3],
        ["lora", np.nan, "peft", "1", "sgd", 0.2],
    ],
    columns=["method", "rank", "variance", "scaling", "optimizer", "learning_rate"],
)
LORA: dict[str, Any] = {"method": "lora", "variance": "peft", "scaling": "1"}
FULL: dict[str, Any] = {"method": "full", "rank": np.nan, "variance": np.nan, "scaling": np.nan}


def table(*cells: dict[str, Any], seeds: int = 4) -> pd.DataFrame:
    """Runs whose accuracy and attack success are round numbers of the seed."""
    attacks = [("none", 0.0, 0.9, 0.0), ("untargeted", 0.3, 0.7, 0.0), ("backdoor", 0.02, 0.9, 0.5)]
    rows = [
        {"optimizer": "sgd", "steps": 300, "batch_size": 64, "seed": seed, "attack": attack, "poison_rate": rate}
        | cell
        | {"clean_accuracy": accuracy + seed / 100, "attack_success": success + seed / 100}
        for cell, (attack, rate, accuracy, success), seed in itertools.product(cells, attacks, range(seeds))
    ]
    return pd.DataFrame(rows)


def test_a_rule_names_the_rate() -> None:
    cells = [LORA | {"rank": 1.0, "learning_rate": rate} for rate in (0.1, 0.2, 0.3)]
    runs = table(*cells, FULL | {"learning_rate": 0.1})
    for rule, rate in (("selected", 0.3), ("shared", 0.2), ("full", 0.1)):
        chosen = at_rate(runs, RATES, rule)
        assert set(chosen[chosen.method == "lora"].learning_rate) == {rate}
        assert len(chosen[chosen.method == "full"]) == 12
    matched = LORA | {"method": "matched", "rank": 1.0, "learning_rate": 0.1}
    assert len(at_rate(table(matched), RATES, "selected")) == 12
    with pytest.raises(ValueError, match="rule must be one of"):
        at_rate(runs, RATES, "best")


def test_harm_is_against_the_same_arm_and_seed() -> None:
    attacked = harms(table(LORA | {"rank": 8.0, "learning_rate": 0.2}, FULL | {"learning_rate": 0.1}))
    assert len(attacked) == 16
    np.testing.assert_allclose(attacked[attacked.attack == "untargeted"].harm, 0.2)
    np.testing.assert_allclose(attacked[attacked.attack == "backdoor"].harm, 0.5)
    runs = table(FULL | {"learning_rate": 0.1})
    with pytest.raises(ValueError, match="8 lack theirs"):
        harms(runs[runs.attack != "none"])


def test_pairs_share_a_seed() -> None:
    runs = table(FULL | {"learning_rate": 0.1})
    clean = by_seed(runs, "clean_accuracy", attack="none")
    attacked = by_seed(runs[runs.seed > 0], "clean_accuracy", attack="untargeted")
    effect = difference(clean, attacked, "lost")
    assert effect.n == 3
    assert effect.value == pytest.approx(0.2)
    with pytest.raises(ValueError, match="names 12 rows"):
        by_seed(runs, "clean_accuracy")
    with pytest.raises(ValueError, match="names 0 rows"):
        by_seed(runs, "clean_accuracy", attack="clean-label")


def test_trend_is_the_mean_slope() -> None:
    seeds = pd.Series([0.0, 1.0, 2.0])
    effect = trend({x: 0.5 * x + seeds * (1 + 0.1 * x) for x in (0.0, 1.0, 3.0)}, "slope", "")
    assert effect.value == pytest.approx(0.5 + 0.1)
    assert effect.low < 0.6 < effect.high
