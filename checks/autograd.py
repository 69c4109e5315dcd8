"""Kernels by the plainest route there is: one gradient by torch.autograd for each output of each input.

Slow, and shares nothing with `lorantk`: the second route of many claims.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def jacobian(model: nn.Module, x: Tensor, layers: Sequence[str] | None = None) -> Tensor:
    """dF/dtheta of all outputs by what the model trains, (n C, P).

    Parameters
    ----------
    model : nn.Module
    x : Tensor (n, ...)
    layers : sequence of str, optional
        Only parameters of these layers.
    """
    named = dict(model.named_parameters())
    trained = [p for name, p in named.items() if p.requires_grad and _inside(name, layers)]
    rows = []
    for i in range(len(x)):
        for output in model(x[i : i + 1]).flatten():
            gradients = torch.autograd.grad(output, trained, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat([torch.zeros(p.numel(), dtype=x.dtype) if g is None else g.flatten()
                           for g, p in zip(gradients, trained, strict=True)])
            )  # fmt: skip
    return torch.stack(rows)


def kernel(model: nn.Module, x: Tensor, layers: Sequence[str] | None = None) -> Tensor:
    """J J^T, (n C, n C)."""
    J = jacobian(model, x, layers)
    return J @ J.T


def trace_kernel(model: nn.Module, x: Tensor, layers: Sequence[str] | None = None) -> Tensor:
    """J J^T summed over equal outputs, (n, n)."""
    J = jacobian(model, x, layers).unflatten(0, (len(x), -1)).flatten(1)
    return J @ J.T


def loss_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of each sample's cross-entropy by what the model trains, (n, P)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for one, label in zip(x.split(1), y.split(1), strict=True):
        loss = nn.functional.cross_entropy(model(one), label)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]))
    return torch.stack(rows)


def _inside(name: str, layers: Sequence[str] | None) -> bool:
    return layers is None or any(name.startswith(f"{layer}.") for layer in layers)
