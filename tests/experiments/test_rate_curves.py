"""Curves over learning rates and doses from runs made up so that the answers are known, and their figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import rate_curves, rate_figures
from experiments.arms import ARMS
from experiments.family import decided
from experiments.identified import findings_of_grid

DOSES = {0.006: 3, 0.016: 8, 0.04: 20}
LATE = {"full": 1.0, "head": 4.0, 1: 2.0, 8: 1.0, 64: 1.0}
"""Arm -> how many times the dose of full fine-tuning it takes for the same success."""


def success(samples: int, times: float) -> float:
    """Linear in the logarithm of the dose: .2 more a doubling."""
    return 0.3 + 0.2 * float(np.log2(samples / 3 / times))


@pytest.fixture
def runs() -> pd.DataFrame:
    """Two learning rates, of which the first does better without an attack and is alone admissible."""
    rows: list[dict[str, Any]] = []
    attacks = [("none", 0.0, 0), ("untargeted", 0.3, 150), *(("backdoor", rate, n) for rate, n in DOSES.items())]
    for optimizer in ("sgd", "adamw"):
        for arm, times in LATE.items():
            lora = not isinstance(arm, str)
            for rate in (0.1, 0.2):
                for attack, poison_rate, count in attacks:
                    for seed in range(6):
                        off = 0.001 * np.cos(seed)
                        won = success(count, times) - (rate - 0.1) if attack == "backdoor" else 0.0
                        rows.append({
                            "method": "lora" if lora else arm, "rank": arm if lora else np.nan,
                            "variance": "peft" if lora else np.nan, "scaling": "1" if lora else np.nan,
                            "optimizer": optimizer, "learning_rate": rate, "steps": 300, "batch_size": 64,
                            "seed": seed, "attack": attack, "poison_rate": poison_rate, "diverged": 0,
                            "clean_accuracy": 0.95 - rate / 10 - (0.1 + rate) * (attack == "untargeted") + off,
                            "triggered_accuracy": 0.9, "attack_success": won + off, "poison_accuracy": 0.5,
                            "poisoned": count, "validation_accuracy": 0.95 - rate / 10 + off,
                        })  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def attacked(runs: pd.DataFrame) -> pd.DataFrame:
    return rate_curves.attacked_runs(runs)


POISON_RATES = {"untargeted": 0.3, "backdoor": 0.016}


def test_validation_accuracy_is_that_of_the_clean_runs(runs: pd.DataFrame) -> None:
    curves = rate_curves.validation_over_rates(runs)
    assert list(curves.columns) == list(rate_curves.harm_over_rates(rate_curves.attacked_runs(runs), POISON_RATES))
    assert len(curves) == 2 * 5 * 2
    assert curves[curves.learning_rate == 0.1].admissible.all()
    assert not curves[curves.learning_rate == 0.2].admissible.any()
    off = 0.001 * float(np.cos(np.arange(6)).mean())
    np.testing.assert_allclose(curves["mean"], 0.95 - curves.learning_rate / 10 + off)


def test_harm_stands_at_every_rate_and_says_which_are_admissible(attacked: pd.DataFrame) -> None:
    curves = rate_curves.harm_over_rates(attacked, POISON_RATES)
    assert list(curves.attack.unique()) == ["harm, 150 flips", "harm, 8 triggers"]
    assert list(curves.optimizer.unique()) == ["SGD", "AdamW"]
    assert set(zip(curves.learning_rate, curves.admissible, strict=True)) == {(0.1, True), (0.2, False)}
    flips = curves[curves.attack == "harm, 150 flips"]
    np.testing.assert_allclose(flips["mean"], 0.1 + flips.learning_rate)
    assert len(rate_figures.draw_harm_over_rates(curves).axes) == 4


def test_success_is_that_of_the_best_rate_with_the_range_of_admissible_ones(
    attacked: pd.DataFrame, runs: pd.DataFrame
) -> None:
    curves = rate_curves.success_over_doses(attacked)
    assert list(curves.samples.unique()) == [3, 8, 20]
    late = {name: LATE[arm if isinstance(arm, str) else int(arm)] for arm, name in ARMS.items()}
    expected = [success(n, late[arm]) for n, arm in zip(curves.samples, curves.arm, strict=True)]
    np.testing.assert_allclose(curves["mean"], expected, atol=1e-3)
    np.testing.assert_allclose(curves.lowest, curves["mean"])  # one rate is admissible
    wide = runs.assign(validation_accuracy=0.9 + 0.01 * np.cos(runs.seed))
    ranges = rate_curves.success_over_doses(rate_curves.attacked_runs(wide))
    np.testing.assert_allclose(ranges.highest - ranges.lowest, 0.1)
    assert rate_figures.draw_success_over_doses(ranges).axes[0].get_ylabel() == "attack success"


def test_doublings_are_the_shift_along_the_dose(attacked: pd.DataFrame) -> None:
    found = rate_curves.doublings(attacked, 0.4, np.random.default_rng(0), draws=50).set_index(["optimizer", "arm"])
    assert found.doublings["SGD", "LoRA, r = 1"] == pytest.approx(1.0, abs=0.02)
    assert found.doublings["SGD", "head"] == pytest.approx(2.0, abs=0.02)
    assert found.doublings["AdamW", "LoRA, r = 8"] == pytest.approx(0.0, abs=1e-9)
    assert found.low["AdamW", "head"] <= 2.0 <= found.high["AdamW", "head"] + 0.02
    assert rate_curves.doublings(attacked, 0.99, np.random.default_rng(0), draws=5).samples.isna().all()


def test_the_frontier_leaves_out_what_has_not_learned(attacked: pd.DataFrame) -> None:
    points = rate_curves.frontier(attacked, POISON_RATES)
    assert len(points) == 2 * 2 * len(LATE) * 2
    assert rate_curves.frontier(attacked, POISON_RATES, least=0.935).learning_rate.unique().tolist() == [0.1]
    np.testing.assert_allclose(points["share of poison learned"], 0.5)
    assert len(rate_figures.draw_frontier(points).axes) == 4


def test_outcomes_are_drawn_an_attack_a_panel(runs: pd.DataFrame) -> None:
    rows = [row for row in decided(findings_of_grid(runs)) if row.primary]
    flips, backdoor = rate_figures.draw_outcomes(rows).axes
    names = [label.get_text() for label in flips.get_yticklabels()]
    mine = [row for row in rows if row.half == "flips"]
    assert [name.split("\n")[0] for name in names] == [f"{r.finding[-1]}: {r.setting.split(',')[0]}" for r in mine]
    about = {"finding-1": "method", "finding-2": "rank"}
    assert [name.split("\n")[1] for name in names] == [f"{about[row.finding]}, {row.outcome}" for row in mine]
    assert backdoor.get_xlabel() == "attack success"
