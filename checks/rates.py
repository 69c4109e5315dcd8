"""Chapter 9: the learning rates of A and B, and what a parametrisation makes of them. Claim ``ntk-constant-lora``.

Gradient descent at rate eta on B and eta / ratio on A is gradient descent at rate eta on sqrt(ratio) A with scaling
s / sqrt(ratio): s A and B's gradient stay as they are, A's part of the kernel is divided by the ratio.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from evidence.claims import disagreement
from experiments.kernel_changes import part_of_layers
from experiments.training import gradient_descent
from lorantk import Adapter, LayerFactors, LoRA, attach, mlp, ntk
from lorantk.layers import prefactor

from . import autograd, tolerance

LAYERS = ("2", "4")
"""Layers whose fan-in is the width."""

DOWN, UP = [f"{name}.down" for name in LAYERS], [f"{name}.up" for name in LAYERS]

VARIANCE = 2.0
"""Variance of the weights times fan-in."""

RATIOS = {"equal rates": 1.0, "B's 16 times A's": 16.0, "B's n/2 times A's": None}
"""Rate of B over rate of A; None for fan-in / `VARIANCE`, the n/2 at which training is that of NTK parametrisation."""

STEPS = 5
"""Steps after which the features are compared."""


def with_ratio(model: nn.Module, A: Mapping[str, Tensor], ratio: float | None) -> nn.Module:
    """The model with adapters that gradient descent at one rate trains as it would A and B at rates of this ratio.

    Parameters
    ----------
    model : nn.Module
    A : mapping of layer name to Tensor (r, fan_in)
        At scaling 1.
    ratio : float, optional
        Rate of B over rate of A; None for each layer's fan-in / `VARIANCE`.
    """
    adapters = {}
    for name, matrix in A.items():
        root = (matrix.shape[1] / VARIANCE if ratio is None else ratio) ** 0.5
        adapters[name] = Adapter(root * matrix, None, 1 / root)
    return attach(model, adapters)


def networks(seed: int, widths: Sequence[int], runs: int, rank: int, data: tuple[Tensor, Tensor]
             ) -> Iterator[tuple[int, int, nn.Module, dict[str, Tensor], Tensor]]:  # fmt: skip
    """Width, run, a network in standard parametrisation, PEFT's draw of A, and targets for the squared error.

    By these targets the loss derivatives at the start are those of outputs that favour no class: the networks differ in
    nothing else.
    """
    x, y = data
    for width, run in itertools.product(widths, range(runs)):
        model = mlp([64, width, width, 10], parametrization="standard", seed=seed + run).double()
        A = LoRA(rank, layers=LAYERS).sample(model, seed + run)
        yield width, run, model, A, model(x).detach() - 0.1 + nn.functional.one_hot(y, 10)


def kernel_of_A(seed: int, widths: Sequence[int], runs: int, rank: int, learning_rate: float,
                data: tuple[Tensor, Tensor]) -> pd.DataFrame:  # fmt: skip
    """A's part of the kernel over B's after one step, by layer factors, at equal rates and at n/2; by width and run."""
    rows = []
    for width, run, model, A, target in networks(seed, widths, runs, rank, data):
        for name in ("equal rates", "B's n/2 times A's"):
            start = with_ratio(model, A, RATIOS[name])
            after = gradient_descent(start, data[0], target, "squared_error", learning_rate=learning_rate)
            factors = LayerFactors.from_model(after, data[0], [*DOWN, *UP])
            own, other = (part_of_layers(factors, factors, layers).norm() for layers in (DOWN, UP))
            rows.append({"rates": name, "width": width, "run": run, "value": (own / other).item()})
    return pd.DataFrame(rows)


def features_moved(seed: int, widths: Sequence[int], runs: int, rank: int, learning_rate: float,
                   data: tuple[Tensor, Tensor]) -> pd.DataFrame:  # fmt: skip
    """How far A has moved the features A a of layer 2 after `STEPS` steps, relative to them; by width and run."""
    rows = []
    for width, run, model, A, target in networks(seed, widths, runs, rank, data):
        a = LayerFactors.from_model(model, data[0], ["2"]).activations["2"][:, 0]
        for name, ratio in RATIOS.items():
            start = with_ratio(model, A, ratio)
            end = gradient_descent(start, data[0], target, "squared_error", learning_rate=learning_rate, steps=STEPS)
            first, later = (m.get_parameter("2.down.weight").detach() @ a.T for m in (start, end))
            moved = (later - first).norm() / first.norm()
            rows.append({"rates": name, "width": width, "run": run, "value": moved.item()})
    return pd.DataFrame(rows)


def power_of_width(table: pd.DataFrame, rates: str) -> float:
    """Power of the width in the value at one ratio of the rates."""
    chosen = table[table.rates == rates]
    return tolerance.power(chosen.width, chosen.value)


def plain_power(seed: int, widths: Sequence[int], runs: int, lora: LoRA, parametrization: str, learning_rate: float,
                data: tuple[Tensor, Tensor]) -> float:  # fmt: skip
    """Power of the width in A's kernel over B's after one step at equal rates, by plain gradients."""
    x, y = data
    rows = []
    for width, run in itertools.product(widths, range(runs)):
        model = mlp([64, width, width, 10], parametrization=parametrization, seed=seed + run).double()
        target = model(x).detach() - 0.1 + nn.functional.one_hot(y, 10)  # as in `networks`
        start = lora.attach(model, seed + run)
        after = gradient_descent(start, x, target, "squared_error", learning_rate=learning_rate)
        own, other = (autograd.trace_kernel(after, x, layers).norm().item() for layers in (DOWN, UP))
        rows.append((width, own / other))
    return tolerance.power(*zip(*rows, strict=True))


def two_units(seed: int, width: int, rank: int, learning_rate: float, data: tuple[Tensor, Tensor]) -> float:
    """Difference of the kernels after ten steps: NTK parametrisation, and standard with ratio fan-in / `VARIANCE`.

    All layers are adapted; both networks compute one function, and s B A of one is s B A of the other.
    """
    scaled, standard = (mlp([64, width, width, 10], parametrization=p, seed=seed).double() for p in ("ntk", "standard"))
    A = LoRA(rank).sample(standard, seed)
    with torch.no_grad():
        for name in A:
            W = scaled.get_parameter(f"{name}.weight")
            standard.get_parameter(f"{name}.weight").copy_(prefactor(scaled.get_submodule(name)) * W)
    larger = {name: (matrix.shape[1] / VARIANCE) ** 0.5 * matrix for name, matrix in A.items()}
    ends = [gradient_descent(model, *data, learning_rate=learning_rate, steps=10)
            for model in (attach(scaled, larger), with_ratio(standard, A, None))]  # fmt: skip
    return disagreement(*(ntk(model, data[0], output="trace") for model in ends))
