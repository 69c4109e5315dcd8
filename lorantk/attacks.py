"""Training-time attacks on labelled data, and the gradient alignment by which the paper models them.

Untargeted poisoning flips labels; a backdoor adds a trigger to the input and sets a target label. Both objectives
are absolute inner products of loss gradients, grad L(x_c) . grad L(x_p) = d_c^T K(x_c, x_p) d_p.

Statements ``eq-3``, ``eq-4``. Source: Liang et al. (2025); Gu et al. (2019) for triggers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .batches import Batch, check_integer, check_pair, check_real, check_seed, check_tensor, join
from .fisher import loss_gram
from .kernels import Selection


def flip_labels(y: Tensor, rate: float, classes: int, seed: int = 0) -> Tensor:
    """Labels (n,) int64 of which each is replaced, with probability `rate`, by another class drawn uniformly.

    Raises
    ------
    TypeError, ValueError
        If y is not a vector of indices below `classes`, `rate` is outside 0..1 or there are fewer than 2 classes.
    """
    check_integer("classes", classes, 2)
    _check_labels(y, classes)
    chosen, generator = _choose(len(y), rate, seed)
    shift = torch.randint(1, classes, y.shape, generator=generator).to(y.device)
    return torch.where(chosen.to(y.device), (y + shift) % classes, y)


def insert_trigger(
    x: Tensor, y: Tensor, rate: float, *, pixels: Sequence[int], value: float, target: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Inputs and labels of which each pair, with probability `rate`, carries the trigger and the target label.

    Parameters
    ----------
    x : Tensor (n, d)
    y : Tensor (n,), int64
    rate : float
        0 to 1.
    pixels : sequence of int
        Columns of x that the trigger sets to `value`.
    target : int
        The label that the backdoor is to produce, 0 or above.

    Returns
    -------
    x, y : Tensor (n, d), Tensor (n,)
        Copies; the arguments are left as they are.

    Raises
    ------
    TypeError, ValueError
        On bad labels, a rate outside 0..1, no pixel or one outside the input, or a negative target.
    """
    check_tensor("x", x, ndim=2)
    check_integer("target", target, 0)
    check_real("value", value, minimum=-sys.float_info.max)
    _check_labels(y, None)
    if len(y) != len(x):
        raise ValueError(f"y must hold one label for each of the {len(x)} inputs; got {len(y)}")
    if not pixels or not all(0 <= p < x.shape[1] for p in pixels):
        raise ValueError(f"pixels must name columns from 0 to {x.shape[1] - 1}; got {list(pixels)}")
    chosen, _ = _choose(len(y), rate, seed)
    chosen = chosen.to(x.device)
    triggered = x.clone()
    triggered[:, list(pixels)] = value
    return torch.where(chosen[:, None], triggered, x), torch.where(chosen, target, y)


def gradient_alignment(
    model: nn.Module,
    clean: tuple[Batch, Tensor],
    poisoned: tuple[Batch, Tensor],
    loss: str = "cross_entropy",
    *,
    layers: str | Sequence[str] | None = None,
    method: str = "auto",
    select: Selection | None = None,
    max_memory: int | str | None = None,
    cosine: bool = False,
) -> Tensor:
    """The attacks' objective: absolute inner product of loss gradients, for all pairs of clean and poisoned samples.

    Parameters
    ----------
    model, loss, layers, method, select, max_memory
        As in `lorantk.fisher.fisher_spectrum`.
    clean, poisoned : pairs (x, y)
        Inputs (n_c, ...), (n_p, ...), or mappings of tensors, with their labels.
    cosine : bool
        Divide by the norms of both gradients: 0 for orthogonal, 1 for parallel ones, and 0 where a gradient is 0.

    Returns
    -------
    Tensor (n_c, n_p), entries 0 or above

    Raises
    ------
    TypeError, ValueError
        As `lorantk.fisher.fisher_spectrum`; also if the two batches differ in dtype or shape past the first axis.

    Notes
    -----
    Statements ``eq-3`` (the adversary maximises it), ``eq-4`` (the adversary minimises it).
    """
    (x_clean, y_clean), (x_poisoned, y_poisoned) = clean, poisoned
    check_pair(model, x_clean, x_poisoned, ("clean inputs", "poisoned inputs"))
    x, y = join(x_clean, x_poisoned), torch.cat([y_clean, y_poisoned])
    gram = loss_gram(model, x, y, loss, layers=layers, method=method, select=select, max_memory=max_memory)
    if cosine:
        norms = gram.diagonal().clamp(min=0.0).sqrt()
        norms = norms.where(norms > 0, 1.0)
        gram = gram / norms / norms[:, None]
    return gram[: len(y_clean), len(y_clean) :].abs()


def _choose(n: int, rate: float, seed: int) -> tuple[Tensor, torch.Generator]:
    """Which of n samples are poisoned, each with probability `rate`, and the generator for further draws."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
        raise ValueError(f"rate must be a number from 0 to 1; got {rate!r}")
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=generator) < rate, generator


def _check_labels(y: Tensor, classes: int | None) -> None:
    check_tensor("y", y, ndim=1, floating=False)
    if y.dtype != torch.int64:
        raise TypeError(f"y must be int64 class indices; got dtype {y.dtype}")
    if y.min() < 0 or (classes is not None and y.max() >= classes):
        raise ValueError(f"y must hold class indices from 0, below classes = {classes}; got {y.min()} to {y.max()}")
