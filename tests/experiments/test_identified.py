"""The findings from a grid whose harms are made up: signs, ranges, failures of the setting, outcomes of the family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evidence.findings import Member
from experiments.family import decided
from experiments.identified import REVIEWS, findings_of_grid

Harm = Callable[[str, int | None, float], float]
ARMS: list[tuple[str, int | None]] = [("full", None), ("head", None), ("lora", 1), ("lora", 8), ("lora", 64)]
ATTACKS = [("none", 0.0), ("untargeted", 0.3), ("backdoor", 0.006), ("backdoor", 0.016)]


def grid(
    flips: Harm, success: Harm, accuracy: Callable[[str], float] = lambda method: 0.93 if method == "head" else 0.95
) -> pd.DataFrame:
    """Runs at three learning rates, the last of which is not admissible, with noise that seeds share and some not."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for method, rank in ARMS:
        adapter = ("peft", "1") if rank else (None, None)
        for rate in (0.1, 0.2, 0.4):
            for attack, dose in ATTACKS:
                for seed in range(12):
                    noise = 0.002 * np.cos(seed), 0.002 * rng.normal()
                    lost = flips(method, rank, rate) if attack == "untargeted" else 0.0
                    won = success(method, rank, rate) if attack == "backdoor" else 0.0
                    rows.append({
                        "method": method, "rank": rank, "variance": adapter[0], "scaling": adapter[1],
                        "optimizer": "sgd", "learning_rate": rate, "steps": 300, "batch_size": 64, "seed": seed,
                        "attack": attack, "poison_rate": dose, "clean_accuracy": accuracy(method) - lost + sum(noise),
                        "triggered_accuracy": 0.9, "attack_success": won + sum(noise), "diverged": 0,
                        "poisoned": round(500 * dose),
                        "validation_accuracy": accuracy(method) - (rate > 0.2) + 10 * noise[0],
                    })  # fmt: skip
    return pd.DataFrame(rows).astype({"rank": "Int64"})


def rows_of(runs: pd.DataFrame) -> dict[tuple[str, str, str], Member]:
    return {(row.finding, row.half, row.setting.split()[1]): row for row in decided(findings_of_grid(runs))}


def test_effects_point_the_way_of_the_finding() -> None:
    """As the paper has it: LoRA loses more to flips, less to backdoors; a higher rank the other way round."""
    runs = grid(
        flips=lambda method, rank, rate: 0.1 if rank is None else 0.4 - 0.04 * np.log2(rank),
        success=lambda method, rank, rate: 0.9 if rank is None else 0.5 + 0.05 * np.log2(rank),
    )
    found = rows_of(runs)
    expected = {"finding-1": (0.18, 0.25), "finding-2": (0.24, 0.30), "finding-4": (None, 0.15)}
    for finding, values in expected.items():
        for attack, dose, value in (("flips", "150", values[0]), ("backdoor", "8", values[1])):
            if value is None:
                assert (finding, attack, dose) not in found
                continue
            row = found[finding, attack, dose]
            assert row.effect.value == pytest.approx(value, abs=0.005)
            assert row.outcome == "supported"
            assert row.primary
    assert not found["finding-1", "backdoor", "3"].primary
    assert len(found) == 2 + 2 * 3


def test_a_grid_may_attack_admissible_rates_alone_and_leave_its_head_clean() -> None:
    """As the text grid does: effects are the same, and a head that is better without an attack fails the setting."""

    def harm(method: str, rank: int | None, rate: float) -> float:
        return 0.6 if rank is None else 0.3

    for head in (0.93, 0.97):
        runs = grid(harm, harm, accuracy=lambda method, head=head: head if method == "head" else 0.95)
        left = runs[(runs.attack == "none") | ((runs.method != "head") & (runs.learning_rate < 0.4))]
        whole, part = (findings_of_grid(table, grid=REVIEWS) for table in (runs, left))
        assert [(m.effect, m.failed) for m in part] == [(m.effect, m.failed) for m in whole]
        assert {m.source for m in part} == {"text"}
        assert all(m.setting.startswith("reviews, SGD, ") for m in part)
        assert {"the head's" in m.failed for m in part} == {head > 0.95}


def test_an_effect_whose_sign_depends_on_the_rate_is_inconclusive() -> None:
    runs = grid(
        flips=lambda method, rank, rate: 0.2 + (0.1 if method == "full" and rate > 0.1 else 0.0) - 0.05 * bool(rank),
        success=lambda method, rank, rate: 0.8,
    )
    runs.loc[runs.method.isin(["full", "head"]) & (runs.attack == "untargeted"), "clean_accuracy"] += 0.1
    found = rows_of(runs)
    row = found["finding-1", "flips", "150"]
    assert row.effect.lowest < -0.04 < 0.04 < row.effect.highest
    assert row.outcome == "inconclusive"
    assert found["finding-1", "backdoor", "8"].outcome == "negligible"


def test_a_backdoor_that_does_not_work_on_full_fine_tuning_decides_nothing() -> None:
    runs = grid(flips=lambda *_: 0.1, success=lambda method, rank, rate: 0.4 if rank is None else 0.1)
    row = rows_of(runs)["finding-1", "backdoor", "8"]
    assert row.effect.low > 0.2
    assert row.failed == "attack success of full fine-tuning is 0.40"
    assert row.outcome == "inconclusive"


def test_a_method_below_the_head_decides_nothing() -> None:
    runs = grid(
        flips=lambda method, rank, rate: 0.3 if rank else 0.1,
        success=lambda *_: 0.9,
        accuracy=lambda method: 0.8 if method == "lora" else 0.95,
    )
    row = rows_of(runs)["finding-1", "flips", "150"]
    assert row.failed.startswith("clean accuracy of LoRA r = 8 is 0.8")
    assert row.outcome == "inconclusive"


def test_runs_that_diverged_are_counted_as_guesses() -> None:
    runs = grid(flips=lambda *_: 0.1, success=lambda *_: 0.9)
    lost = (runs["rank"] == 8) & (runs.attack == "untargeted") & (runs.seed == 3) & (runs.learning_rate == 0.1)
    runs.loc[lost, ["clean_accuracy", "attack_success", "triggered_accuracy"]] = np.nan
    runs.loc[lost, "diverged"] = 1
    row = rows_of(runs)["finding-1", "flips", "150"]
    assert row.diverged == 1
    assert row.effect.n == 12
    assert max(row.effect.highest, -row.effect.lowest) == pytest.approx((0.85 - 0.2) / 12, abs=0.005)
