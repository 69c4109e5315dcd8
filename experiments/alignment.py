"""How LoRA changes the alignment of clean and poisoned gradients. Statements ``eq-3``, ``eq-4``, ``direction``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lorantk import LayerFactors, LoRA, gradient_alignment
from lorantk.fisher import Contracted
from lorantk.grams import gram

Batch = tuple[Tensor, Tensor]


class Pair(NamedTuple):
    """Clean and poisoned samples of one model: what full fine-tuning makes of them, and what all draws of A share.

    Parameters
    ----------
    inner, cosine : Tensor (n_c, n_p)
        Absolute inner products and cosines of clean and poisoned gradients, trained in full.
    activations : dict of Tensor (n_c + n_p, fan_in)
        Of each layer, times its prefactor.
    cotangents : dict of Tensor (n_c + n_p, n_c + n_p)
        Gram matrix of each layer's dL/dy.
    batch : Tensor (n_p,)
        Cosine of each poisoned gradient with the mean clean one, trained in full.
    """

    inner: Tensor
    cosine: Tensor
    activations: dict[str, Tensor]
    cotangents: dict[str, Tensor]
    batch: Tensor


def pair(model: nn.Module, clean: Batch, poisoned: Batch) -> Pair:
    """A `Pair` by one pass through the model, all of whose layers are linear and used at one position.

    Raises
    ------
    ValueError
        If a layer is used at several positions: its gradients are no outer products.
    """
    inner, cosine = (gradient_alignment(model, clean, poisoned, cosine=c) for c in (False, True))
    x, y = (torch.cat([c, p]) for c, p in zip(clean, poisoned, strict=True))
    factors = LayerFactors.from_model(Contracted(model, "cross_entropy"), {"labels": y, "input ": x})
    several = [name for name, a in factors.activations.items() if a.shape[1] > 1]
    if several:
        raise ValueError(f"model must use its layers at one position; got several in {several}")
    names = {name: name.removeprefix("model.") for name in factors.kinds}
    activations = {short: factors.activations[name][:, 0] for name, short in names.items()}
    cotangents = {short: gram(factors, factors, [(name, "bias")], "trace") for name, short in names.items()}
    found = Pair(inner, cosine, activations, cotangents, batch=torch.empty(0))
    return found._replace(batch=with_mean(full_gram(found, list(activations)), len(inner)))


def gradient_gram(found: Pair, matrices: Mapping[str, Tensor]) -> Tensor:
    """Inner products of all gradients of B at B = 0, behind A = `matrices` in each layer, (n_c + n_p, n_c + n_p)."""
    total = torch.zeros_like(next(iter(found.cotangents.values())))
    for name, A in matrices.items():
        seen = found.activations[name] @ A.T
        total += (seen @ seen.T) * found.cotangents[name]
    return total


def full_gram(found: Pair, layers: Sequence[str]) -> Tensor:
    """Inner products of all gradients of the weights of some layers, trained in full, (n_c + n_p, n_c + n_p)."""
    return gradient_gram(found, {name: torch.eye(found.activations[name].shape[1]).to(found.inner) for name in layers})


def relative_alignment(model: nn.Module, found: Pair, rank: int, variance: float, seed: int) -> dict[str, float]:
    """Alignment under one draw of LoRA at B = 0, relative to that of full fine-tuning.

    Parameters
    ----------
    model : nn.Module
    found : Pair
        Of `pair`, for this model.
    rank, seed : int
    variance : float
        Times fan-in, for the inner products; cosines are taken at variance 1/n ("cosine") and 1 ("cosine_equal").

    Returns
    -------
    dict
        inner, cosine, cosine_equal: ratios of means over pairs; batch, batch_equal: ratios of the mean size of the
        cosine of a poisoned gradient and the mean clean one; positive, positive_full: shares of these cosines above 0,
        LoRA's (at variance 1/n) and full fine-tuning's; error, error_equal: root mean square error of the pairs'
        cosines.
    """
    drawn = LoRA(rank, 1.0).sample(model, seed)
    n = len(found.inner)
    by_fan_in = gradient_gram(found, {name: A / A.shape[1] ** 0.5 for name, A in drawn.items()})
    grams = {"": by_fan_in, "_equal": gradient_gram(found, drawn)}
    cosines = {name: _cosine(G)[:n, n:] for name, G in grams.items()}
    means = {f"batch{name}": with_mean(G, n) for name, G in grams.items()}
    batches = {name: (cosine.abs().mean() / found.batch.abs().mean()).item() for name, cosine in means.items()}
    signs = {"positive": means["batch"], "positive_full": found.batch}
    shares = {name: (cosine > 0).double().mean().item() for name, cosine in signs.items()}
    inner = variance * by_fan_in[:n, n:].abs().mean() / found.inner.mean()
    ratios = {f"cosine{name}": (c.mean() / found.cosine.mean()).item() for name, c in cosines.items()}
    errors = {f"error{name}": (c - found.cosine).square().mean().sqrt().item() for name, c in cosines.items()}
    return {"inner": inner.item()} | ratios | errors | batches | shares


def with_mean(gram: Tensor, n: int) -> Tensor:
    """Cosine of each later gradient with the mean of the first n, from inner products; 0 where one is 0."""
    size = (gram[:n, :n].mean() * gram.diagonal()[n:]).clamp(min=0.0).sqrt()
    return gram[:n, n:].mean(0) / size.where(size > 0, 1.0)


def _cosine(gram: Tensor) -> Tensor:
    """Absolute cosines from inner products; 0 where a gradient is 0."""
    norms = gram.diagonal().clamp(min=0.0).sqrt()
    norms = norms.where(norms > 0, 1.0)
    return (gram / norms / norms[:, None]).abs()
