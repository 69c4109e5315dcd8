"""Chapter 7: does LoRA carry less information where M <= 0? Claims ``thm-ib``, ``thm-renyi``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from evidence.claims import Claim, Evidence
from evidence.routes import Measured, measure
from lorantk import (
    Adapter,
    LoRA,
    attach,
    fisher_spectrum,
    information_bits,
    mlp,
    order_certificate,
    renyi_entropy,
)

from . import autograd

ZERO = 1e-10
"""Eigenvalues up to this share of the largest of full fine-tuning count as 0."""

Pair = tuple[Tensor, Tensor]


class Case(NamedTuple):
    """A network, the same with adapters for which M <= 0, inputs and labels."""

    full: nn.Module
    lora: nn.Module
    x: Tensor
    y: Tensor


def random_cases(cases: int, seed: int) -> list[Case]:
    """Depth 1 to 3, widths 2 to 12, 1 to 5 inputs, some repeated, zero or collinear; the largest |A| is at most 1.

    In a third of the cases the rows of A are orthonormal: M is on the edge, with r eigenvalues 0.
    """
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    found = []
    for case in range(cases):
        widths = [pick(2, 12) for _ in range(pick(1, 3))] + [pick(2, 3)]
        net = mlp(widths, ("relu", "erf", "tanh", "linear")[pick(0, 3)], seed=case).double()
        x = torch.randn(pick(1, 5), widths[0], generator=generator, dtype=torch.float64)
        x[-1] = (x[-1], x[0], 0 * x[0], 2 * x[0])[pick(0, 3)]
        y = torch.randint(widths[-1], (len(x),), generator=generator)
        edge, rank = pick(0, 2) == 0, pick(1, min(widths[:-1]))
        drawn = LoRA(rank, "orthonormal" if edge else 1.0).sample(net, case)
        shrink = torch.rand(1, generator=generator, dtype=torch.float64).sqrt().maximum(torch.tensor(float(edge)))
        adapters = {name: Adapter(A * shrink / torch.linalg.matrix_norm(A, 2)) for name, A in drawn.items()}
        found.append(Case(net, attach(net, adapters), x, y))
    return found


def by_hand(epsilon: float = 0.01) -> list[Case]:
    """Two small cases of one linear layer: M = diag(0, -1), and an A that makes LoRA's spectrum flat.

    On inputs (1, 0) and (0, sqrt(epsilon)), with equal loss derivatives.
    """
    x = torch.tensor([[1.0, 0.0], [0.0, epsilon**0.5]], dtype=torch.float64)
    net, y = mlp([2, 2], "linear", "standard").double(), torch.zeros(2, dtype=torch.int64)
    net.get_parameter("0.weight").data.zero_()
    drops = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    flattens = torch.diag(torch.tensor([epsilon**0.5, 1.0], dtype=torch.float64))
    return [Case(net, attach(net, {"0": A}), x, y) for A in (drops, flattens)]


def spectra(cases: Sequence[Case]) -> list[Pair]:
    """Fisher spectra of full fine-tuning and of LoRA, descending, over the largest eigenvalue of the former.

    Cases in which LoRA's is 0, which has no entropy, are left out.
    """
    return _kept([(fisher_spectrum(c.full, c.x, c.y), fisher_spectrum(c.lora, c.x, c.y)) for c in cases])


def _kept(pairs: Sequence[Pair]) -> list[Pair]:
    kept = []
    for pair in pairs:
        size = max(map(len, pair))
        f, g = (nn.functional.pad(s.clamp(min=0), (0, size - len(s))) for s in pair)
        if size and g.max() > ZERO * f.max():
            kept.append((f / f.max(), g / f.max()))
    return kept


def plain_spectra(cases: Sequence[Case]) -> list[Pair]:
    """The same from singular values of plain per-sample gradients."""
    kept = []
    for c in cases:
        G, H = (autograd.loss_gradients(m, c.x, c.y) / len(c.x) ** 0.5 for m in (c.full, c.lora))
        f, g = (torch.linalg.eigvalsh(J @ J.T).flip(0).clamp(min=0) for J in (G, H))
        if g.max() > ZERO * f.max():
            kept.append((f / f.max(), g / f.max()))
    return kept


def smallest_gap(pairs: Sequence[Pair], scalar: Callable[[Tensor], float], same_rank: bool = False) -> float:
    """Smallest difference of a scalar of the spectrum, full fine-tuning minus LoRA, over all pairs or some."""
    kept = [(f, g) for f, g in pairs if not same_rank or _rank(f) == _rank(g)]
    return min(scalar(f) - scalar(g) for f, g in kept)


def plain_smallest_gap(pairs: Sequence[Pair], scalar: Callable[[Tensor], float], same_rank: bool = False) -> float:
    """The same in numpy, one pair after the other."""
    gaps = []
    for full, lora in pairs:
        if not same_rank or (full > ZERO).sum() == (lora > ZERO).sum():
            gaps.append(scalar(full) - scalar(lora))
    return float(np.min(gaps))


def _rank(s: Tensor) -> int:
    return int((s > ZERO).sum())


def bits(s: Tensor) -> float:
    """Half the log pseudo-determinant by the package."""
    return information_bits(s, rtol=ZERO / s.max().item()).item()


def plain_bits(s: Tensor) -> float:
    """Half the sum of logarithms of what is not 0."""
    return 0.5 * float(np.log(s.numpy()[s.numpy() > ZERO]).sum())


def regularised(s: Tensor) -> list[float]:
    """Regularised bits at three levels."""
    return [information_bits(s, regularization=t).item() for t in (1e-4, 1e-2, 1.0)]


def half_sum(s: Tensor) -> float:
    """Half the sum of the eigenvalues, the last form of equation 6."""
    return 0.5 * s.sum().item()


def plain_half_trace(s: Tensor) -> float:
    """The same in numpy."""
    return 0.5 * float(np.sum(s.numpy()))


def entropy_gaps(pairs: Sequence[Pair], orders: Sequence[float], normalize: bool = False) -> np.ndarray:
    """H(full) - H(LoRA) by the package, a row an order."""
    return np.array(
        [[(renyi_entropy(f, a, normalize=normalize) - renyi_entropy(g, a, normalize=normalize)).item()
          for f, g in pairs] for a in orders]
    )  # fmt: skip


def plain_entropy_gaps(pairs: Sequence[Pair], orders: Sequence[float], normalize: bool = False) -> np.ndarray:
    """The same by the printed formula in numpy, the largest eigenvalue factored out; order 1 by Shannon's formula."""

    def entropy(s: Tensor, order: float) -> float:
        p = s.numpy()[s.numpy() > 1e-14 * s.max().item()]
        p = p / p.sum() if normalize else p
        if order == 1:
            return -float((p * np.log(p)).sum())
        return float((order * np.log(p.max()) + np.log(((p / p.max()) ** order).sum())) / (1 - order))

    return np.array([[entropy(f, a) - entropy(g, a) for f, g in pairs] for a in orders])


def one_by_one(A: float, B: float) -> tuple[nn.Module, nn.Module]:
    """y = (w + B A) x: the merged model, all of it trained, and the adapted one."""
    net = mlp([1, 1], "linear", "standard").double()
    adapter = Adapter(torch.tensor([[A]], dtype=torch.float64), torch.tensor([[B]], dtype=torch.float64))
    return net, attach(net, {"0": adapter})


def kernel_ratio(models: tuple[nn.Module, nn.Module]) -> float:
    """K_LoRA / K_FF at x = 1, from plain gradients."""
    full, lora = (autograd.kernel(m, torch.ones(1, 1, dtype=torch.float64)).item() for m in models)
    return lora / full


def certificate(models: tuple[nn.Module, nn.Module]) -> float:
    """s^2 (|A|^2 + |B|^2) of the adapted model."""
    A, B = (p.detach() for p in models[1].parameters() if p.requires_grad)
    return order_certificate(A, B)


def claims(cases: Sequence[Case]) -> tuple[Claim, Claim]:
    """Both claims of the chapter, on random networks (`random_cases`) and by hand."""
    found, plain = measure(spectra, cases), measure(plain_spectra, cases[: max(40, len(cases) // 20)])
    return thm_ib(found, plain), thm_renyi(found, plain)


def thm_ib(found: Measured[list[Pair]], plain: Measured[list[Pair]]) -> Claim:
    """Information bits where M <= 0, from `spectra`, from `plain_spectra` and by hand."""
    hand = measure(plain_spectra, by_hand()[:1])
    unequal = "LoRA's smaller spectrum has lost eigenvalues below 1, so its product is larger"
    order = "some eigenvalue of LoRA's is larger"
    tip, first = "by hand: IB(FF) − IB(LoRA)", "smallest IB(FF) − IB(LoRA), any ranks"
    trained, at_zero = one_by_one(0.5, 2.0), one_by_one(0.5, 0.0)
    return Claim(
        "thm-ib",
        [
            Evidence("smallest difference of ½ Σλ", measure(smallest_gap, found, half_sum), -1e-12, np.inf, order,
                     "sum"),
            Evidence("smallest difference of ½ Σλ, plain gradients", measure(
                plain_smallest_gap, plain, plain_half_trace), -1e-12, np.inf, order, "sum"),
            Evidence(tip, measure(plain_smallest_gap, hand, plain_bits), -1e-8, np.inf, unequal, "bits"),
            Evidence(first, measure(smallest_gap, found, bits), -1e-5, np.inf, unequal, "bits"),
            Evidence("smallest IB(FF) − IB(LoRA), same rank", measure(smallest_gap, found, bits, True), -1e-5, np.inf,
                     order, "bits", "amended", repairs=first),
            Evidence("smallest difference of regularised bits", measure(
                lambda p: min(a - b for f, g in p for a, b in zip(regularised(f), regularised(g), strict=True)), found),
                -1e-9, np.inf, order, "bits", "corrected"),
            Evidence("1 × 1, A = ½ (M < 0), B = 2: LoRA's kernel / full's", measure(kernel_ratio, trained), 0, 1,
                     "A's own part of the kernel grows with B", "training"),
            Evidence("1 × 1, A = ½, B = 2: s²(|A|² + |B|²)", measure(certificate, trained), 0, 1,
                     "A's own part of the kernel grows with B", "training"),
            Evidence("1 × 1, A = ½, B = 0: LoRA's kernel / full's", measure(kernel_ratio, at_zero), 0, 1,
                     "the premise is not enough at the start either", "training", "amended",
                     repairs="1 × 1, A = ½ (M < 0), B = 2: LoRA's kernel / full's"),
        ],
        tip,
        figure="information-plane",
    )  # fmt: skip


BELOW, ABOVE = (0.0, 0.3, 0.9), (1.1, 2.0, 100.0, 1e4)


def thm_renyi(found: Measured[list[Pair]], plain: Measured[list[Pair]]) -> Claim:
    """Rényi entropy where M <= 0: below order 1, above it, and normalised."""
    hand = measure(plain_spectra, by_hand()[1:])
    above, plain_above = measure(entropy_gaps, found, ABOVE), measure(plain_entropy_gaps, plain, ABOVE)
    below, plain_below = measure(entropy_gaps, found, BELOW), measure(plain_entropy_gaps, plain, BELOW)
    normal, by_hand_ = measure(entropy_gaps, found, [1.0], True), measure(plain_entropy_gaps, hand, [1.0], True)
    tip = "smallest H(FF) − H(LoRA), α > 1"
    flips, scale = "dividing by 1 − α reverses the order", "normalised, all scale drops out"
    monotone = "some eigenvalue of LoRA's is larger"
    least, most = (lambda gaps: float(gaps.min())), (lambda gaps: float(gaps.max()))
    return Claim(
        "thm-renyi",
        [
            Evidence("smallest H(FF) − H(LoRA), α < 1", measure(least, below), -1e-6, np.inf, monotone, "below"),
            Evidence("smallest H(FF) − H(LoRA), α < 1, numpy", measure(least, plain_below), -1e-6, np.inf, monotone,
                     "below"),
            Evidence(tip, measure(least, above), -1e-6, np.inf, flips, "above"),
            Evidence("smallest H(FF) − H(LoRA), α > 1, numpy", measure(least, plain_above), -1e-6, np.inf, flips,
                     "above"),
            Evidence("largest H(FF) − H(LoRA), α > 1", measure(most, above), -np.inf, 1e-6,
                     "it is not reversed, but unordered", "above", "corrected"),
            Evidence("largest H(FF) − H(LoRA), α > 1, numpy", measure(most, plain_above), -np.inf, 1e-6,
                     "it is not reversed, but unordered", "above", "corrected"),
            Evidence("smallest H(FF) − H(LoRA), normalised", measure(least, normal), -1e-6, np.inf, scale, "shannon"),
            Evidence("by hand: H(FF) − H(LoRA), normalised", measure(least, by_hand_), -1e-6, np.inf, scale, "shannon"),
            Evidence("share of cases with a higher normalised entropy, of the rarer method", measure(
                lambda gaps: min((gaps < -1e-9).mean(), (gaps > 1e-9).mean()), normal), 0.02, 0.5,
                "it is ordered after all, or reversed", "shannon", "corrected"),
        ],
        tip,
        figure="information-plane",
        tables={"normalised": normal.value, "by hand": by_hand_.value, "spectra": found.value},
    )  # fmt: skip
