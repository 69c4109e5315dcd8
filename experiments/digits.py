"""Digits at the desk: an MLP pretrained on 0 to 4, fine-tuned on 5 to 9. Runs of one shape train together.

Parameters of R runs are stacked, (R, fan_out, fan_in), and every product is one batched matrix product. With SGD the
learning rates may differ: run i's loss is multiplied by its own rate. The network is `lorantk.mlp` in standard
parametrisation without biases; adapters sit on both hidden layers; the fresh head is trained by every method.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorantk import flip_labels, insert_trigger, lora_ntk_sweep, mlp, ntk
from lorantk.data import digits

from .config import Run

WIDTHS = (64, 256, 256, 5)
TRAIN, VALIDATION = 500, 150
PATCH, BRIGHT, TARGET = (54, 55, 62, 63), 16 * 8 / 60, 0
PRETRAINING = {"steps": 300, "learning_rate": 1e-3, "batch_size": 64}


class Split(NamedTuple):
    """Inputs (n, 64) and labels (n,) of the classes 5 to 9, counted from 0."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@lru_cache(maxsize=64)
def split(seed: int) -> Split:
    """The digits 5 to 9 in the order of this seed, in three parts."""
    x, y = digits(1797, seed)
    x, y = x[y >= 5].float(), y[y >= 5] - 5
    ends = [TRAIN, VALIDATION, len(y) - TRAIN - VALIDATION]
    return Split(*zip(x.split(ends), y.split(ends), strict=True))


@lru_cache(maxsize=64)
def pretrained(seed: int) -> nn.Sequential:
    """The network trained on the digits 0 to 4, with a fresh head: linear layers "0", "2" and "4"."""
    x, y = digits(1797, seed)
    x, y = x[y < 5].float(), y[y < 5]
    network = mlp(WIDTHS, parametrization="standard", seed=seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PRETRAINING["learning_rate"])
    for batch in _batches(seed, len(y), int(PRETRAINING["steps"]), int(PRETRAINING["batch_size"])):
        optimizer.zero_grad()
        F.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
    network[4] = mlp(WIDTHS[-2:], parametrization="standard", seed=seed)[0]
    return network


def together(run: Run) -> tuple[Any, ...]:
    """What runs must share to train as one."""
    method = "full" if run.method == "matched" else run.method
    rate = None if run.optimizer == "sgd" else run.learning_rate
    return method, run.rank if method == "lora" else None, run.optimizer, rate, run.steps, run.batch_size


def finetune(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Train runs that agree in `together`, all at once; one row of results for each.

    Raises
    ------
    ValueError
        If the runs cannot train together.
    """
    started = time.perf_counter()
    if len({together(run) for run in runs}) != 1:
        raise ValueError("runs must share method, rank, optimizer, steps and batch size (AdamW: also the rate)")
    splits = [split(run.seed) for run in runs]
    data = [poisoned(run) for run in runs]
    x, y = (torch.stack(parts) for parts in zip(*data, strict=True))
    model = Stacked(runs)
    sgd = runs[0].optimizer == "sgd"
    rates = torch.tensor([effective_rate(run) for run in runs]) if sgd else torch.ones(len(runs))
    parameters = list(model.trainable.values())
    optimizer = torch.optim.SGD(parameters, lr=1.0) if sgd else torch.optim.AdamW(parameters, lr=runs[0].learning_rate)
    order = torch.stack([_batches(run.seed, TRAIN, run.steps, run.batch_size) for run in runs], dim=1)
    rows = torch.arange(len(runs))[:, None]
    for batch in order:
        optimizer.zero_grad()
        losses = F.cross_entropy(model(x[rows, batch]).flatten(0, 1), y[rows, batch].flatten(), reduction="none")
        (losses.view(len(runs), -1).mean(1) @ rates).backward()
        optimizer.step()
    with torch.no_grad():
        predict = lambda inputs: model(inputs).argmax(-1)  # noqa: E731
        test_x, test_y = (torch.stack(p) for p in zip(*(s.test for s in splits), strict=True))
        validation_x, validation_y = (torch.stack(p) for p in zip(*(s.validation for s in splits), strict=True))
        triggered_x = test_x.clone()
        triggered_x[..., list(PATCH)] = BRIGHT
        clean, triggered, trained = predict(test_x), predict(triggered_x), predict(x)
        hit = torch.stack([(a != s.train[0]).any(1) | (b != s.train[1]) for (a, b), s in zip(data, splits, strict=True)])
        others = test_y != TARGET
        metrics = {
            "clean_accuracy": (clean == test_y).float().mean(1),
            "triggered_accuracy": (triggered == test_y).float().mean(1),
            "attack_success": ((triggered == TARGET) & others).sum(1) / others.sum(1),
            "poison_accuracy": ((trained == y) & hit).sum(1) / hit.sum(1),
            "validation_accuracy": (predict(validation_x) == validation_y).float().mean(1),
        }
    seconds = (time.perf_counter() - started) / len(runs)
    return [
        {"id": run.id, **asdict(run), **{k: round(v[i].item(), 4) for k, v in metrics.items()}, "seconds": seconds}
        for i, run in enumerate(runs)
    ]


def poisoned(run: Run) -> tuple[Tensor, Tensor]:
    """The run's training set after its attack."""
    x, y = split(run.seed).train
    if run.attack == "untargeted":
        return x, flip_labels(y, run.poison_rate, WIDTHS[-1], run.seed)
    if run.attack == "backdoor":
        return insert_trigger(x, y, run.poison_rate, pixels=PATCH, value=BRIGHT, target=TARGET, seed=run.seed)
    return x, y


def effective_rate(run: Run) -> float:
    """The learning rate; for "matched" times tr K_LoRA / tr K_FF over the adapted layers, on 64 training inputs."""
    if run.method != "matched":
        return run.learning_rate
    network, x = pretrained(run.seed), split(run.seed).train[0][:64]
    traces = [
        lora_ntk_sweep(network, x, loras=[_layer_lora(run, i)], seeds=[run.seed], output="trace").diagonal(dim1=-2, dim2=-1)
        for i in (0, 1)
    ]
    full = ntk(network, x, layers=["0", "2"], output="trace").diagonal()
    return run.learning_rate * (sum(t.sum().item() for t in traces) / full.sum().item())


def _layer_lora(run: Run, index: int) -> Any:
    from dataclasses import replace

    return replace(run.lora(WIDTHS[index]), layers=[str(2 * index)])


class Stacked:
    """Networks of one shape, their parameters stacked along the first axis."""

    def __init__(self, runs: Sequence[Run]) -> None:
        networks = [pretrained(run.seed) for run in runs]
        self.weights = [torch.stack([n[i].weight.detach() for n in networks]) for i in (0, 2, 4)]
        self.trainable = {"head": self.weights[2]}
        self.adapters: list[tuple[Tensor, Tensor]] = []
        if runs[0].method in ("full", "matched"):
            self.trainable |= {"0": self.weights[0], "2": self.weights[1]}
        elif runs[0].method == "lora":
            self.scaling = torch.tensor([run.lora().scaling for run in runs])[:, None, None]
            for i in (0, 1):
                draws = [_layer_lora(run, i).sample(n, run.seed)[str(2 * i)] for run, n in zip(runs, networks, strict=True)]
                A = torch.stack(draws)
                B = torch.zeros(len(runs), WIDTHS[i + 1], A.shape[1])
                self.adapters.append((A, B))
                self.trainable |= {f"A{i}": A, f"B{i}": B}
        for parameter in self.trainable.values():
            parameter.requires_grad_()

    def __call__(self, a: Tensor) -> Tensor:
        """Outputs (R, n, 5) at inputs (R, n, 64)."""
        for i, weight in enumerate(self.weights):
            z = torch.bmm(a, weight.mT)
            if i < len(self.adapters):
                A, B = self.adapters[i]
                z = torch.baddbmm(z, self.scaling * torch.bmm(a, A.mT), B.mT)
            a = z.relu() if i < len(self.weights) - 1 else z
        return a


def _batches(seed: int, n: int, steps: int, batch_size: int) -> Tensor:
    """Indices (steps, batch_size) into n samples, each step drawn with replacement."""
    return torch.randint(n, (steps, batch_size), generator=torch.Generator().manual_seed(seed))
