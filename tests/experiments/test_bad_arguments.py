"""Every public function of the package answers a wrong argument with its name and what is allowed."""

import math
from itertools import repeat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import (
    adam,
    admissible,
    alignment,
    certificate,
    corpora,
    data,
    digits,
    family,
    order,
    poisoning,
    power,
    rate_curves,
    schedule,
    small_adapter,
    stacked,
    text,
    training,
)
from experiments.bert import Classifier
from experiments.config import Run, load_grid
from lorantk import LoRA, mlp

X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 0, 1, 0])
WRONG = torch.tensor([0, 1, 0, 1, 7])
MODEL = mlp([4, 3, 2]).double()
PAIR = alignment.Pair(torch.ones(1, 1), torch.ones(1, 1), {}, {}, torch.ones(1))
SCORES = pd.DataFrame({"clean_accuracy": [1.0], "triggered_accuracy": [1.0], "attack_success": [1.0], "diverged": [0]})
ARM = {0.1: pd.Series([1.0, 2.0])}


def steps(name="adamw", y=Y, learning_rate=0.1, steps=1):
    return adam.train(name, MODEL, X, y, learning_rate, steps)


def followed(name="sgd", checkpoints=(0,)):
    return certificate.follow(LoRA(2).attach(MODEL, 0), MODEL, repeat((X, Y)), X, (name, 0.1), checkpoints)


def plane(width=8, rank=1, dimension=1, variance=0.1, seeds=range(2)):
    return order.plane(width, [rank], [dimension], variance, seeds)


def descended(y=Y, loss="cross_entropy", learning_rate=0.1, steps=1):
    return training.gradient_descent(MODEL, X, y, loss, learning_rate=learning_rate, steps=steps)


CASES = {
    "optimizer, name": (lambda: adam.optimizer("adam", MODEL, 0.1), "name must be one of 'sgd', 'adamw'; got 'adam'"),
    "optimizer, rate": (lambda: adam.optimizer("sgd", MODEL, -1), "learning_rate must be finite and above 0"),
    "steps, name": (lambda: steps(name="x"), "name must be one of"),
    "steps, number": (lambda: steps(steps=-1), "steps must be at least 0; got -1"),
    "steps, labels": (lambda: steps(y=WRONG), "y must hold 5 class indices from 0 to 1"),
    "decrease, name": (lambda: adam.decrease("x", MODEL, X, Y, 0.1), "name must be one of"),
    "rules, rank": (lambda: adam.scale_rules([0], 8), "rank must be at least 1; got 0"),
    "rules, alpha": (lambda: adam.scale_rules([8], math.nan), "scaling must be finite and above 0"),
    "guessed, classes": (lambda: admissible.guessed(SCORES, 0), "classes must be at least 2; got 0"),
    "over rates, weights": (lambda: admissible.over_rates([ARM], [1, 2], "n", "u"), "weights must match the 1 arms"),
    "alignment, rank": (lambda: alignment.relative_alignment(MODEL, PAIR, 0, 1.0, 0), "rank must be at least 1"),
    "follow, rule": (lambda: followed("adam"), "name must be one of"),
    "follow, negative": (lambda: followed(checkpoints=[-1]), "checkpoints must be at least 0; got -1"),
    "follow, nothing": (lambda: followed(checkpoints=[]), "checkpoints must hold at least one step"),
    "digits, none": (lambda: data.digits(0), "n must be at least 1; got 0"),
    "digits, too many": (lambda: data.digits(5000), "n must be at most 1797, the number of digits; got 5000"),
    "digits, seed": (lambda: data.digits(10, -1), "seed must be at least 0; got -1"),
    "recorded, name": (lambda: data.recorded("nothing"), "name must be a table among"),
    "recorded, outside": (lambda: data.recorded("../../pyproject"), "name must be a table among"),
    "plane, width": (lambda: plane(width=0), "dimensions must be at most width = 0; got 1"),
    "plane, rank": (lambda: plane(rank=9), "rank must be at most the fan-in 8"),
    "plane, dimension": (lambda: plane(dimension=9), "dimensions must be at most width = 8; got 9"),
    "plane, variance": (lambda: plane(variance=-0.1), "variance must be finite and at least 0"),
    "plane, seeds": (lambda: plane(seeds=range(0)), "number of seeds must be at least 1; got 0"),
    "ideal case, widths": (lambda: order.ideal_case([4], 8, 0), "widths must be at least 8; got 4"),
    "ratio, layer": (lambda: order.gradient_ratio(MODEL, X, "no", X), "layer must be one of '0', '2'; got 'no'"),
    "ratio, A": (lambda: order.gradient_ratio(MODEL, X, "0", torch.ones(2, 5)), r"A must have shape \(rank, 4\)"),
    "victims, count": (lambda: poisoning.victims(Y, 9, 0), "count must be at most 5, the samples whose label can"),
    "victims, target": (lambda: poisoning.victims(Y, 4, 0, 1), "count must be at most 3"),
    "victims, half": (lambda: poisoning.victims(Y, 1.5, 0), "count must be an int; got 1.5"),
    "victims, seed": (lambda: poisoning.victims(Y, 1, -1), "seed must be at least 0; got -1"),
    "flipped, classes": (lambda: poisoning.flipped(Y, 1, 1, 0), "classes must be at least 2; got 1"),
    "flipped, labels": (lambda: poisoning.flipped(WRONG, 2, 1, 0), "labels must be from 0 to 1; got 0 to 7"),
    "detectable, std": (lambda: power.detectable(-1, 5), "std must be finite and above 0"),
    "detectable, seeds": (lambda: power.detectable(1, 1), "seeds must be at least 2; got 1"),
    "detectable, power": (lambda: power.detectable(1, 5, 2), "power must be between 0.05 and 1; got 2"),
    "negligible, margin": (lambda: power.power_negligible(1, 5, 0), "margin must be finite and above 0"),
    "plan, seeds": (lambda: power.plan(1), "seeds must be at least 2; got 1"),
    "descent, rate": (lambda: descended(learning_rate=0), "learning_rate must be finite and above 0"),
    "descent, steps": (lambda: descended(steps=1.5), "steps must be an int; got 1.5"),
    "descent, loss": (lambda: descended(loss="l1"), "loss must be one of 'cross_entropy', 'squared_error'"),
    "descent, labels": (lambda: descended(y=Y[:3]), "y must hold 5 class indices"),
    "sentences": (lambda: small_adapter.sentences(7), "opinion must be 0 or 1; got 7"),
    "stacked, nothing": (lambda: stacked.Stacked([], "full"), "number of networks must be at least 1; got 0"),
    "stacked, method": (lambda: stacked.Stacked([MODEL], "all"), "method must be one of 'full', 'lora'"),
    "batches": (lambda: digits.batches(0, 0, 1, 1), "n must be at least 1; got 0"),
    "trainer": (lambda: schedule.trainer("x"), "task must be one of 'digits'"),
    "processes": (lambda: next(schedule.side_by_side(abs, [1], 0)), "processes must be at least 1; got 0"),
    "jobs": (lambda: schedule.jobs([Run("digits")], 0), "size must be at least 1; got 0"),
    "doublings, level": (lambda: rate_curves.doublings(SCORES, 2.0, np.random.default_rng(0)), "level must be between"),
    "glue": (lambda: corpora.glue_corpus("no", {}), "name must be one of 'sst2'"),
    "package": (lambda: corpora.read("no"), "name must be one of 'minilm'"),
    "text task": (lambda: text.load("no"), "name must be one of 'spam'"),
    "pooling": (lambda: Classifier(None, 0, torch.Generator(), "max"), "pooling must be one of 'first', 'mean'"),
    "finetune, nothing": (lambda: digits.finetune([]), "runs must share"),
    "family, nothing": (lambda: family.decided([]), "p must be one or more values"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_argument_is_named(case):
    call, message = CASES[case]
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        call()


def test_a_key_that_stands_twice_in_a_grid_is_refused(tmp_path: Path):
    (tmp_path / "twice.yaml").write_text("block:\n  task: digits\n  seeds: 0-1\n  task: spam\n")
    with pytest.raises(ValueError, match=r"the key 'task' stands twice"):
        load_grid(tmp_path / "twice.yaml")
    (tmp_path / "blocks.yaml").write_text("block:\n  task: digits\nblock:\n  task: spam\n")
    with pytest.raises(ValueError, match=r"the key 'block' stands twice"):
        load_grid(tmp_path / "blocks.yaml")
