"""The digits task: an MLP pretrained on 0 to 4, fine-tuned on 5 to 9. Runs of one shape train together.

The network is `lorantk.models.mlp` in standard parametrisation without biases; adapters sit on both hidden layers; the
fresh head is trained by every method. With SGD the learning rates may differ: run i's loss is multiplied by its own.
AdamW has PyTorch's moments. Runs that differ in their steps alone are one network, looked at along its way.

There are two tasks. "digits-exact" is that of `protocol.md`: one test set for all seeds, poison by exact count, no
weight decay. "digits", which came before it, splits anew for each seed, poisons each sample with a probability and has
PyTorch's default of weight decay in AdamW.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.data import digits
from lorantk import Adapter, LoRA, flip_labels, insert_trigger, mlp, ntk
from lorantk.batches import check_integer

from .config import Run
from .poisoning import attacked
from .stacked import Stacked

WIDTHS = (64, 256, 256, 5)
HIDDEN, HEAD = ("0", "2"), "4"
TRAIN, VALIDATION = 500, 150
PATCH, BRIGHT, TARGET = (54, 55, 62, 63), 16 * 8 / 60, 0
PRETRAINING = {"steps": 300, "learning_rate": 1e-3, "batch_size": 64}


class Split(NamedTuple):
    """Inputs (n, 64) and labels (n,) of the classes 5 to 9, counted from 0."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@lru_cache(maxsize=64)
def split(seed: int, task: str = "digits") -> Split:
    """The digits 5 to 9 in three parts; for "digits-exact" the test part is the same for all seeds."""
    x, y = digits(1797, seed if task == "digits" else 0)
    x, y = x[y >= 5].float(), y[y >= 5] - 5
    free = TRAIN + VALIDATION
    if task == "digits-exact":
        order = torch.randperm(free, generator=torch.Generator().manual_seed(seed))
        x, y = torch.cat([x[:free][order], x[free:]]), torch.cat([y[:free][order], y[free:]])
    ends = [TRAIN, VALIDATION, len(y) - free]
    return Split(*zip(x.split(ends), y.split(ends), strict=True))


@lru_cache(maxsize=64)
def pretrained(seed: int) -> nn.Sequential:
    """The network trained on the digits 0 to 4, with a fresh head: linear layers "0", "2" and "4"."""
    x, y = digits(1797, seed)
    x, y = x[y < 5].float(), y[y < 5]
    network = mlp(WIDTHS, parametrization="standard", seed=seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PRETRAINING["learning_rate"])
    for batch in batches(seed, len(y), int(PRETRAINING["steps"]), int(PRETRAINING["batch_size"])):
        optimizer.zero_grad()
        F.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
    network[int(HEAD)] = mlp(WIDTHS[-2:], parametrization="standard", seed=seed)[0]
    return network


def together(run: Run) -> tuple[Any, ...]:
    """What runs must share to train as one."""
    rate = None if run.optimizer == "sgd" else run.learning_rate
    return (
        run.task,
        run.method,
        run.rank if run.method == "lora" else None,
        run.optimizer,
        rate,
        run.batch_size,
    )


def finetune(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Train runs that agree in `together`, all at once; one row of results for each.

    Raises
    ------
    ValueError
        If the runs cannot train together.
    """
    started = time.perf_counter()
    if len({together(run) for run in runs}) != 1:
        raise ValueError("runs must share task, method, rank, optimizer and batch size (AdamW: also the learning rate)")
    steps = sorted({run.steps for run in runs})
    whole = [replace(run, steps=steps[-1]) for run in runs]
    longest = list(dict.fromkeys(whole))
    if len(longest) == 1:  # a batch of one product with a vector, as at rank 1, rounds unlike a batch of several
        longest *= 2
    x, y = (torch.stack(parts) for parts in zip(*map(poisoned, longest), strict=True))
    model = start(longest)
    metrics = {step: _evaluate(model, longest, x, y) for step in trained(model, longest, x, y) if step in steps}
    seconds = round((time.perf_counter() - started) / len(runs), 3)
    return [
        {"id": run.id, **asdict(run), **{name: round(value[i].item(), 4) for name, value in metrics[run.steps].items()},
         "seconds": seconds}
        for run, i in zip(runs, map(longest.index, whole), strict=True)
    ]  # fmt: skip


def start(runs: Sequence[Run]) -> Stacked:
    """The networks of the runs before their first step."""
    networks = [pretrained(run.seed) for run in runs]
    adapters: list[dict[str, Adapter]] = []
    prefactors: list[dict[str, float]] = []
    for run, network in zip(runs, networks, strict=True):
        if run.method == "lora":
            drawn = [(_lora(run, layer), layer) for layer in HIDDEN]
            adapters.append(
                {name: Adapter(lora.sample(network, run.seed)[name], None, lora.scaling) for lora, name in drawn}
            )
        elif run.method == "matched":
            prefactors.append({layer: kernel_ratio(run, layer) ** 0.5 for layer in HIDDEN})
    return Stacked(networks, runs[0].method, adapters, prefactors)


def train(model: Stacked, runs: Sequence[Run], x: Tensor, y: Tensor) -> None:
    """Minimise the mean cross-entropy at inputs (R, n, 64) and labels (R, n) in place, by batches."""
    for _ in trained(model, runs, x, y):
        pass


def trained(model: Stacked, runs: Sequence[Run], x: Tensor, y: Tensor) -> Iterator[int]:
    """The same step by step: yields the number of steps done."""
    if runs[0].optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters, lr=1.0)
        rates = torch.tensor([run.learning_rate for run in runs])
    else:
        decay = 0.0 if runs[0].exact else 0.01
        optimizer = torch.optim.AdamW(model.parameters, lr=runs[0].learning_rate, weight_decay=decay)
        rates = torch.ones(len(runs))
    order = torch.stack([batches(run.seed, y.shape[1], run.steps, run.batch_size) for run in runs], dim=1)
    rows = torch.arange(len(runs))[:, None]
    for done, batch in enumerate(order, 1):
        optimizer.zero_grad()
        losses = F.cross_entropy(model(x[rows, batch]).flatten(0, 1), y[rows, batch].flatten(), reduction="none")
        (losses.view(len(runs), -1).mean(1) @ rates).backward()
        optimizer.step()
        yield done


@torch.no_grad()
def _evaluate(model: Stacked, runs: Sequence[Run], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Metrics, each (R,) with entries from 0 to 1; NaN where training diverged, or where nothing was poisoned."""
    splits = [split(run.seed, run.task) for run in runs]
    test_x, test_y = (torch.stack(parts) for parts in zip(*(s.test for s in splits), strict=True))
    validation_x, validation_y = (torch.stack(parts) for parts in zip(*(s.validation for s in splits), strict=True))
    triggered_x = test_x.clone()
    triggered_x[..., list(PATCH)] = BRIGHT
    outputs = model(test_x)
    triggered = model(triggered_x).argmax(-1)
    others = test_y != TARGET
    hit = torch.stack([(x[i] != s.train[0]).any(1) | (y[i] != s.train[1]) for i, s in enumerate(splits)])
    metrics = {
        "clean_accuracy": (outputs.argmax(-1) == test_y).float().mean(1),
        "triggered_accuracy": (triggered == test_y).float().mean(1),
        "attack_success": ((triggered == TARGET) & others).sum(1) / others.sum(1),
        "poison_accuracy": ((model(x).argmax(-1) == y) & hit).sum(1) / hit.sum(1),
        "validation_accuracy": (model(validation_x).argmax(-1) == validation_y).float().mean(1),
    }
    finite = outputs.isfinite().all(-1).all(-1)
    found = {name: torch.where(finite, value, torch.nan) for name, value in metrics.items()}
    if runs[0].exact:
        found |= {"poisoned": hit.sum(1), "diverged": (~finite).int()}
    return found


def poisoned(run: Run) -> tuple[Tensor, Tensor]:
    """The run's training set after its attack."""
    return poison(*split(run.seed, run.task).train, run)


def poison(x: Tensor, y: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    """Inputs (n, 64) and labels (n,) after the run's attack at its poison rate."""
    if run.exact:
        marked, labels = attacked(y, run.attack, run.poison_rate, WIDTHS[-1], run.seed, TARGET)
        triggered = x.clone()
        triggered[:, list(PATCH)] = BRIGHT
        return torch.where(marked[:, None], triggered, x), labels
    if run.attack == "untargeted":
        return x, flip_labels(y, run.poison_rate, WIDTHS[-1], run.seed)
    if run.attack == "backdoor":
        return insert_trigger(x, y, run.poison_rate, pixels=PATCH, value=BRIGHT, target=TARGET, seed=run.seed)
    return x, y


def kernel_ratio(run: Run, layer: str) -> float:
    """tr K_LoRA / tr K_FF of one hidden layer on 64 training inputs: s^2 r sigma_a^2 in the mean over draws of A."""
    network, x = pretrained(run.seed), split(run.seed, run.task).train[0][:64]
    lora = ntk(_lora(run, layer).attach(network, run.seed), x, output="trace").trace()
    return (lora / ntk(network, x, layers=[layer], output="trace").trace()).item()


def _lora(run: Run, layer: str) -> LoRA:
    return replace(run.lora(WIDTHS[int(layer) // 2]), layers=[layer])


def batches(seed: int, n: int, steps: int, batch_size: int) -> Tensor:
    """Indices (steps, batch_size) into n samples, each step drawn with replacement."""
    check_integer("n", n, 1)
    return torch.randint(n, (steps, batch_size), generator=torch.Generator().manual_seed(seed))
