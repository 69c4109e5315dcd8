"""How far LoRA's kernel at B = 0 is from full fine-tuning's on given data, one layer at a time.

Statement ``order-on-data``. For a draw A and data x, the smallest c with K_LoRA <= c K_full is measured at s = 1 and
set beside the two rules for it: (sqrt(r) + sqrt(d))^2 sigma^2, d the dimension of the layer's activations over the
data, and the rule of M, which has the fan-in n in place of d. The order holds up to s = 1 / sqrt(c).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lorantk import LayerFactors, LoRA, delta_matrix, mlp, ntk, order_interval
from lorantk.batches import Batch, call, check_choice, check_integer
from lorantk.grams import gram
from lorantk.layers import adaptable_layers, fans
from lorantk.spectra import nsd_probability

RTOL = 1e-10
"""Eigenvalues of a full kernel below this share of its largest count as 0; singular values below its square root."""


def matrix(kernel: Tensor) -> Tensor:
    """A kernel (n, C, n, C) as a matrix (n C, n C)."""
    return kernel.flatten(2).flatten(0, 1)


def kernel_ratios(lora: Tensor, full: Tensor) -> Tensor:
    """Eigenvalues of `lora` relative to `full` on the range of `full`, ascending: c- and c+ are its ends.

    Parameters
    ----------
    lora, full : Tensor (k, k)
        Symmetric, positive semi-definite, float64.

    Raises
    ------
    ValueError
        If `lora` reaches outside the range of `full`: then no c is large enough.
    """
    values, vectors = torch.linalg.eigh(full)
    kept = values > RTOL * values[-1]
    outside = vectors[:, ~kept]
    if (outside.T @ lora @ outside).norm() > 100 * RTOL * lora.norm():
        raise ValueError("lora must vanish where full does; it reaches outside the range of full")
    root = vectors[:, kept] / values[kept].sqrt()
    return torch.linalg.eigvalsh(root.T @ lora @ root)


def gradient_ratio(model: nn.Module, x: Tensor, layer: str, A: Tensor) -> float:
    """The largest of `kernel_ratios` for one layer, without a kernel: sup |G A^T|^2 / |G|^2 over combined gradients.

    G runs over the span of the gradients of all outputs by the layer's weight, by autograd one output at a time.

    Parameters
    ----------
    model : nn.Module
    x : Tensor (n, ...)
    layer : str
        A linear layer whose output is weight times input (standard parametrisation).
    A : Tensor (rank, fan_in)
    """
    check_choice("layer", layer, adaptable_layers(model))
    weight = model.get_parameter(f"{layer}.weight")
    if A.shape[1:] != weight.shape[1:]:
        raise ValueError(f"A must have shape (rank, {weight.shape[1]}); got {tuple(A.shape)}")
    outputs = call(model, x).flatten()
    rows = [torch.autograd.grad(o, weight, retain_graph=True)[0].flatten() for o in outputs]
    _, sizes, basis = torch.linalg.svd(torch.stack(rows), full_matrices=False)
    basis = basis[sizes > RTOL**0.5 * sizes[0]]
    through = (basis.unflatten(1, weight.shape) @ A.T).flatten(1)
    return float(torch.linalg.matrix_norm(through, 2)) ** 2


def span(factors: LayerFactors, layer: str) -> Tensor:
    """Orthonormal rows (d, fan_in): the span of a layer's activations, over the positions that reach an output."""
    reached = factors.cotangents[layer].abs().amax(dim=(1, 3)) > 0
    _, sizes, rows = torch.linalg.svd(factors.activations[layer][reached], full_matrices=False)
    return rows[sizes > RTOL**0.5 * sizes[0]]


def plane(width: int, ranks: Sequence[int], dimensions: Sequence[int], variance: float, seeds: range) -> pd.DataFrame:
    """Shares of draws in which K_LoRA <= K_full, for d Gaussian inputs of one linear layer with `width` inputs.

    Returns
    -------
    DataFrame
        rank, dimension, share, expected (of the share, by the law of Tracy and Widom with d in place of n); largest
        and smallest, means over the draws of the ends of `kernel_ratios`; high and low, their `order_interval`;
        outside, how many draws leave it by more than 5 deviations, which has probability 4e-6 each at most.
    """
    check_integer("number of seeds", len(seeds), 1)
    for d in dimensions:
        check_integer("dimensions", d, 1)
        if d > width:
            raise ValueError(f"dimensions must be at most width = {width}; got {d}")
    model = mlp([width, 1], parametrization="standard").double()
    inputs = {
        d: [torch.randn(d, width, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
        for d in dimensions
    }
    full = {d: [matrix(ntk(model, x, layers=["0"])) for x in batches] for d, batches in inputs.items()}
    rows = []
    for r in ranks:
        lora = LoRA(r, variance, layers=["0"])
        for d in dimensions:
            ends = []
            for seed, x, whole in zip(seeds, inputs[d], full[d], strict=True):
                ratios = kernel_ratios(matrix(ntk(lora.attach(model, seed), x, layers=["0"])), whole)
                ends.append((ratios[0].item(), ratios[-1].item()))
            smallest, largest = np.array(ends).T
            low, high = order_interval(r, d, variance)
            reach = 5 * variance**0.5
            floor = max(0.0, low**0.5 - reach) ** 2  # at 0 there is nothing to check
            outside = (largest > (high**0.5 + reach) ** 2) | ((floor > 0) & (smallest < floor))
            rows.append(
                {"rank": r, "dimension": d, "share": (largest <= 1).mean(),
                 "expected": nsd_probability(min(r, d), max(r, d), variance), "smallest": smallest.mean(),
                 "largest": largest.mean(), "low": low, "high": high, "outside": outside.sum()}
            )  # fmt: skip
    return pd.DataFrame(rows)


def ideal_case(widths: Sequence[int], subspace: int, seed: int) -> pd.DataFrame:
    """M at r = n and variance 1/n, for growing n: its norm and what it does on data.

    Returns
    -------
    DataFrame
        width; operator_norm and largest_entry of M, means over 3 draws; one_value, root mean square of x . M x' / n
        for two fixed vectors of norm sqrt(n); supremum, mean of the largest |x . M x| / |x|^2 over a fixed subspace of
        dimension `subspace`; both over 40 draws or more.
    """
    rows = []
    for n in widths:
        check_integer("widths", n, subspace)
        generator = torch.Generator().manual_seed(seed)
        pair, others = (torch.randn(k, n, generator=generator, dtype=torch.float64) for k in (2, subspace))
        first, second = nn.functional.normalize(pair) * n**0.5
        Q, model = torch.linalg.qr(others.T).Q, mlp([n, 1]).double()
        values: dict[str, list[float]] = {"norm": [], "entry": [], "form": [], "sup": []}
        for draw in range(max(40, min(200, 20000 // n))):
            A = LoRA(n, "1/n").sample(model, seed + draw)["0"]
            values["form"].append(((A @ first) @ (A @ second) - first @ second).item() / n)
            values["sup"].append((torch.linalg.svdvals(A @ Q).square() - 1).abs().max().item())
            if draw < 3:
                M = delta_matrix(A)
                values["norm"].append(torch.linalg.eigvalsh(M)[-1].item())
                values["entry"].append(M.abs().max().item())
        rows.append(
            {"width": n, "operator_norm": np.mean(values["norm"]), "largest_entry": np.mean(values["entry"]),
             "one_value": np.sqrt(np.mean(np.square(values["form"]))), "supremum": np.mean(values["sup"])}
        )  # fmt: skip
    return pd.DataFrame(rows)


def in_wide_layers(
    x: Tensor, widths: Sequence[int], ratio: float, constant: float, seeds: Sequence[int]
) -> pd.DataFrame:
    """`by_layer` in the last layer of networks of growing width n, with rank ratio * n and variance constant / n."""
    tables = []
    for n in widths:
        model = mlp([x.shape[1], n, 1], parametrization="standard").double()
        table = by_layer(model, x, {"2": LoRA(int(ratio * n), f"{constant}/n", layers=["2"])}, seeds)
        tables.append(table.assign(width=n))
    return pd.concat(tables, ignore_index=True)


def by_layer(model: nn.Module, x: Batch, loras: Mapping[str, LoRA], seeds: Sequence[int]) -> pd.DataFrame:
    """Largest scaling at which the order holds, layer by layer: measured, by the data's dimension and by M.

    Parameters
    ----------
    model : nn.Module
        Of any precision: its factors are taken as they are, and multiplied in float64.
    x : Tensor (n, ...) or mapping of Tensor
    loras : mapping of layer name to LoRA
        The draw of A in each layer; its scaling plays no part.
    seeds : sequence of int
        Draws of A.

    Returns
    -------
    DataFrame
        A row a layer and seed: layer, seed, fan_in, dimension, mean_scale (mean of K_LoRA / K_full in trace),
        measured, by_span (A on the activations' span), by_dimension, by_matrix (A itself), by_edge (rule of M).
    """
    rows, every = [], LayerFactors.from_model(model, x, list(loras))
    for name, module in adaptable_layers(model, list(loras)).items():
        factors, lora, fan_in = _double(every, name), loras[name], fans(module)[0]
        full, directions, variance = matrix(gram(factors, factors)), span(factors, name), lora.entry_variance(fan_in)
        for seed in seeds:
            A = lora.sample(model, seed)[name].double()
            adapted = factors.project({name: A})
            kernel = matrix(gram(adapted, adapted))
            bounds = {
                "measured": kernel_ratios(kernel, full)[-1].item(),
                "by_span": torch.linalg.matrix_norm(A @ directions.T, 2).item() ** 2,
                "by_dimension": order_interval(lora.rank, len(directions), variance)[1],
                "by_matrix": torch.linalg.matrix_norm(A, 2).item() ** 2,
                "by_edge": order_interval(lora.rank, fan_in, variance)[1],
            }
            scale = (kernel.trace() / full.trace()).item()
            row = {"layer": name, "seed": seed, "fan_in": fan_in, "dimension": len(directions), "mean_scale": scale}
            rows.append(row | {rule: c**-0.5 for rule, c in bounds.items()})
    return pd.DataFrame(rows)


def _double(factors: LayerFactors, layer: str) -> LayerFactors:
    """The same numbers of one layer in float64."""
    activations, cotangents = factors.activations[layer].double(), factors.cotangents[layer].double()
    kinds = {layer: factors.kinds[layer]}
    return LayerFactors(factors.outputs.double(), {layer: activations}, {layer: cotangents}, kinds)
