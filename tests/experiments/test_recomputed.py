"""Effects of the first grid once more, from the rows of its CSV by another route: no pandas, none of our functions."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from statistics import fmean, stdev
from typing import Any

import pytest
from scipy.stats import ttest_1samp

from evidence.findings import Member
from experiments.config import RESULTS
from experiments.data import recorded
from experiments.identified import findings_of_grid

Arm = tuple[str, str]
Runs = dict[tuple[str, Arm, str, str, str], dict[int, dict[str, str]]]
"""(optimizer, (method, rank), learning rate, attack, poison rate) -> seed -> row."""

OPTIMIZERS = {"SGD": "sgd", "AdamW": "adamw"}


@pytest.fixture(scope="module")
def runs() -> Runs:
    found: Runs = defaultdict(dict)
    with (RESULTS / "digits-exact.csv").open() as stream:
        for row in csv.DictReader(stream):
            other = row["steps"] != "300" or row["poison_rate"] in ("0.2", "0.4")  # the grid of memorisation
            if int(row["seed"]) < 20 and row["variance"] in ("", "peft") and not other:
                arm = row["method"], row["rank"]
                key = row["optimizer"], arm, row["learning_rate"], row["attack"], row["poison_rate"]
                found[key][int(row["seed"])] = row
    return found


@pytest.fixture(scope="module")
def members() -> dict[tuple[str, str, str], Member]:
    table = recorded("results/digits-exact").query("steps == 300 and poison_rate not in (0.2, 0.4)")
    grid = table[(table.seed < 20) & ~table.variance.str.endswith("/n", na=False)]
    return {(m.finding, m.half, m.setting): m for m in findings_of_grid(grid)}


def number(row: dict[str, str], column: str, default: float) -> float:
    return float(row[column]) if row[column] else default


def admissible(runs: Runs, optimizer: str, arm: Arm) -> list[str]:
    """Learning rates within one standard error of the best mean validation accuracy, the best one first."""
    scores = {
        key[2]: [number(row, "validation_accuracy", 0.0) for row in rows.values()]
        for key, rows in runs.items()
        if key[0] == optimizer and key[1] == arm and key[3] == "none"
    }
    best = max(scores, key=lambda rate: (round(fmean(scores[rate]), 6), -float(rate)))
    least = round(fmean(scores[best]), 6) - stdev(scores[best]) / math.sqrt(len(scores[best]))
    good = [rate for rate, values in scores.items() if round(fmean(values), 6) >= least - 1e-12]
    return sorted(good, key=lambda rate: rate != best)


def harm(runs: Runs, optimizer: str, arm: Arm, rate: str, attack: str, dose: str) -> dict[int, float]:
    column, sign = ("clean_accuracy", -1) if attack == "untargeted" else ("attack_success", 1)
    attacked, clean = (runs[optimizer, arm, rate, *what] for what in ((attack, dose), ("none", "0.0")))
    return {s: sign * (number(attacked[s], column, 0.2) - number(clean[s], column, 0.2)) for s in attacked}


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize(
    ("half", "attack", "dose", "samples"),
    [
        ("flips", "untargeted", "0.3", "150"),
        ("backdoor", "backdoor", "0.016", "8"),
        ("backdoor", "backdoor", "0.04", "20"),
    ],
)
@pytest.mark.parametrize(
    ("finding", "plus", "minus"),
    [("finding-1", ("full", ""), ("lora", "8")), ("finding-2", ("lora", "64"), ("lora", "1"))],
)
def test_an_effect_and_its_range_are_those_of_the_rows(
    runs: Runs, members: dict[tuple[str, str, str], Member], optimizer: str, half: str, attack: str, dose: str,
    samples: str, finding: str, plus: Arm, minus: Arm,
) -> None:  # fmt: skip
    effect, name = members[finding, half, f"{optimizer}, {samples} of 500"].effect, OPTIMIZERS[optimizer]
    sign = -1 if half == "flips" else 1
    tests: list[Any] = []
    for one in admissible(runs, name, plus):
        for other in admissible(runs, name, minus):
            more, less = harm(runs, name, plus, one, attack, dose), harm(runs, name, minus, other, attack, dose)
            tests.append(ttest_1samp([sign * (more[s] - less[s]) for s in sorted(more)], 0.0))
    ends = [test.confidence_interval(0.95) for test in tests]
    values = [(end.low + end.high) / 2 for end in ends]
    assert effect.n == 20
    assert effect.value == pytest.approx(values[0], abs=1e-12)
    assert (effect.lowest, effect.highest) == pytest.approx((min(values), max(values)), abs=1e-12)
    assert effect.low == pytest.approx(min(end.low for end in ends))
    assert effect.high == pytest.approx(max(end.high for end in ends))
    assert effect.p_above() == pytest.approx(max(p / 2 if t > 0 else 1 - p / 2 for t, p in tests))
