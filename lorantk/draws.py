"""Which random draw a trained A started from, and how far it has left it: from the matrix alone.

Training moves A in few of its r directions, so most singular values stay where the draw put them, within
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
        "uniform", "gaussian", "orthonormal", "normal" (an embedding's N(0, 1)), "zero", or "moved": too far from every
        draw to tell, or not drawn at all but computed from the weight, as PiSSA does.
    directions_moved : int
        Singular values that do not lie where the draw puts them.
    moved, detectable : float or None
        Estimate of |A - A_0| / |A_0| in Frobenius norm, for a movement orthogonal to A_0, and what stands out of the
        draw's own noise.
    moved_by_box : float or None
        The same for mean absolute entries of a uniform draw, from `outside` alone: an entry moved by d leaves the box
        of half width b = 1/sqrt(n) with probability abs(d) / (2 b), wherever in it it was.
    doubt : float or None
        Bound on the probability that another draw, moved in no more directions, shows such singular values.
    variance, largest, kurtosis, outside : float
        m_2, the mean square of the entries; max abs(a) sqrt(n), at most 1 for a uniform draw; m_4 / m_2^2, 1.8 for a
        uniform and 3 for a Gaussian one; the share of entries with abs(a) sqrt(n) > 1.
    """

    name: str
    directions_moved: int
    moved: float | None
    detectable: float | None
    moved_by_box: float | None
    doubt: float | None
    variance: float
    largest: float
    kurtosis: float
    outside: float


class _Law(NamedTuple):
    """A draw's standard deviation, where its singular values lie, and its entries' excess kurtosis."""

    sigma: float
    low: float
    high: float
    excess: float


def draw_of(A: Tensor, embedding: bool = False) -> Draw:
    """Which of PEFT's draws a matrix started from, with the evidence.

    The draw that holds most of the singular values is named if it holds at least half of them, if the entries in
    these directions have its kurtosis, and if every other draw needs at least twice the movement. Movement in most
    directions by more than A's own size can still mislead.

    Parameters
    ----------
    A : Tensor (r, n)
        For an embedding the transpose of B, which PEFT draws from N(0, 1) while A starts at 0.
    embedding : bool

    Returns
    -------
    Draw
    """
    (rank, n), eps, A = A.shape, torch.finfo(A.dtype).eps, A.double()
    if not A.any():
        return Draw("zero", 0, None, None, None, None, 0.0, 0.0, 0.0, 0.0)
    scaled = A.abs() * math.sqrt(n)
    outside = float((scaled > 1 + eps).double().mean())
    second = float(A.square().mean())
    evidence = (second, float(scaled.max()), _kurtosis(A), outside)
    squares, directions = torch.linalg.eigh(A @ A.T)
    values, directions = squares.clamp(min=0).sqrt()[-n:], directions[:, -n:]
    laws = _laws(rank, n, embedding)
    inside = {name: (values >= law.low) & (values <= law.high) for name, law in laws.items()}
    name = max(inside, key=lambda candidate: int(inside[candidate].sum()))
    k, law = int((~inside[name]).sum()), laws[name]
    if name == "orthonormal" and k == 0:
        return Draw(name, 0, float((values - 1).square().mean().sqrt()), eps, None, 0.0, *evidence)
    others = [other for key, other in laws.items() if key not in (name, "orthonormal")]  # which does not fluctuate
    needed = 2 * _movement(values, A.numel(), law)
    if 2 * k > len(values) or any(_movement(values, A.numel(), other) < needed for other in others):
        return Draw("moved", k, None, None, None, None, *evidence)
    still = directions[:, inside[name]] @ directions[:, inside[name]].T
    expected = 3 * still.diag().square().sum() + law.excess * still.pow(4).sum()
    noise = math.sqrt(24 / (float(still.trace()) * n))
    if abs(_kurtosis(still @ A) - float(expected * rank / still.trace() ** 2)) > 4 * noise:
        return Draw("moved", k, None, None, None, None, *evidence)
    doubt = max((_doubt(values, k, n, rank, other) for other in others), default=0.0)
    if name == "uniform" and outside == 0:  # a Gaussian draw would have to lie in the box with all its entries
        doubt = min(doubt, math.erf(rank / math.sqrt(2 * n)) ** A.numel())
    moved = math.sqrt(max(second / law.sigma**2 - 1, 0.0))
    by_box = 4 * outside if name == "uniform" else None
    return Draw(name, k, moved, math.sqrt(3 * _noise(A.numel(), law)), by_box, doubt, *evidence)


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


def _noise(entries: int, law: _Law) -> float:
    """Relative standard deviation of |A_0|^2."""
    return math.sqrt((2 + law.excess) / entries)


def _movement(values: Tensor, entries: int, law: _Law) -> float:
    """Least |A - A_0|: by the distance of the singular values from their place (Mirsky), and by the growth of |A|."""
    astray = torch.maximum(law.low - values, values - law.high).clamp(min=0).norm()
    growth = float(values.square().sum()) - entries * law.sigma**2 * (1 + 3 * _noise(entries, law))
    return max(float(astray), math.sqrt(max(growth, 0.0)))


def _doubt(values: Tensor, k: int, n: int, rank: int, law: _Law) -> float:
    """exp(-t^2/2) at the gap t that k moved directions leave between these singular values and another draw's edges.

    Weyl: singular value k + 1 is at most the draw's largest, and the k-th from last at least its smallest. The bound
    is Davidson and Szarek's, exact for Gaussian entries; those of a uniform draw have the same edges.
    """
    low, high = abs(math.sqrt(n) - math.sqrt(rank)), math.sqrt(n) + math.sqrt(rank)
    gap = max(float(values[-1 - k]) / law.sigma - high, low - float(values[k]) / law.sigma, 0.0)
    return math.exp(-(gap**2) / 2)


def _kurtosis(A: Tensor) -> float:
    return float(A.pow(4).mean() / A.square().mean() ** 2)
