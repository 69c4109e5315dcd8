"""Spectra of A^T A - I and scalar summaries of a spectrum: when is LoRA's kernel below full fine-tuning's?

Statements ``thm-nsd``, ``cor-ideal``, ``eq-6``, ``eq-7``. Sources: Marchenko and Pastur (1967); Davidson and Szarek
(2001).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .batches import check_integer, check_real, check_square, check_tensor


def delta_matrix(A: Tensor, scaling: float = 1.0) -> Tensor:
    """M = s^2 A^T A - I, the matrix by which LoRA's kernel differs from full fine-tuning's in one layer.

    Parameters
    ----------
    A : Tensor (rank, fan_in)
    scaling : float
        s, above 0.

    Returns
    -------
    Tensor (fan_in, fan_in), symmetric, dtype of A

    Raises
    ------
    TypeError, ValueError
        If A is not a finite matrix, its rank exceeds its fan-in, or `scaling` is not above 0.

    Notes
    -----
    Statements ``thm-relation``, ``thm-nsd``.
    """
    A = check_tensor("A", A, ndim=2)
    check_real("scaling", scaling, minimum=0.0, exclusive=True)
    rank, fan_in = A.shape
    if rank > fan_in:
        raise ValueError(f"A must have rank at most its fan-in {fan_in}; got shape {(rank, fan_in)}")
    return scaling**2 * A.T @ A - torch.eye(fan_in, dtype=A.dtype, device=A.device)


def marchenko_pastur_edges(rank: int, width: int, variance: float) -> tuple[float, float]:
    """Ends of the interval that the nonzero spectrum of A^T A fills: variance * width * (1 -+ sqrt(rank/width))^2.

    Parameters
    ----------
    rank, width : int
        A has shape (rank, width), independent entries of mean 0; 1 <= rank <= width.
    variance : float
        Variance of the entries, 0 or above.

    Raises
    ------
    TypeError, ValueError
        On a rank outside 1..width or a negative variance.

    Notes
    -----
    Statement ``thm-nsd``. Source: Marchenko and Pastur (1967); exact as rank and width grow in proportion.
    """
    _check_rank(rank, width)
    check_real("variance", variance, minimum=0.0)
    ratio = math.sqrt(rank / width)
    return variance * width * (1 - ratio) ** 2, variance * width * (1 + ratio) ** 2


def marchenko_pastur_density(x: Tensor, rank: int, width: int, variance: float) -> Tensor:
    """Density of the nonzero eigenvalues of A^T A at the points `x` (k,); 0 outside `marchenko_pastur_edges`.

    Raises
    ------
    TypeError, ValueError
        On bad points, a rank outside 1..width or a variance that is not above 0.

    Notes
    -----
    Statement ``thm-nsd``. Source: Marchenko and Pastur (1967).
    """
    x = check_tensor("x", x, ndim=1)
    check_real("variance", variance, minimum=0.0, exclusive=True)
    low, high = marchenko_pastur_edges(rank, width, variance)
    inside = ((high - x) * (x - low)).clamp(min=0.0)
    return inside.sqrt() / (2 * math.pi * variance * rank * x.where(inside > 0, 1.0))


def nsd_variance_bound(rank: int, width: int) -> float:
    """Largest s^2 sigma_a^2 for which s^2 A^T A - I is negative semi-definite at large width: 1/(sqrt(r)+sqrt(n))^2.

    Below it, the probability of a positive eigenvalue is at most exp(-t^2/2) for Gaussian A, with
    t = 1/(s sigma_a) - sqrt(n) - sqrt(r) (Davidson and Szarek, 2001).

    Raises
    ------
    TypeError, ValueError
        On a rank outside 1..width.

    Notes
    -----
    Statement ``thm-nsd``, as corrected: the printed bound 1/n forgets the spread of the spectrum.
    """
    _check_rank(rank, width)
    return 1.0 / (math.sqrt(rank) + math.sqrt(width)) ** 2


def nsd_probability(rank: int, width: int, variance: float) -> float:
    """Probability that A^T A - I is negative semi-definite for Gaussian A at finite size (law of Tracy and Widom).

    The largest eigenvalue of A A^T / variance has centre (sqrt(n-1) + sqrt(r))^2 and scale
    (sqrt(n-1) + sqrt(r)) (1/sqrt(n-1) + 1/sqrt(r))^(1/3); in these units it follows the Tracy-Widom law of order 1, for
    which the shifted gamma law of Chiani (2014) is used.

    Parameters
    ----------
    rank, width : int
        1 <= rank <= width, width at least 2.
    variance : float
        s^2 sigma_a^2, above 0.

    Raises
    ------
    TypeError, ValueError
        On a rank outside 1..width, a width below 2, or a variance that is not above 0.

    Notes
    -----
    Statement ``thm-nsd``. Source: Johnstone (2001) for centre and scale.
    """
    _check_rank(rank, width)
    check_integer("width", width, 2)
    check_real("variance", variance, minimum=0.0, exclusive=True)
    root_n, root_r = math.sqrt(width - 1), math.sqrt(rank)
    scale = (root_n + root_r) * (1 / root_n + 1 / root_r) ** (1 / 3)
    standardised = (1 / variance - (root_n + root_r) ** 2) / scale
    shape, gamma_scale, shift = 46.446, 0.186054, 9.84801
    argument = torch.tensor(max(0.0, standardised + shift) / gamma_scale, dtype=torch.float64)
    return torch.special.gammainc(torch.tensor(shape, dtype=torch.float64), argument).item()


def order_interval(rank: int, dimension: int, variance: float, scaling: float = 1.0) -> tuple[float, float]:
    """(c-, c+) with c- K_full <= K_LoRA <= c+ K_full at B = 0, on data that span `dimension` dimensions in the layer.

    c-+ = s^2 sigma^2 (sqrt(r) -+ sqrt(d))^2, c- being 0 where r <= d: the extreme eigenvalues of s^2 A^T A on a
    subspace of dimension d that does not depend on A. Gaussian entries leave the interval by more than
    s^2 sigma^2 (2 (sqrt(r) + sqrt(d)) t + t^2) with probability 2 exp(-t^2/2) at most.

    Parameters
    ----------
    rank : int
        r, 1 or above.
    dimension : int
        d, dimension of the span of the layer's activations over the data: at most the fan-in, and at most inputs times
        positions.
    variance : float
        sigma^2 of the entries of A, 0 or above.
    scaling : float
        s, above 0.

    Raises
    ------
    TypeError, ValueError
        On a rank or dimension below 1, a negative variance or a scaling that is not above 0.

    Notes
    -----
    Statement ``order-on-data``. Source: Davidson and Szarek (2001), theorem II.13.
    """
    check_integer("rank", rank, 1)
    check_integer("dimension", dimension, 1)
    check_real("variance", variance, minimum=0.0)
    check_real("scaling", scaling, minimum=0.0, exclusive=True)
    low, high = max(0.0, math.sqrt(rank) - math.sqrt(dimension)), math.sqrt(rank) + math.sqrt(dimension)
    return scaling**2 * variance * low**2, scaling**2 * variance * high**2


def order_doubt(rank: int, dimension: int, variance: float, scaling: float = 1.0) -> float:
    """Bound on the probability that a Gaussian draw breaks K_LoRA <= K_full at B = 0 on data of this dimension.

    exp(-t^2/2) with t = 1 / (s sigma) - sqrt(r) - sqrt(d), the distance of `order_interval`'s upper end from 1 before
    squaring; 1 where t is not above 0.

    Parameters
    ----------
    rank, dimension, variance, scaling
        As for `order_interval`, variance above 0.

    Raises
    ------
    TypeError, ValueError
        As `order_interval`, and on a variance of 0.

    Notes
    -----
    Statement ``order-on-data``. Source: Davidson and Szarek (2001), theorem II.13.
    """
    check_integer("rank", rank, 1)
    check_integer("dimension", dimension, 1)
    check_real("variance", variance, minimum=0.0, exclusive=True)
    check_real("scaling", scaling, minimum=0.0, exclusive=True)
    slack = 1 / (scaling * math.sqrt(variance)) - math.sqrt(rank) - math.sqrt(dimension)
    return math.exp(-(slack**2) / 2) if slack > 0 else 1.0


def order_certificate(A: Tensor, B: Tensor | None = None, scaling: float = 1.0) -> float:
    """s^2 times the squared spectral norms of A and B: up to 1, K_LoRA <= K_full at the merged weights W + s B A.

    Exact for one layer, at every step of a training run and every width; for several layers each needs it.

    Parameters
    ----------
    A : Tensor (rank, fan_in)
    B : Tensor (fan_out, rank), optional
        None for 0.
    scaling : float
        s, above 0.

    Raises
    ------
    TypeError, ValueError
        If A or B is not a finite matrix, their ranks differ, or `scaling` is not above 0.

    Notes
    -----
    Statement ``order-in-training``: K_LoRA = J P J^T with J the full Jacobian by W and
    P = s^2 (I (x) A^T A + B B^T (x) I), whose largest eigenvalue is this number.
    """
    A = check_tensor("A", A, ndim=2)
    check_real("scaling", scaling, minimum=0.0, exclusive=True)
    norm = torch.linalg.matrix_norm(A.double(), 2).square()
    if B is not None:
        B = check_tensor("B", B, ndim=2)
        if B.shape[1] != A.shape[0]:
            raise ValueError(f"B must have as many columns as A has rows, {A.shape[0]}; got shape {tuple(B.shape)}")
        norm = norm + torch.linalg.matrix_norm(B.double(), 2).square()
    return scaling**2 * norm.item()


def kernel_scale(rank: int, variance: float, scaling: float = 1.0) -> float:
    """s^2 r sigma^2: the mean of LoRA's kernel over A at B = 0, in units of full fine-tuning's.

    Raises
    ------
    TypeError, ValueError
        On a rank below 1, a negative variance or a scaling that is not above 0.

    Notes
    -----
    Statement ``kernel-scale``.
    """
    check_integer("rank", rank, 1)
    check_real("variance", variance, minimum=0.0)
    check_real("scaling", scaling, minimum=0.0, exclusive=True)
    return scaling**2 * rank * variance


SERIES = 2**22
"""Most terms that `cosine_law` sums."""


def cosine_law(rank: int, cosine: float = 0.0) -> tuple[float, float]:
    """Mean of cos(A a, A a') and of its absolute value over Gaussian A, for activations whose cosine is given.

    Parameters
    ----------
    rank : int
        r, rows of A.
    cosine : float
        rho = cos(a, a'), -1 to 1.

    Returns
    -------
    (float, float)
        Mean and mean absolute value, with an error below 1e-8; for rank 2 and 1 - rho^2 below 1e-5, below 1e-5.

    Raises
    ------
    TypeError, ValueError
        On a rank below 1 or a cosine outside -1 to 1.

    Notes
    -----
    Statement ``why-it-matters``. The mean is rho (2/r) (Gamma((r+1)/2) / Gamma(r/2))^2 2F1(1/2, 1/2; r/2 + 1; rho^2),
    here by Euler's integral in psi = arcsin(rho sin(theta)). The mean absolute value is
    (1 - rho^2)^(r/2) Gamma(r/2) / (sqrt(pi) Gamma((r+1)/2)) 3F2(r/2, r/2, 1; 1/2, (r+1)/2; rho^2), a series of
    positive terms; where it is too long, the cosine is negative with probability (1 - rho^2)^(r/2) at most, and the
    mean is taken.
    """
    check_integer("rank", rank, 1)
    check_real("cosine", cosine, minimum=-1.0)
    if cosine > 1.0:
        raise ValueError(f"cosine must be at most 1; got {cosine}")
    mean = math.copysign(_mean_cosine(rank, abs(cosine)), cosine)
    square = cosine**2
    if rank == 1 or square == 1.0:
        return mean, 1.0
    half = rank / 2
    terms = int((half * square + 60 * math.sqrt(rank) + 60) / (1 - square)) + 1
    if terms > SERIES:
        return mean, abs(mean)
    k = torch.arange(terms, dtype=torch.float64)
    logs = 2 * torch.lgamma(half + k) - torch.lgamma(0.5 + k) - torch.lgamma(half + 0.5 + k)
    logs += 2 * k * math.log(abs(cosine)) if square > 0 else torch.where(k > 0, -math.inf, 0.0)
    return mean, math.exp(torch.logsumexp(logs, 0).item() - math.lgamma(half) + half * math.log1p(-square))


def _mean_cosine(rank: int, cosine: float) -> float:
    """c int_0^alpha (1 - (sin psi / rho)^2)^((r-1)/2) dpsi with alpha = arcsin rho; psi = alpha (1 - v^2) is smooth."""
    if cosine in (0.0, 1.0):
        return cosine
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(400))
    alpha, v = math.asin(cosine), (nodes + 1) / 2
    psi = alpha * (1 - v**2)
    cosines = ((1 - torch.sin(psi) / cosine) * (1 + torch.sin(psi) / cosine)).clamp(min=0.0).sqrt()
    integral = (weights * alpha * v * cosines ** (rank - 1)).sum().item()  # dv = 1/2 dnode, dpsi = 2 alpha v dv
    ratio = math.lgamma((rank + 1) / 2) - math.lgamma(rank / 2)
    return 2 / math.sqrt(math.pi) * math.exp(ratio) * integral


def is_negative_semidefinite(M: Tensor, tol: float) -> bool:
    """Whether the largest eigenvalue of the symmetric matrix M is at most `tol` (same unit as M).

    Raises
    ------
    TypeError, ValueError
        If M is not a finite symmetric matrix or `tol` is negative.

    Notes
    -----
    Statement ``thm-nsd``. Round-off moves eigenvalues by about n eps times the norm of M: no `tol` below that
    can be met.
    """
    M = check_square("M", M)
    check_real("tol", tol, minimum=0.0)
    return bool(torch.linalg.eigvalsh(M)[-1] <= tol)


def information_bits(
    eigenvalues: Tensor, *, rtol: float | None = None, regularization: float | None = None, base: float = math.e
) -> Tensor:
    """Half the log pseudo-determinant of a Fisher information matrix.

    Parameters
    ----------
    eigenvalues : Tensor (k,)
        Spectrum of a positive semi-definite matrix, any order.
    rtol : float, optional
        Eigenvalues up to rtol times the largest count as zero; k eps when None.
    regularization : float, optional
        tau above 0: 1/2 sum log(1 + lambda/tau) over all eigenvalues instead, which needs no threshold.
    base : float
        Of the logarithm, above 1: the unit is nats for e, bits for 2.

    Returns
    -------
    Tensor ()
        -inf for the zero spectrum (0 with `regularization`).

    Raises
    ------
    TypeError, ValueError
        On a bad spectrum, a negative eigenvalue beyond round-off, a base up to 1, or `rtol` beside `regularization`.

    Notes
    -----
    Statement ``eq-6``; the logarithm is missing from the printed sum.
    """
    check_real("base", base, minimum=1.0, exclusive=True)
    unit = 0.5 / math.log(base)
    eigenvalues = _check_spectrum(eigenvalues)
    if regularization is not None:
        if rtol is not None:
            raise ValueError("rtol must be None beside regularization: a regularised spectrum has no threshold")
        check_real("regularization", regularization, minimum=0.0, exclusive=True)
        return unit * torch.log1p(eigenvalues.clamp(min=0.0) / regularization).sum()
    positive = nonzero(eigenvalues, rtol)
    if positive.numel() == 0:
        return eigenvalues.new_tensor(-math.inf)
    return unit * positive.log().sum()


def renyi_entropy(eigenvalues: Tensor, alpha: float, *, normalize: bool = False) -> Tensor:
    """Renyi entropy of order alpha of a spectrum, in nats: log(sum_i lambda_i^alpha) / (1 - alpha).

    Parameters
    ----------
    eigenvalues : Tensor (k,)
        Spectrum of a positive semi-definite matrix, any order; those up to k eps times the largest count as zero.
    alpha : float
        Order, 0 to infinity. 0 gives log rank. Infinity gives -log of the largest eigenvalue. 1 gives Shannon's
        entropy where the spectrum sums to 1; elsewhere the formula diverges there and its value is the limit from
        below, +inf for a sum above 1 and -inf for a sum below 1.
    normalize : bool
        Divide the spectrum by its sum first: the spectral (von Neumann) convention, finite at every order.

    Returns
    -------
    Tensor ()

    Raises
    ------
    TypeError, ValueError
        On a bad spectrum, the zero spectrum, or a negative order.

    Notes
    -----
    Statement ``eq-7``. Source: Renyi (1961).
    """
    eigenvalues = _check_spectrum(eigenvalues)
    if alpha != math.inf:
        check_real("alpha", alpha, minimum=0.0)
    p = nonzero(eigenvalues)
    if p.numel() == 0:
        raise ValueError("eigenvalues must hold a positive one: the zero spectrum has no entropy")
    total = p.double().sum()
    slack = 8 * p.numel() * torch.finfo(p.dtype).eps
    distribution = normalize or abs(total.item() - 1) <= slack
    logs = p.double().log() - (total.log() if distribution else 0.0)
    return _renyi(logs, alpha, distribution).to(p.dtype)


def _renyi(logs: Tensor, alpha: float, distribution: bool) -> Tensor:
    """Renyi entropy of exp(logs), whose sum is exactly 1 if `distribution`, without cancellation near order 1.

    sum p^alpha = sum p + sum p (exp((alpha - 1) log p) - 1), and the last sum is of the size of 1 - alpha.
    """
    if alpha == math.inf:
        return -logs.max()
    p, total = logs.exp(), torch.logsumexp(logs, 0)
    if alpha == 1:
        return -(p * logs).sum() if distribution else torch.sign(total) * math.inf
    if distribution and abs(alpha - 1) * logs.abs().max() < 0.5:
        return torch.log1p((p * torch.expm1((alpha - 1) * logs)).sum()) / (1 - alpha)
    return torch.logsumexp(alpha * logs, dim=0) / (1 - alpha)


def _check_rank(rank: int, width: int) -> None:
    check_integer("width", width, 1)
    check_integer("rank", rank, 1)
    if rank > width:
        raise ValueError(f"rank must be at most width = {width}; got {rank}")


def _check_spectrum(eigenvalues: Tensor) -> Tensor:
    eigenvalues = check_tensor("eigenvalues", eigenvalues, ndim=1)
    slack = 100 * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues.abs().max()
    if eigenvalues.min() < -slack:
        raise ValueError(f"eigenvalues must not be negative beyond round-off; got {eigenvalues.min().item():.6g}")
    return eigenvalues


def nonzero(eigenvalues: Tensor, rtol: float | None = None) -> Tensor:
    """Eigenvalues above rtol times the largest, in the order given; rtol is k eps for k eigenvalues when None."""
    if rtol is None:
        rtol = len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    check_real("rtol", rtol, minimum=0.0)
    return eigenvalues[eigenvalues > rtol * eigenvalues.max().clamp(min=0.0)]
