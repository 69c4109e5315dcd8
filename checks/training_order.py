"""Chapter 16: the order of the kernels through training. Claim ``order-in-training``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import pandas as pd
import torch
from torch import Tensor, nn

from evidence.claims import Claim, Evidence, disagreement
from evidence.routes import measure
from experiments.certificate import follow, search
from experiments.data import digits
from experiments.training import gradient_descent
from lorantk import Adapter, LoRA, attach, mlp

from . import autograd

RULES = {"SGD": ("sgd", 0.1), "AdamW": ("adamw", 1e-3)}
"""Optimizers and their learning rates."""

SLACK = 1 + 1e-5
"""A ratio of kernels whose directions down to 1e-10 of the largest are kept is good to about 1e-6."""


def small_cases(cases: int, seed: int) -> list[tuple[nn.Module, nn.Module, Adapter, Tensor]]:
    """Merged and adapted one-hidden-layer networks with A and B of any size in the first layer, and inputs."""
    found: list[tuple[nn.Module, nn.Module, Adapter, Tensor]] = []
    for case in range(cases):
        draw = torch.Generator().manual_seed(1000 * seed + case)
        fan_in, width, rank, n = (int(torch.randint(low, high, (), generator=draw))
                                  for low, high in ((2, 6), (2, 7), (1, 3), (1, 5)))  # fmt: skip
        base = mlp([fan_in, width, 2], "tanh", "standard", seed=1000 * seed + case).double()
        A, B, x = (torch.randn(k, m, generator=draw, dtype=torch.float64)
                   for k, m in ((rank, fan_in), (width, rank), (n, fan_in)))  # fmt: skip
        size, scaling = (10.0 ** (4 * torch.rand((), generator=draw).item() - 3),
                         10.0 ** (2 * torch.rand((), generator=draw).item() - 1))  # fmt: skip
        adapter, whole = Adapter(A, size * B, scaling), mlp([fan_in, width, 2], "tanh", "standard").double()
        whole.load_state_dict(base.state_dict())
        whole.get_parameter("0.weight").data += scaling * size * B @ A
        found.append((whole, attach(base, {"0": adapter}), adapter, x))
    return found


def plain_identity(cases: Sequence[tuple[nn.Module, nn.Module, Adapter, Tensor]]) -> float:
    """Largest error of K_LoRA = J P J^T with both sides from plain gradients and P written out as a matrix."""
    errors = []
    for whole, adapted, (A, B, s), x in cases:
        assert B is not None
        eyes = torch.eye(len(B)).double(), torch.eye(A.shape[1]).double()
        P = s**2 * (torch.kron(eyes[0], A.T @ A) + torch.kron(B @ B.T, eyes[1]))
        J = autograd.jacobian(whole, x, ["0"])
        errors.append(disagreement(J @ P @ J.T, autograd.kernel(adapted, x)))
    return max(errors)


def plain_ratio(cases: Sequence[tuple[nn.Module, nn.Module, Adapter, Tensor]]) -> float:
    """Largest c^T K_LoRA c / c^T K_FF c over the outputs' directions, over s^2 (|A|^2 + |B|^2), by plain gradients."""
    ratios = []
    for whole, adapted, (A, B, s), x in cases:
        assert B is not None
        directions, sizes, _ = torch.linalg.svd(autograd.jacobian(whole, x, ["0"]), full_matrices=False)
        kept = sizes > 1e-5 * sizes[0]
        root = directions[:, kept] / sizes[kept]
        top = torch.linalg.eigvalsh(root.T @ autograd.kernel(adapted, x) @ root)[-1]
        norms = [torch.linalg.matrix_norm(m, 2) for m in (A, B)]
        ratios.append((top / (s**2 * (norms[0] ** 2 + norms[1] ** 2))).item())
    return max(ratios)


def along_training(seed: int, width: int, rank: int, checkpoints: Sequence[int], draws: int) -> pd.DataFrame:
    """A network that knows the digits 0 to 4 learns 5 to 9 by LoRA: `follow` for two optimizers and two scalings."""
    x, y = digits(400, seed)
    low, high = y < 5, y >= 5
    fresh = mlp([64, width, width, 10], parametrization="standard", seed=seed).double()
    network = gradient_descent(fresh, x[low], y[low], learning_rate=0.3, steps=100)
    data, shown = (x[high][:96], y[high][:96]), x[high][96:128]
    runs = [follow(LoRA(rank, scaling=s).attach(network, seed + d), network, repeat(data), shown, rule, checkpoints)
            .assign(scaling=s, seed=seed + d)
            for rule in RULES.values() for s in (1.0, 2.0) for d in range(draws)]  # fmt: skip
    return pd.concat(runs, ignore_index=True)


def order_in_training(seed: int, width: int, rank: int, cases: int, draws: int, checkpoints: Sequence[int]) -> Claim:
    """The certificate on random networks and along training."""
    found = measure(search, range(seed, seed + cases))
    runs = measure(along_training, seed, width, rank, checkpoints, draws)
    small = small_cases(max(10, cases // 10), seed)
    tip, breaks = "largest ratio / certificate, random cases", "the bound leaves out a part of LoRA's kernel"
    return Claim(
        "order-in-training",
        [
            Evidence(tip, measure(lambda t: (t.ratio / t.bound).max(), found), 0, SLACK, breaks),
            Evidence("identity: largest relative error", measure(lambda t: t.error.max(), found), 0, 1e-9,
                     "LoRA's kernel is not J P Jᵀ at the merged weights"),
            Evidence("identity by plain gradients, P written out", measure(plain_identity, small), 0, 1e-9,
                     "LoRA's kernel is not J P Jᵀ at the merged weights"),
            Evidence("largest ratio / certificate by plain gradients", measure(plain_ratio, small), 0, SLACK, breaks),
            Evidence("largest ratio / certificate, along training, all layers", measure(
                lambda t: (t.ratio / t.certificate).max(), runs), 0, SLACK, breaks),
            Evidence("layers and steps with certificate ≤ 1 and no order", measure(
                lambda t: ((t.certificate <= 1) & (t.ratio > SLACK)).sum(), runs), 0, 0, breaks),
        ],
        tip,
        figure="order-in-training",
        tables={"search": found.value, "runs": runs.value},
    )  # fmt: skip
