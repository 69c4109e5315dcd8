"""Recorded runs as arms: rates by rule, harm against the clean arm, pairs by seed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evidence.effects import slope_weights
from experiments.runs import (
    at_rate,
    by_seed,
    compare,
    configurations,
    effects_of_findings,
    harms,
    summary,
    times_n,
)

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
    effect = compare([clean, attacked], [1, -1], "lost")
    assert effect.n == 3
    assert effect.value == pytest.approx(0.2)
    with pytest.raises(ValueError, match="names 12 rows"):
        by_seed(runs, "clean_accuracy")
    with pytest.raises(ValueError, match="names 0 rows"):
        by_seed(runs, "clean_accuracy", attack="clean-label")


def test_a_trend_is_the_mean_slope() -> None:
    seeds, places = pd.Series([0.0, 1.0, 2.0]), (0.0, 1.0, 3.0)
    effect = compare([0.5 * x + seeds * (1 + 0.1 * x) for x in places], slope_weights(places), "slope")
    assert effect.value == pytest.approx(0.5 + 0.1)
    assert effect.low < 0.6 < effect.high


def test_summary_hides_groups_that_diverged() -> None:
    attacked = harms(table(LORA | {"rank": 8.0, "learning_rate": 0.2}, FULL | {"learning_rate": 0.1}))
    attacked.loc[(attacked.method == "full") & (attacked.seed == 2), "harm"] = np.nan
    found = summary(attacked, ["method", "attack"]).set_index(["method", "attack"])
    assert found.loc[("lora", "backdoor"), "mean"] == pytest.approx(0.5)
    assert found.loc[("lora", "backdoor"), "half"] < 1e-9
    assert np.isnan(found.loc[("full", "backdoor"), "mean"])
    assert found.loc[("full", "backdoor"), "diverged"] == 1


def test_variances_are_times_n() -> None:
    np.testing.assert_allclose(times_n(pd.Series(["peft", "0.01/n", "4/n", "1/r"])), [1 / 3, 0.01, 4.0, np.nan])


def test_effects_point_the_way_of_the_finding() -> None:
    """Harm that grows with rank and variance, and is larger for full fine-tuning, by construction."""
    generator = np.random.default_rng(0)
    cells = [(FULL, 0.6), *((LORA | {"rank": r}, 0.1 * np.log2(r)) for r in (1.0, 8.0, 64.0))]
    cells += [(LORA | {"rank": 8.0, "variance": f"{k}/n"}, 0.3 + 0.1 * np.log10(3 * k)) for k in (0.1, 1.0)]
    for attack, sign in (("untargeted", -1), ("backdoor", 1)):
        rows = [
            cell | {"attack": attack, "seed": seed, "harm": harm + 0.01 * generator.standard_normal()}
            for cell, harm in cells
            for seed in range(6)
        ]
        attacked = pd.DataFrame(rows).assign(accuracy_without=0.9)
        effects = effects_of_findings(attacked, "made up", rank=8, tolerance=0.01)
        assert effects["finding-1"][0].value == pytest.approx(sign * 0.3, abs=0.02)
        assert effects["finding-2"][0].value == pytest.approx(sign * 0.1, abs=0.01)
        assert effects["finding-3"][0].low > 0
        assert effects["finding-5"][0].value == pytest.approx(0.1, abs=0.02)
        assert ("finding-4" in effects) == (attack == "backdoor")
    assert effects["finding-4"][0].value == pytest.approx(0.3, abs=0.02)
    weak = attacked.assign(accuracy_without=np.where(attacked["rank"] == 1, 0.5, 0.9))
    assert effects_of_findings(weak, "w", rank=8, tolerance=0.01)["finding-4"][0].name == "w: r = 64 minus r = 8"
    alone = weak.assign(accuracy_without=np.where(weak["rank"] == 64, 0.9, 0.5))
    assert effects_of_findings(alone, "a", rank=8, tolerance=0.01)["finding-4"] == []


def test_configurations_have_harm_and_proxies() -> None:
    runs = table(LORA | {"rank": 8.0, "learning_rate": 0.2}, FULL | {"learning_rate": 0.1})
    runs["id"] = [str(i) for i in range(len(runs))]
    attacked = harms(runs)
    proxies = attacked[(attacked.method == "full") & (attacked.seed < 2)][["id", "seed"]].rename(columns={"seed": "x"})
    found = configurations(attacked, proxies)
    assert list(found.method) == ["full", "full"]
    np.testing.assert_allclose(found.x, 0.5)
