"""Chapter 15: the order of the kernels on the data. Claim ``order-on-data``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor, nn

from evidence.claims import Claim, Evidence
from evidence.routes import measure
from experiments.data import digits, recorded
from experiments.order import by_layer, gradient_ratio, in_wide_layers, plane
from experiments.training import gradient_descent
from lorantk import LoRA, mlp, order_interval

from . import tolerance

LAYERS = ("0", "2", "4")


def trained(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """A network of standard parametrisation, trained on digits."""
    fresh = mlp([64, 256, 256, 10], parametrization="standard", seed=seed).double()
    return gradient_descent(fresh, x, y, learning_rate=0.2, steps=30)


def on_digits(model: nn.Module, x: Tensor, sizes: Sequence[int], rank: int, seeds: Sequence[int]) -> pd.DataFrame:
    """`by_layer` for several numbers of inputs, PEFT's variance."""
    loras = {name: LoRA(rank, f"{1 / 3}/n", layers=[name]) for name in LAYERS}
    return pd.concat([by_layer(model, x[:n], loras, seeds).assign(inputs=n) for n in sizes], ignore_index=True)


def sentences() -> pd.DataFrame:
    """The recorded tables of two pretrained encoders, made by `experiments.order_text` at rank 8."""
    tables = {"MiniLM": recorded("results/order-minilm"), "MPNet": recorded("results/order-mpnet")}
    return pd.concat([table.assign(encoder=name) for name, table in tables.items()], ignore_index=True)


def below_the_rule(table: pd.DataFrame, rank: int, reach: float) -> int:
    """Layers and draws in which the order ends before the rule of the data, widened by `reach` deviations."""
    floor = table.by_dimension / (1 + reach / (rank**0.5 + table.dimension**0.5))
    return int((table.measured < floor).sum())


def order_on_data(seed: int, width: int, constant: float, rank: int, cells: int, draws: int, widths: Sequence[int],
                  sizes: Sequence[int]) -> Claim:  # fmt: skip
    """The law in a plane of rank and dimension, in the poster's own limit, on digits and on sentences."""
    axis = np.unique(np.linspace(2, width, cells).round().astype(int)).tolist()
    seeds, (x, y) = range(seed, seed + draws), digits(64, seed)
    grid = measure(plane, width, axis, axis, constant / width, seeds)
    limit = measure(in_wide_layers, x[:48], widths, 0.5, constant, list(seeds)[:5])
    network = trained(x, y, seed)
    layers = measure(on_digits, network, x, sizes, rank, list(seeds)[:3])
    text = measure(sentences)
    g, reach = grid.value, tolerance.lipschitz(1e-6)
    error = tolerance.deviations() * (g.expected * (1 - g.expected) / draws).sum() ** 0.5 / len(g) + 0.02
    A, variance = LoRA(rank, f"{1 / 3}/n", layers=["2"]).sample(network, seed)["2"], 1 / (3 * 256)
    by_gradients = measure(gradient_ratio, network, x[:4], "2", A)
    low, high = (end**0.5 + sign * reach * variance**0.5
                 for sign, end in zip((-1, 1), order_interval(rank, 4, variance), strict=True))  # fmt: skip
    widest = max(widths)
    law, many = "A on the data's span is no r × d Gaussian matrix", "the rank competes with the width, not with d"
    tip = "plane: share of draws with the order − expected"
    return Claim(
        "order-on-data",
        [
            Evidence("plane: draws outside the interval by 5 deviations", measure(lambda t: t.outside.sum(), grid), 0,
                     0, law, "interval", miss=0.01),
            Evidence("digits, layer 2: largest ratio, by gradients", by_gradients, max(low, 0) ** 2, high**2, law,
                     "interval", miss=1e-5),
            Evidence(tip, measure(lambda t: t.share.mean() - t.expected.mean(), grid), -error, error, many, "order",
                     miss=1e-5),
            Evidence(f"poster's limit, n = {widest}, r = n/2: largest ratio, every draw", measure(
                lambda t: t[t.width == widest].measured.min() ** -2, limit), 0, 1, many, "order", miss=1e-5),
            Evidence("digits: layers and draws beyond the rule", measure(below_the_rule, layers, rank, reach), 0, 0,
                     many, "order", miss=1e-4),
            Evidence("digits, layer 2, at the scaling of the rule: largest ratio, by gradients", measure(
                lambda c: c / high**2, by_gradients), 0, 1, many, "order", miss=1e-5),
            Evidence("sentences: layers and draws beyond the rule", measure(below_the_rule, text, 8, reach), 0, 0,
                     "entries that are not Gaussian, or many positions, break it", "order"),
        ],
        tip,
        figure="order-plane",
        tables={"plane": grid.value, "limit": limit.value, "digits": layers.value},
    )  # fmt: skip
