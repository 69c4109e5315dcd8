"""The infinite-width tangent kernel of fully connected networks in NTK parametrisation, and its LoRA mean limit.

With Sigma^(1) = v x.x' / d (v the weight variance, d the input dimension) and, for (u, u') Gaussian with covariance
Sigma^(l), Sigma^(l+1) = v E[sigma(u) sigma(u')] and dotSigma^(l+1) = v E[sigma'(u) sigma'(u')], the kernel is
Theta^(1) = Sigma^(1), Theta^(l+1) = Theta^(l) dotSigma^(l+1) + Sigma^(l+1).

With adapters, layer l contributes s^2 r sigma_a^2 Sigma^(l) instead of Sigma^(l) *in the mean over A*: at fixed
rank the kernel itself stays random at every width.

Statements ``eq-8``, ``eq-9``, ``ntk-limit``, ``lem-lora-ntk``. Sources: Jacot et al. (2018); Lee et al. (2019); Cho and
Saul (2009) for ReLU; Williams (1997) for erf.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .batches import check_choice, check_integer, check_real, check_same_kind, check_tensor
from .lora import LoRA
from .models import ACTIVATIONS
from .tiles import assemble

QUADRATURE_NODES = 320
"""Gauss-Hermite nodes per axis for activations without a closed form.

The poles of tanh slow the convergence: at a pre-activation variance of 4 the relative error of dotSigma is 1e-3 with
64 nodes, 1e-5 with 128 and below 1e-8 with 320.
"""


NEARLY_PARALLEL = 0.99
"""Cosine beyond which an angle comes from the difference of its vectors: below, arccos loses less than one digit."""

BLOCK = 256
"""Rows and columns of a tile: 512 KiB in float64, which stays in the cache from the first layer to the last."""


class _Inputs(NamedTuple):
    """Inputs divided by their norms, (n, d), and the norms, (n, 1)."""

    units: Tensor
    norms: Tensor

    def take(self, rows: slice) -> _Inputs:
        return _Inputs(self.units[rows], self.norms[rows])


class _Covariance(NamedTuple):
    """Second moments of a pair of pre-activations: variances (n1, 1), (1, n2), covariance (n1, n2) and its angle."""

    variance1: Tensor
    variance2: Tensor
    cross: Tensor
    angle: Tensor


def infinite_width_ntk(
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    depth: int,
    activation: str = "relu",
    weight_variance: float = 2.0,
    lora: LoRA | None = None,
) -> Tensor:
    """Tangent kernel of one output of an infinitely wide `mlp` without biases, in NTK parametrisation.

    Parameters
    ----------
    x1, x2 : Tensor (n1, d), (n2, d)
        Inputs; x2 = x1 when None. Coinciding, antiparallel and zero inputs are fine.
    depth : int
        Number of linear layers, 1 or more.
    activation : {"relu", "erf", "tanh", "linear"}
        Closed forms for "relu", "erf" and "linear"; Gauss-Hermite quadrature for "tanh".
    weight_variance : float
        v, above 0.
    lora : LoRA, optional
        Mean over A of the kernel of adapters at B = 0. Its variance must be a number: "k/n" and "peft" vanish with
        the width. Its layers are those of `mlp`: "0", "2", "4", ...

    Returns
    -------
    Tensor (n1, n2)
        In the dtype and on the device of x1.

    Raises
    ------
    TypeError, ValueError
        On bad inputs, an unknown activation or layer, or a variance without an infinite-width limit.

    Notes
    -----
    Statements ``eq-8``, ``eq-9``; with `lora`, the mean limit of ``lem-lora-ntk``.
    """
    x1 = check_tensor("x1", x1, ndim=2)
    x2 = x1 if x2 is None else check_tensor("x2", x2, ndim=2)
    check_same_kind("x2", x2, "x1", x1)
    if x1.shape[1] != x2.shape[1]:
        raise ValueError(f"x2 must have {x1.shape[1]} columns, as x1 has; got {x2.shape[1]}")
    check_integer("depth", depth, 1)
    check_choice("activation", activation, ACTIVATIONS)
    check_real("weight_variance", weight_variance, minimum=0.0, exclusive=True)
    shares = _layer_shares(depth, lora)

    moments = _MOMENTS[activation]
    first = _normalised(x1)
    second = first if x2 is x1 else _normalised(x2)

    def tile(one: _Inputs, other: _Inputs) -> Tensor:
        covariance = _first_layer(one, other, weight_variance)
        kernel = shares[0] * covariance.cross
        for share in shares[1:]:
            covariance, derivative = moments(covariance, weight_variance)
            kernel = kernel.mul_(derivative).add_(covariance.cross, alpha=share)
        return kernel

    return assemble(first.take, second.take, tile, (len(x1), len(x2)), (BLOCK, BLOCK), symmetric=x2 is x1)


def _layer_shares(depth: int, lora: LoRA | None) -> list[float]:
    """Factor of Sigma^(l) in the kernel, layer by layer: 1 for full fine-tuning, s^2 r sigma_a^2 or 0 for LoRA."""
    if lora is None:
        return [1.0] * depth
    if isinstance(lora.variance, str) and lora.variance not in ("1/r", "gaussian"):
        raise ValueError(
            f"lora.variance must be a number at infinite width; {lora.variance!r} shrinks with the fan-in, so its "
            "kernel vanishes. Give sigma_a^2 itself, such as 1 / rank"
        )
    names = [str(2 * i) for i in range(depth)]
    if isinstance(lora.layers, str):
        chosen = [name for name in names if re.fullmatch(lora.layers, name)] or [lora.layers]
    else:
        chosen = names if lora.layers is None else list(lora.layers)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise ValueError(f"lora.layers must name layers of an mlp of depth {depth}, {names}; got {unknown}")
    share = lora.scaling**2 * lora.rank * lora.entry_variance(1)
    return [share if name in chosen else 0.0 for name in names]


def _normalised(x: Tensor) -> _Inputs:
    norms = x.norm(dim=1, keepdim=True)
    return _Inputs(x / norms.where(norms > 0, 1.0), norms)


def _first_layer(one: _Inputs, other: _Inputs, v: float) -> _Covariance:
    """Sigma^(1) = v x.x'/d, with the angle by arccos, or by Kahan's formula where arccos loses digits.

    Kahan's formula is exact for parallel and antiparallel inputs; arccos loses a factor 1 / sin(angle).
    """
    scale = v / one.units.shape[1]
    cosine = one.units @ other.units.T
    angle = torch.acos(cosine.clamp(-1.0, 1.0))
    rows, columns = (cosine.abs() > NEARLY_PARALLEL).nonzero(as_tuple=True)
    for i, j in zip(rows.split(BLOCK), columns.split(BLOCK), strict=True):
        u, w = one.units[i], other.units[j]
        angle[i, j] = 2 * torch.atan2((u - w).norm(dim=1), (u + w).norm(dim=1))
        cosine[i, j] = torch.cos(angle[i, j])
    cross = cosine.mul_(one.norms).mul_(scale * other.norms.T)
    return _Covariance(scale * one.norms**2, scale * other.norms.T**2, cross, angle)


def _relu_moments(c: _Covariance, v: float) -> tuple[_Covariance, Tensor]:
    """Arc-cosine kernels of order 1 and 0 (Cho and Saul, 2009), carrying the angle instead of an arccos near 1.

    With t the angle, and half of 1 - cos as gap:

    - gap = sin(t/2)^2
    - gap' = gap - (sin t - t cos t) / (2 pi), accurate for small t
    - t' = 2 arcsin(sqrt(gap')), Sigma' = v/2 (1 - 2 gap') sqrt(Sigma11 Sigma22), dotSigma' = v (pi - t) / (2 pi)

    Kernels are bound by memory: each line below makes one new matrix at most and works on it in place.
    """
    sine = torch.sin(c.angle / 2)
    gap = sine.square()
    bend = torch.cos(c.angle / 2).mul_(sine).mul_(2)  # sin t
    bend.sub_((1 - 2 * gap).mul_(c.angle))  # - t cos t
    gap.sub_(bend, alpha=1 / (2 * math.pi)).clamp_(0.0, 1.0)
    angle = gap.sqrt().asin_().mul_(2)
    deviations = (v / 2 * c.variance1.sqrt()) * c.variance2.sqrt()
    cross = gap.mul_(-2).add_(1).mul_(deviations)
    derivative = (math.pi - c.angle).mul_(v / (2 * math.pi))
    return _Covariance(v / 2 * c.variance1, v / 2 * c.variance2, cross, angle), derivative


def _erf_moments(c: _Covariance, v: float) -> tuple[_Covariance, Tensor]:
    """Arc-sine kernel and its derivative (Williams, 1997)."""
    # (1 + 2 k11)(1 + 2 k22) - 4 k12^2 without cancellation: 1 + 2 (k11 + k22) + 4 (k11 k22 - k12^2)
    determinant = c.variance1 * c.variance2 * torch.sin(c.angle) ** 2
    remainder = 1 + 2 * (c.variance1 + c.variance2) + 4 * determinant
    cross = v * 2 / math.pi * torch.atan2(2 * c.cross, remainder.sqrt())
    variance1, variance2 = (v * 2 / math.pi * torch.asin(2 * k / (1 + 2 * k)) for k in (c.variance1, c.variance2))
    following = _with_angle(variance1, variance2, cross)
    return following, v * 4 / math.pi / remainder.sqrt()


def _linear_moments(c: _Covariance, v: float) -> tuple[_Covariance, Tensor]:
    following = _Covariance(v * c.variance1, v * c.variance2, v * c.cross, c.angle)
    return following, torch.full_like(c.cross, v)


def _tanh_moments(c: _Covariance, v: float) -> tuple[_Covariance, Tensor]:
    return quadrature_moments(c, v, torch.tanh, lambda u: 1 / torch.cosh(u) ** 2)


def quadrature_moments(
    c: _Covariance,
    v: float,
    activation: Callable[[Tensor], Tensor],
    derivative: Callable[[Tensor], Tensor],
    nodes: int = QUADRATURE_NODES,
) -> tuple[_Covariance, Tensor]:
    """Sigma and dotSigma of the next layer by tensor-product Gauss-Hermite quadrature.

    u = sqrt(k11) z and u' = sqrt(k22) (cos(angle) z + sin(angle) z') with z, z' independent standard normal.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    z = torch.as_tensor(points, dtype=c.cross.dtype, device=c.cross.device)
    w = torch.as_tensor(weights / math.sqrt(2 * math.pi), dtype=c.cross.dtype, device=c.cross.device)

    def expectation(f: Callable[[Tensor], Tensor]) -> Tensor:
        first = f(c.variance1.sqrt() * z) * w  # (n1, nodes)
        rows = []
        for i, angle in enumerate(c.angle):  # one row of the kernel at a time: (n2, nodes, nodes)
            mixed = torch.cos(angle)[:, None, None] * z[:, None] + torch.sin(angle)[:, None, None] * z
            inner = f(c.variance2[0].sqrt()[:, None, None] * mixed) @ w
            rows.append(inner @ first[i])
        return v * torch.stack(rows)

    variance1 = v * (activation(c.variance1.sqrt() * z) ** 2 @ w)[:, None]
    variance2 = v * (activation(c.variance2.T.sqrt() * z) ** 2 @ w)[None, :]
    return _with_angle(variance1, variance2, expectation(activation)), expectation(derivative)


def _with_angle(variance1: Tensor, variance2: Tensor, cross: Tensor) -> _Covariance:
    """Covariance with its angle; where a variance is 0 the angle is free and pi/2 is taken.

    Smooth activations depend on the angle through its cosine and the determinant only, so the square root of
    machine precision that arccos loses near 0 and pi does not reach the kernel.
    """
    scale = (variance1 * variance2).sqrt()
    cosine = torch.where(scale > 0, cross / scale.where(scale > 0, 1.0), 0.0)
    return _Covariance(variance1, variance2, cross, torch.arccos(cosine.clamp(-1.0, 1.0)))


_MOMENTS: dict[str, Callable[[_Covariance, float], tuple[_Covariance, Tensor]]] = {
    "relu": _relu_moments,
    "erf": _erf_moments,
    "tanh": _tanh_moments,
    "linear": _linear_moments,
}
