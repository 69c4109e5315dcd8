"""Chapter 6: the two scalars of a spectrum. Claims ``eq-6``, ``eq-7``."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import entropy as scipy_entropy
from torch import Tensor, nn

from evidence.claims import Claim, Evidence
from evidence.routes import measure
from experiments.data import digits
from lorantk import fisher_spectrum, information_bits, mlp, renyi_entropy
from lorantk.fisher import loss_gram

from . import autograd

Case = tuple[nn.Module, Tensor, Tensor]


def half_log_determinant(case: Case) -> float:
    """1/2 log det of the Gram matrix with the nonzero spectrum of the Fisher information."""
    model, x, y = case
    return 0.5 * torch.linalg.slogdet(loss_gram(model, x, y) / len(x))[1].item()


def printed_bits(case: Case) -> float:
    """1/2 sum of the eigenvalues."""
    return 0.5 * fisher_spectrum(*case).sum().item()


def bits(case: Case) -> float:
    """1/2 sum of the logarithms of the eigenvalues."""
    return information_bits(fisher_spectrum(*case)).item()


def plain_bits(case: Case) -> float:
    """1/2 sum of logarithms, from the singular values of plain per-sample gradients."""
    model, x, y = case
    return (torch.linalg.svdvals(autograd.loss_gradients(model, x, y)) / len(x) ** 0.5).log().sum().item()


def plain_half_log_determinant(case: Case) -> float:
    """1/2 log det of the Gram matrix of plain per-sample gradients, by its Cholesky factor."""
    model, x, y = case
    G = autograd.loss_gradients(model, x, y)
    return torch.linalg.cholesky(G @ G.T / len(x)).diagonal().log().sum().item()


def eq_6(seed: int, width: int, n: int) -> Claim:
    """Information bits of a network on digits."""
    case = (mlp([64, width, width, 10], seed=seed).double(), *digits(n, seed))
    few = (case[0], case[1][:8], case[2][:8])
    determinant = measure(half_log_determinant, case)
    tip, source = "printed sum / half the log determinant", "equation 6 itself: ½ log det of the pseudo-determinant"
    reason = "the determinant is no product of these eigenvalues"
    return Claim(
        "eq-6",
        [
            Evidence(tip, measure(lambda a, b: a / b, measure(printed_bits, case), determinant), 1 - 1e-6, 1 + 1e-6,
                     "the sum lacks its logarithms"),
            Evidence("sum of logarithms against slogdet, relative", measure(
                lambda a, b: abs(a / b - 1), measure(bits, case), determinant), 0, 1e-6, reason,
                reading="as meant", source=source),
            Evidence("plain gradients: sum of logarithms against Cholesky, relative", measure(
                lambda a, b: abs(a / b - 1), measure(plain_bits, few), measure(plain_half_log_determinant, few)),
                0, 1e-6, reason, reading="as meant", source=source),
        ],
        tip,
        figure="information-bits",
        tables={"determinant": determinant.value, "printed": printed_bits(case), "bits": bits(case)},
    )  # fmt: skip


def entropy(spectrum: Tensor, order: float, normalize: bool = False) -> float:
    """Our entropy of a spectrum."""
    return renyi_entropy(spectrum, order, normalize=normalize).item()


def plain_entropy(spectrum: Tensor, order: float, normalize: bool = False) -> float:
    """The printed formula with numpy, the largest eigenvalue factored out so that no power overflows."""
    p = spectrum.numpy()[spectrum.numpy() > 0]
    p = p / p.sum() if normalize else p
    return float((order * np.log(p.max()) + np.log(((p / p.max()) ** order).sum())) / (1 - order))


def shannon(spectrum: Tensor) -> float:
    """-sum lambda log lambda."""
    return torch.special.entr(spectrum).sum().item()


def shannon_of_distribution(spectrum: Tensor) -> float:
    """Shannon's entropy by scipy, which divides by the sum."""
    return float(scipy_entropy(spectrum.numpy()))


def eq_7(seed: int, width: int, n: int) -> Claim:
    """Rényi entropy of the Fisher spectrum of a network on digits, at order 1 and at infinity."""
    s = fisher_spectrum(mlp([64, width, width, 10], seed=seed).double(), *digits(n, seed))
    s = s[s > 1e-12 * s[0]]
    difference = lambda a, b: a - b  # noqa: E731
    tip = "order 1 − 1e-6, minus Shannon's formula"
    source = "after equation 7: Shannon's entropy, which is that of a distribution"
    diverges, reversed_ = "a spectrum does not sum to one: the formula diverges", "it is minus the logarithm"
    formula, distribution = measure(shannon, s), measure(shannon_of_distribution, s)
    order, log = 1e4, math.log(s[0].item())
    around = (-(math.log(len(s)) + abs(log)) / (order - 1) - 1e-9, abs(log) / (order - 1) + 1e-9)
    return Claim(
        "eq-7",
        [
            Evidence(tip, measure(difference, measure(entropy, s, 1 - 1e-6), formula), -1e-3, 1e-3, diverges,
                     "shannon"),
            Evidence("order 1 + 1e-6, numpy, minus Shannon's formula", measure(
                difference, measure(plain_entropy, s, 1 + 1e-6), formula), -1e-3, 1e-3, diverges, "shannon"),
            Evidence("normalised at order 1, minus scipy's entropy", measure(
                difference, measure(entropy, s, 1, True), distribution), -1e-9, 1e-9,
                "it has another limit at order 1", "shannon", "as meant", source),
            Evidence("normalised, orders 1 ± 1e-6, numpy, minus scipy's entropy, larger", measure(
                lambda a, b, c: max(abs(a - c), abs(b - c)), measure(plain_entropy, s, 1 - 1e-6, True),
                measure(plain_entropy, s, 1 + 1e-6, True), distribution), 0, 1e-4,
                "it jumps at order 1", "shannon", "as meant", source),
            Evidence(f"order {order:g}, minus the largest eigenvalue", measure(
                lambda h: h - s[0].item(), measure(entropy, s, order)), -0.01, 0.01, reversed_, "infinity"),
            Evidence(f"order {order:g}, normalised, minus the largest", measure(
                lambda h: h - (s[0] / s.sum()).item(), measure(entropy, s, order, True)), -0.01, 0.01, reversed_,
                "infinity"),
            Evidence(f"order {order:g}, plus the logarithm of the largest", measure(
                lambda h: h + log, measure(entropy, s, order)), *around, "the limit is another one", "infinity",
                "corrected"),
            Evidence(f"order {order:g}, numpy, plus the logarithm of the largest", measure(
                lambda h: h + log, measure(plain_entropy, s, order)), *around, "the limit is another one", "infinity",
                "corrected"),
        ],
        tip,
        figure="renyi-entropy",
        tables={"spectrum": s},
    )  # fmt: skip
