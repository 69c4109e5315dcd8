"""Findings on the variance of A from runs made up so that the answers are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evidence.findings import Member
from experiments.family import decided
from experiments.variances import at_common_rates, findings_of_variances

KS = (0.01, 0.1, 1.0)


def rows(arm: dict[str, Any], harm: float, success: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        arm | {
            "optimizer": "sgd", "learning_rate": rate, "steps": 300, "batch_size": 64, "seed": seed, "attack": attack,
            "poison_rate": share, "poisoned": round(500 * share), "triggered_accuracy": 0.9, "diverged": 0,
            "clean_accuracy": 0.95 - (attack == "untargeted") * harm + 0.002 * rng.normal(),
            "attack_success": (attack == "backdoor") * success + 0.002 * rng.normal(),
            "validation_accuracy": 0.95 + 0.01 * np.cos(seed) - (rate > 0.1),
        }
        for rate in (0.1, 0.2)
        for attack, share in (("none", 0.0), ("untargeted", 0.3), ("backdoor", 0.016))
        for seed in range(10)
    ]  # fmt: skip


LORA = {"method": "lora", "rank": 8, "scaling": "1"}


def varied(harm: Callable[[float], float], rng: np.random.Generator) -> list[dict[str, Any]]:
    return [row for k in KS for row in rows(LORA | {"variance": f"{k:g}/n"}, harm(k), 0.8, rng)]


def members(harm: Callable[[float], float], success: float = 0.9) -> dict[tuple[str, str], Member]:
    """Findings where harm of flips depends on k and the backdoor's success does not."""
    rng = np.random.default_rng(0)
    lora, runs = LORA, varied(harm, rng)
    grid = rows(lora | {"variance": "peft"}, 0.1, 0.8, rng)
    for method in ("full", "head"):
        grid += rows({"method": method, "rank": None, "scaling": None, "variance": None}, 0.1, success, rng)
    tables = [pd.DataFrame(part).astype({"rank": "Int64"}) for part in (runs, grid)]
    tables[1].loc[tables[1].method == "head", "clean_accuracy"] -= 0.02
    return {(m.finding, m.half): m for m in decided(findings_of_variances(*tables))}


def test_a_trend_is_the_rise_over_the_range_and_a_gap_its_size() -> None:
    found = members(lambda k: 0.2 + 0.05 * np.log10(k))
    for finding in ("finding-3", "finding-5"):
        assert found[finding, "flips"].effect.value == pytest.approx(0.1, abs=0.005)
        assert found[finding, "flips"].outcome == "supported"
        assert found[finding, "backdoor"].outcome == "negligible"


def test_at_a_common_rate_the_trend_is_that_of_k() -> None:
    runs = pd.DataFrame(varied(lambda k: 0.2 + 0.05 * np.log10(k), np.random.default_rng(0))).astype({"rank": "Int64"})
    found = at_common_rates(runs).set_index(["half", "learning rate"])
    assert found.value["flips"].tolist() == pytest.approx([0.1, 0.1], abs=0.005)
    assert (found.p["flips"] < 1e-6).all()
    assert found.value["backdoor"].tolist() == pytest.approx([0.0, 0.0], abs=0.005)


def test_a_smaller_variance_that_does_worse_reverses_the_trend_but_not_the_gap() -> None:
    found = members(lambda k: 0.2 - 0.05 * np.log10(k))
    assert found["finding-5", "flips"].outcome == "reversed"
    assert found["finding-3", "flips"].outcome == "supported"


def test_what_rises_and_falls_is_a_gap_without_a_trend() -> None:
    found = members(lambda k: 0.2 + 0.1 * (k == 0.1))
    assert found["finding-3", "flips"].outcome == "supported"
    assert found["finding-5", "flips"].outcome == "negligible"


def test_a_failed_setting_decides_nothing() -> None:
    found = members(lambda k: 0.2, success=0.3)
    assert found["finding-3", "backdoor"].outcome == "inconclusive"
    assert "attack success of full fine-tuning" in found["finding-5", "backdoor"].failed
