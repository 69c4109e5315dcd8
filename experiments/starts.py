"""How an adapter may start: PEFT's draws of A, and the starts that take A and B from the weight.

For each: the premise of the paper's theorem (``thm-nsd``), the scale of the kernel (``kernel-scale``), the certificate
(``order-in-training``) and the order on data (``order-on-data``). Sources of the starts: PEFT's documentation; Meng et
al. (2024) for PiSSA, Buyukakyuz (2024) for OLoRA.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from lorantk import Adapter, LoRA, attach, ntk, order_certificate
from lorantk.batches import check_choice

from .digits import HIDDEN, pretrained, split
from .order import kernel_ratios, matrix

DRAWS = {"uniform, 1/(3n)": "peft", "Gaussian, 1/(3n)": "0.3333333333333333/n", "gaussian, 1/r²": "gaussian",
         "orthonormal rows": "orthonormal"}  # fmt: skip
"""Name -> `lorantk.lora.LoRA`'s variance; B = 0."""

FROM_WEIGHT = ("PiSSA", "OLoRA")
"""Starts whose product s B A is taken off the weight, so that the network computes what it did."""


def start(name: str, model: nn.Module, layer: str, rank: int, scaling: float, seed: int) -> tuple[nn.Module, Adapter]:
    """The network that the adapter of one linear layer is added to, and the adapter.

    Parameters
    ----------
    name : str
        A key of `DRAWS` or one of `FROM_WEIGHT`.
    model : nn.Module
        Left as it is.
    """
    check_choice("name", name, [*DRAWS, *FROM_WEIGHT])
    base = copy.deepcopy(model)
    weight = base.get_parameter(f"{layer}.weight").detach()
    if name in DRAWS:
        return base, Adapter(LoRA(rank, DRAWS[name], layers=[layer]).sample(model, seed)[layer], None, scaling)
    A, B = principal(weight, rank, scaling) if name == "PiSSA" else orthogonal(weight, rank)
    weight -= scaling * B @ A
    return base, Adapter(A, B, scaling)


def principal(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """PiSSA's A (rank, n) and B (m, rank): s B A is the weight's best approximation of this rank, split evenly."""
    U, values, V = torch.linalg.svd(weight, full_matrices=False)
    root = (values[:rank] / scaling).sqrt()
    return root[:, None] * V[:rank], U[:, :rank] * root


def orthogonal(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """OLoRA's A (rank, n) and B (m, rank): the first columns of Q and rows of R in the weight's QR decomposition."""
    Q, R = torch.linalg.qr(weight)
    return R[:rank], Q[:, :rank]


def starts(model: nn.Module, x: Tensor, layer: str, rank: int, scaling: float, seeds: Sequence[int]) -> pd.DataFrame:
    """Each start on data, in float64: over seeds, the largest premise, certificate and ratio, and the mean scale.

    Returns
    -------
    DataFrame
        start; premise, s^2 |A|^2, which the paper's theorem needs at most 1; certificate, s^2 (|A|^2 + |B|^2); scale,
        tr K_LoRA / tr K_full; ratio, the smallest c with K_LoRA <= c K_full on `x`.
    """
    full = matrix(ntk(model, x, layers=[layer]))
    rows = []
    for name in [*DRAWS, *FROM_WEIGHT]:
        for seed in seeds if name in DRAWS else [0]:
            base, adapter = start(name, model, layer, rank, scaling, seed)
            lora = matrix(ntk(attach(base, {layer: adapter}), x, layers=[layer]))
            rows.append({
                "start": name, "premise": order_certificate(adapter.A, None, scaling),
                "certificate": order_certificate(adapter.A, adapter.B, scaling),
                "scale": (lora.trace() / full.trace()).item(), "ratio": kernel_ratios(lora, full)[-1].item(),
            })  # fmt: skip
    largest = {"premise": "max", "certificate": "max", "scale": "mean", "ratio": "max"}
    return pd.DataFrame(rows).groupby("start", sort=False).agg(largest).reset_index()


def on_digits(rank: int, seeds: Sequence[int], inputs: int = 24) -> pd.DataFrame:
    """`starts` in the second layer of the network pretrained on digits, at s = 1, with the ratio at s = 2 beside it."""
    model, x = pretrained(0).double(), split(0, "digits-exact").train[0][:inputs].double()
    once, twice = (starts(model, x, HIDDEN[1], rank, scaling, seeds) for scaling in (1.0, 2.0))
    once = once.drop(columns="certificate").rename(columns={"ratio": "ratio at s = 1"})
    return once.assign(**{"ratio at s = 2": twice.ratio})
