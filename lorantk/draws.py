"""Which random draw a trained A started from, and how far it has left it: from the matrix alone.

Training moves A in few of its r directions, so that most singular values stay where the draw put them, within
sigma (sqrt(n) -+ sqrt(r)). Statement ``thm-nsd``. Sources: Davidson and Szarek (2001); Weyl's inequalities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """What `draw_of` found.

    Attributes
    ----------
    name : str
        "uniform", "gaussian", "orthonormal", "normal" (an embedding's N(0, 1)), "zero", or "moved": no draw, or more
        than one, agrees with it, as after long training or where A was computed from the weight (PiSSA).
    directions_moved : int
        Singular values that do not lie where the draw puts them.
    moved, detectable : float or None
        Estimate of ``|A - A_0| / |A_0|`` in Frobenius norm, for a movement orthogonal to A_0, and what stands out of
        the draw's own noise.
    doubt : float or None
        Bound on the probability that another draw, moved in no more directions, shows such singular values.
    variance, kurtosis, outside : float
        m_2, the mean square of the entries; m_4 / m_2^2, 1.8 for a uniform and 3 for a Gaussian draw; the share of
        entries with abs(a) sqrt(n) > 1, 0 for a uniform draw.
    """

    name: str
    directions_moved: int
    moved: float | None
    detectable: float | None
    doubt: float | None
    variance: float
    kurtosis: float
    outside: float


class _Law(NamedTuple):
    """A draw: standard deviation, where the singular values lie, excess kurtosis of the entries."""

    sigma: float
    low: float
    high: float
    excess: float


def draw_of(A: Tensor, embedding: bool = False) -> Draw:
    """Which of PEFT's draws a matrix started from, with the evidence.

    A draw is named if it is the only one that at least half of the singular values and the entries' kurtosis in these
    directions agree with, and no singular value is less than half of its smallest.

    Parameters
    ----------
    A : Tensor (rank, n)
        For an embedding the transpose of B, which PEFT draws from N(0, 1) while A starts at 0.
    embedding : bool
    """
    (rank, n), eps, A = A.shape, torch.finfo(A.dtype).eps, A.double()
    if not A.any():
        return Draw("zero", 0, None, None, None, 0.0, 0.0, 0.0)
    second = float(A.square().mean())
    evidence = (second, _kurtosis(A), float((A.abs() * math.sqrt(n) > 1 + eps).double().mean()))
    squares, directions = torch.linalg.eigh(A @ A.T)
    values, directions = squares.clamp(min=0).sqrt()[-n:], directions[:, -n:]
    laws = _laws(rank, n, embedding)
    inside = {name: (values >= law.low) & (values <= law.high) for name, law in laws.items()}
    kept = [name for name, law in laws.items() if values[0] >= law.low / 2]  # training adds, it takes no direction away
    fits = [name for name in kept if _fits(A, directions, inside[name], laws[name])]
    if "orthonormal" in fits and int(inside["orthonormal"].sum()) > 1:  # the others' singular values spread
        fits = ["orthonormal"]
    if len(fits) != 1:
        return Draw("moved", 0, None, None, None, *evidence)
    name, law = fits[0], laws[fits[0]]
    k = int((~inside[name]).sum())
    others = [other for key, other in laws.items() if key not in (name, "orthonormal")]
    doubt = max((_doubt(values, k, rank, n, other) for other in others), default=0.0)
    if name == "orthonormal":
        return Draw(name, k, float((values - 1).square().mean().sqrt()), eps, doubt, *evidence)
    noise = math.sqrt((2 + law.excess) / A.numel())  # relative standard deviation of |A_0|^2
    moved = math.sqrt(max(second / law.sigma**2 - 1, 0.0))
    return Draw(name, k, moved, math.sqrt(3 * noise), doubt, *evidence)


def _laws(rank: int, n: int, embedding: bool) -> dict[str, _Law]:
    """The draws in use. Their edges are widened by sigma, more than three standard deviations of the edge."""
    low, high = abs(math.sqrt(n) - math.sqrt(rank)) - 1, math.sqrt(n) + math.sqrt(rank) + 1
    if embedding:
        return {"normal": _Law(1.0, low, high, 0.0)}
    uniform, gaussian = 1 / math.sqrt(3 * n), 1 / rank
    return {
        "uniform": _Law(uniform, uniform * low, uniform * high, -1.2),
        "gaussian": _Law(gaussian, gaussian * low, gaussian * high, 0.0),
        "orthonormal": _Law(1 / math.sqrt(n), 0.99, 1.01, 0.0),
    }


def _fits(A: Tensor, directions: Tensor, inside: Tensor, law: _Law) -> bool:
    """Whether half of the singular values lie in the law's interval, and A in these directions has its kurtosis.

    A rotation mixes the rows, and with them a uniform draw's entries come closer to Gaussian ones; the kurtosis may
    miss its expectation by four standard deviations, or by half of what parts a uniform draw from a Gaussian one.
    """
    if 2 * int(inside.sum()) < len(inside):
        return False
    still = directions[:, inside] @ directions[:, inside].T
    part = still.pow(4).sum() * len(A) / still.trace() ** 2
    expected = 3 * still.diag().square().sum() * len(A) / still.trace() ** 2 + law.excess * part
    noise = math.sqrt(24 / (float(still.trace()) * A.shape[1]))
    return abs(_kurtosis(still @ A) - float(expected)) <= max(4 * noise, 0.6 * float(part))


def _doubt(values: Tensor, k: int, rank: int, n: int, law: _Law) -> float:
    """exp(-t^2/2) at the gap t that k moved directions leave between these singular values and another draw's edges.

    Weyl: singular value k + 1 is at most the draw's largest, and the k-th from last at least its smallest. The bound
    is Davidson and Szarek's, exact for Gaussian entries; those of a uniform draw have the same edges.
    """
    low, high = abs(math.sqrt(n) - math.sqrt(rank)), math.sqrt(n) + math.sqrt(rank)
    gap = max(float(values[-1 - k]) / law.sigma - high, low - float(values[k]) / law.sigma, 0.0)
    return math.exp(-(gap**2) / 2)


def _kurtosis(A: Tensor) -> float:
    return float(A.pow(4).mean() / A.square().mean() ** 2)
