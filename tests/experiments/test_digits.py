"""Digit runs: networks trained together are the networks trained one by one, and a row says what it says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from experiments import digits
from experiments.config import Run
from lorantk import ntk

ADAPTER = {"rank": 8, "variance": "peft", "scaling": "2"}
METHODS: list[dict[str, Any]] = [
    {"method": "full"},
    {"method": "head"},
    {"method": "lora", **ADAPTER},
    {"method": "matched", **ADAPTER},
]


def runs_of(seeds: range, **fields: Any) -> list[Run]:
    common = {"task": "digits", "optimizer": "sgd", "learning_rate": 0.05, "steps": 20}
    return [Run(**common | fields, seed=seed) for seed in seeds]


def stacked_data(runs: list[Run]) -> list[torch.Tensor]:
    return [torch.stack(parts) for parts in zip(*map(digits.poisoned, runs), strict=True)]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["method"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_together_is_training_alone(method: dict[str, Any], optimizer: str) -> None:
    if method["method"] == "matched" and optimizer == "adamw":
        pytest.skip("matched is for SGD")
    runs = runs_of(range(1, 4), **method, optimizer=optimizer, learning_rate=0.05 if optimizer == "sgd" else 1e-3)
    model = digits.start(runs)
    alone = model.network(1)
    x = digits.split(2).test[0][:20]
    torch.testing.assert_close(model(torch.stack([x] * 3))[1], alone(x))
    digits.train(model, runs, *stacked_data(runs))
    chosen = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    one = chosen([p for p in alone.parameters() if p.requires_grad], lr=runs[1].learning_rate)
    inputs, labels = digits.poisoned(runs[1])
    for batch in digits.batches(runs[1].seed, len(labels), runs[1].steps, runs[1].batch_size):
        one.zero_grad()
        F.cross_entropy(alone(inputs[batch]), labels[batch]).backward()
        one.step()
    outputs = model(torch.stack([x] * 3))[1]
    torch.testing.assert_close(outputs, alone(x), rtol=1e-3, atol=1e-3)  # float32 round-off over 20 steps
    torch.testing.assert_close(outputs, model.network(1)(x))


def test_matched_kernel_has_the_trace_of_the_adapters() -> None:
    run = runs_of(range(1), **METHODS[3])[0]
    lora = runs_of(range(1), **METHODS[2])[0]
    x = digits.split(run.seed).train[0][:64]
    for layer in digits.HIDDEN:
        matched = ntk(digits.start([run]).network(0), x, layers=[layer], output="trace").trace()
        adapters = ntk(digits.start([lora]).network(0), x, layers=[f"{layer}.up"], output="trace").trace()
        torch.testing.assert_close(matched, adapters, rtol=1e-4, atol=0.0)


def test_rows_are_the_same_in_any_company() -> None:
    runs = runs_of(range(3), method="full", attack="backdoor", poison_rate=0.05)
    together, alone = digits.finetune(runs), digits.finetune(runs[1:2])
    drop = lambda row: {key: value for key, value in row.items() if key != "seconds"}  # noqa: E731
    assert drop(together[1]) == drop(alone[0])
    assert together[0]["clean_accuracy"] > 0.5  # 20 steps are enough to leave chance, 0.2


def test_steps_of_one_network_are_the_runs_that_end_there() -> None:
    attack = {"attack": "untargeted", "poison_rate": 0.3, "optimizer": "adamw", "learning_rate": 3e-3}
    for method in METHODS[0], METHODS[2]:
        short, long = (exact(range(2), **method, **attack, steps=steps) for steps in (7, 20))
        along = digits.finetune([*short, *long])
        alone = [*digits.finetune(short), *digits.finetune(long)]
        assert [row | {"seconds": 0} for row in along] == [row | {"seconds": 0} for row in alone]


def test_rank_1_at_a_rate_that_amplifies_rounding_is_the_same_in_any_company() -> None:
    adapter = ADAPTER | {"method": "lora", "rank": 1, "scaling": "1"}
    attack = {"attack": "backdoor", "poison_rate": 0.016}
    runs = exact(range(3), **adapter, **attack, optimizer="adamw", learning_rate=0.1, steps=100)
    together, alone = digits.finetune(runs), digits.finetune(runs[1:2])
    assert alone[0] | {"seconds": 0} == together[1] | {"seconds": 0}


def test_attacks_touch_the_share_they_name_and_pairs_share_their_data() -> None:
    clean = digits.split(0).train
    for attack in ("untargeted", "backdoor"):
        full, lora = (runs_of(range(1), **m, attack=attack, poison_rate=0.3)[0] for m in (METHODS[0], METHODS[2]))
        x, y = digits.poisoned(full)
        other_x, other_y = digits.poisoned(lora)
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
        touched = ((x != clean[0]).any(1) | (y != clean[1])).float().mean().item()
        assert abs(touched - 0.3) < 4 * math.sqrt(0.3 * 0.7 / len(y))


@pytest.mark.parametrize(("answer", "success"), [("right", 0.0), ("target", 1.0)])
def test_attack_success_counts_inputs_of_other_classes_only(answer: str, success: float) -> None:
    run = runs_of(range(1), method="full", attack="backdoor", poison_rate=0.3)[0]
    labels = digits.split(0).test[1]

    def model(x: torch.Tensor) -> torch.Tensor:
        known = labels if x.shape[1] == len(labels) and answer == "right" else torch.full(x.shape[1:2], digits.TARGET)
        return F.one_hot(known, digits.WIDTHS[-1])[None].double()

    metrics = digits._evaluate(model, [run], *stacked_data([run]))  # type: ignore[arg-type]
    assert metrics["attack_success"].item() == success


def test_divergence_is_not_a_number() -> None:
    row = digits.finetune(runs_of(range(1), method="full", learning_rate=1e4))[0]
    assert math.isnan(row["clean_accuracy"])
    assert math.isnan(row["attack_success"])


# digits-exact


def exact(seeds: range, **fields: Any) -> list[Run]:
    return runs_of(seeds, task="digits-exact", **fields)


def test_all_seeds_share_one_test_set_and_nothing_else_is_in_it() -> None:
    images = {
        seed: [set(map(tuple, part[0].tolist())) for part in digits.split(seed, "digits-exact")] for seed in range(4)
    }
    train, validation, test = images[0]
    assert [len(train), len(validation)] == [digits.TRAIN, digits.VALIDATION]
    for seed, (other_train, other_validation, other_test) in images.items():
        assert other_test == test
        assert not (other_train | other_validation) & test
        assert not other_train & other_validation
        assert (other_train == train) == (seed == 0)


@pytest.mark.parametrize("count", [3, 8, 20])
def test_a_dose_is_a_count_of_changed_labels(count: int) -> None:
    run = exact(range(1), method="full", attack="backdoor", poison_rate=count / digits.TRAIN)[0]
    (clean_x, clean_y), (x, y) = digits.split(0, "digits-exact").train, digits.poisoned(run)
    changed = y != clean_y
    assert int(changed.sum()) == count
    assert torch.equal((x != clean_x).any(1), changed)
    assert bool((y[changed] == digits.TARGET).all())
    assert bool((x[changed][:, list(digits.PATCH)] == digits.BRIGHT).all())


def test_an_exact_row_counts_its_poison_and_says_whether_it_diverged() -> None:
    flips = digits.finetune(exact(range(2), method="head", attack="untargeted", poison_rate=0.3))
    assert [row["poisoned"] for row in flips] == [150, 150]
    assert [row["diverged"] for row in flips] == [0, 0]
    assert 0 < flips[0]["poison_accuracy"] < 1
    lost = digits.finetune(exact(range(1), **METHODS[2], learning_rate=1e4))[0]
    assert lost["diverged"] == 1
    assert math.isnan(lost["clean_accuracy"])


def test_exact_runs_repeat_themselves_in_any_company_and_on_any_number_of_threads() -> None:
    runs = exact(range(3), **METHODS[2], attack="backdoor", poison_rate=0.016, optimizer="adamw", learning_rate=3e-3)
    x, y = stacked_data(runs)
    model = digits.start(runs)
    digits.train(model, runs, x, y)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = digits.start(runs[1:2])
        digits.train(alone, runs[1:2], x[1:2], y[1:2])
    finally:
        torch.set_num_threads(threads)
    for together, one in zip(model.parameters, alone.parameters, strict=True):
        assert torch.equal(together[1], one[0])


def test_adamw_does_not_decay_the_weights_of_exact_runs() -> None:
    """A weight without a gradient moves by its decay alone: here one whose input pixel is dark in every image."""
    moved = {}
    for task in ("digits", "digits-exact"):
        run = runs_of(range(1), task=task, method="full", optimizer="adamw", learning_rate=0.01)[0]
        model = digits.start([run])
        before = model.weights["0"].detach().clone()
        x, y = stacked_data([run])
        dark = (x[0] == 0).all(0)
        assert bool(dark.any())
        digits.train(model, [run], x, y)
        moved[task] = (model.weights["0"].detach() - before)[0][:, dark].abs().max().item()
    assert moved["digits-exact"] == 0.0
    assert moved["digits"] > 0.0


def test_runs_that_differ_do_not_train_together() -> None:
    with pytest.raises(ValueError, match="must share task, method, rank"):
        digits.finetune([*runs_of(range(1), method="full"), *runs_of(range(1), method="head")])
