"""Admissible learning rates and effects over them, on runs made up so that the answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.admissible import choices, guessed, over_rates, performing, validation
from experiments.runs import ARM

FULL = ("full", None, None, None)


def lora(rank: int) -> tuple[Any, ...]:
    return "lora", rank, "peft", "1"


def clean(
    accuracy: dict[tuple[Any, ...], dict[float, list[float]]], diverged: tuple[float, int] | None = None
) -> pd.DataFrame:
    """Runs without an attack whose validation accuracy is given by arm and learning rate, a value a seed."""
    rows = [
        dict(zip(ARM, (*arm, "sgd"), strict=True))
        | {"learning_rate": rate, "seed": seed, "attack": "none", "validation_accuracy": value, "diverged": 0}
        for arm, by_rate in accuracy.items()
        for rate, values in by_rate.items()
        for seed, value in enumerate(values)
    ]
    table = pd.DataFrame(rows).astype({"rank": "Int64"})
    if diverged is not None:
        lost = (table.learning_rate == diverged[0]) & (table.seed == diverged[1])
        table.loc[lost, ["validation_accuracy", "diverged"]] = [np.nan, 1]
    return table


def test_a_rate_within_one_standard_error_of_the_best_is_admissible() -> None:
    best = [0.90, 0.94]  # mean .92, standard error .02
    runs = clean({FULL: {0.1: [0.90, 0.901], 0.2: best, 0.4: [0.89, 0.90], 0.8: [0.92, 0.92]}})
    table = validation(runs)
    assert list(table.learning_rate[table.admissible]) == [0.1, 0.2, 0.8]
    assert list(table.learning_rate[table.best]) == [0.2]  # of equals the smallest
    assert list(table.learning_rate[table.at_edge]) == [0.1, 0.8]
    assert table.standard_error[1] == pytest.approx(0.02)


def test_a_run_that_diverged_makes_its_rate_inadmissible() -> None:
    runs = clean({FULL: {0.1: [0.90, 0.94], 0.2: [0.99, 0.99], 0.4: [0.5, 0.5]}}, diverged=(0.2, 1))
    table = validation(runs).set_index("learning_rate")
    assert table.diverged[0.2] == 1
    assert list(table.index[table.admissible]) == [0.1]


def test_ranks_perform_within_one_standard_error_of_the_best_rank() -> None:
    runs = clean({
        lora(1): {0.1: [0.80, 0.80], 0.2: [0.85, 0.85]},
        lora(8): {0.1: [0.90, 0.91], 0.2: [0.80, 0.80]},
        lora(64): {0.1: [0.90, 0.94], 0.2: [0.70, 0.70]},
    })  # fmt: skip
    assert performing(validation(runs)) == [8, 64]


def test_choices_hold_the_best_rate_first() -> None:
    table = validation(clean({FULL: {0.1: [0.90, 0.91], 0.2: [0.90, 0.94], 0.4: [0.1, 0.1]}}))
    rows = pd.DataFrame([{"learning_rate": r, "seed": s, "harm": r + s} for r in (0.1, 0.2, 0.4) for s in (1, 0)])
    found = choices(rows, table)
    assert list(found) == [0.2, 0.1]
    assert list(found[0.1]) == [0.1, 1.1]


def test_an_effect_runs_over_every_combination_and_leaves_out_arms_without_weight() -> None:
    seeds = pd.Series(np.random.default_rng(0).normal(size=6))
    one = {0.1: 1.2 * seeds + 1, 0.2: 1.1 * seeds + 2}
    other = {0.1: 0.9 * seeds, 0.2: seeds + 0.5, 0.4: seeds}
    effect = over_rates([one, other, {0.1: seeds * np.nan}], [1, -1, 0], "difference", "accuracy")
    assert len(effect.members) == 6
    assert effect.value == pytest.approx((one[0.1] - other[0.1]).mean())
    differences = [(a - b).mean() for a in one.values() for b in other.values()]
    assert (effect.lowest, effect.highest) == pytest.approx((min(differences), max(differences)))


def test_a_run_that_diverged_counts_as_a_guess() -> None:
    runs = pd.DataFrame({
        "clean_accuracy": [0.9, np.nan], "triggered_accuracy": [0.8, np.nan], "attack_success": [0.1, np.nan],
        "diverged": [0, 1],
    })  # fmt: skip
    filled = guessed(runs, 5)
    assert list(filled.clean_accuracy) == [0.9, 0.2]
    assert list(filled.attack_success) == [0.1, 0.2]
    assert runs.clean_accuracy.isna().sum() == 1  # the argument is left as it is
