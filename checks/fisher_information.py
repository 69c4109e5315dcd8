"""Chapter 5: Fisher information is the kernel weighted by loss derivatives. Claim ``thm-fisher``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from evidence.claims import Claim, Evidence, disagreement
from evidence.routes import measure
from experiments.data import digits
from lorantk import LoRA, fisher_spectrum, fisher_trace, mlp
from lorantk.fisher import loss_gradients

from . import autograd

Case = tuple[nn.Module, Tensor, Tensor, str]


def spectra(case: Case) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the Fisher information by per-sample gradients (dense matrix) and by the kernel, descending."""
    model, x, y, loss = case
    dense = torch.linalg.svdvals(loss_gradients(model, x, y, loss)).square() / len(x)
    return dense, fisher_spectrum(model, x, y, loss)


def spectrum_error(cases: Iterable[Case]) -> float:
    """Largest difference of the two spectra, relative to the largest eigenvalue."""
    errors = []
    for dense, kernel in map(spectra, cases):
        padded = nn.functional.pad(kernel, (0, max(0, len(dense) - len(kernel))))
        errors.append((padded[: len(dense)] - dense).abs().max().item() / max(dense[0].item(), 1e-300))
    return max(errors)


def trace_error(cases: Iterable[Case]) -> float:
    """Largest relative difference of the trace by the kernel from the mean squared norm of per-sample gradients."""
    errors = []
    for model, x, y, loss in cases:
        dense = loss_gradients(model, x, y, loss).square().sum() / len(x)
        errors.append((fisher_trace(model, x, y, loss) - dense).abs().item() / max(dense.item(), 1e-300))
    return max(errors)


def plain_gram(case: Case) -> Tensor:
    """d_i^T K(x_i, x_j) d_j / N for cross-entropy, from a plain kernel and softmax minus one-hot."""
    model, x, y, _ = case
    outputs = model(x).detach()
    d = torch.softmax(outputs, 1) - nn.functional.one_hot(y, outputs.shape[1])
    K = autograd.kernel(model, x).view(len(x), outputs.shape[1], len(x), outputs.shape[1])
    return torch.einsum("ic,icjd,jd->ij", d, K, d) / len(x)


def plain_spectrum_error(case: Case) -> float:
    """The same error without `lorantk`: eigenvalues of `plain_gram` against those of the dense P x P matrix."""
    model, x, y, _ = case
    G = autograd.loss_gradients(model, x, y)
    dense = torch.linalg.eigvalsh(G.T @ G / len(x))[-len(x) :]
    return disagreement(torch.linalg.eigvalsh(plain_gram(case))[-len(dense) :], dense)


def plain_trace_error(case: Case) -> float:
    """The same error of the trace without `lorantk`."""
    model, x, y, _ = case
    dense = autograd.loss_gradients(model, x, y).square().sum() / len(x)
    return abs(plain_gram(case).trace() / dense - 1).item()


def trained(width: int, rank: int, x: Tensor, y: Tensor, seed: int) -> dict[tuple[str, str], Case]:
    """Full fine-tuning and LoRA in one network, with two losses."""
    base = mlp([64, width, width, 10], seed=seed).double()
    models = {"full": base, "LoRA": LoRA(min(rank, width), 1 / rank).attach(base, seed)}
    targets = {"cross_entropy": y, "squared_error": nn.functional.one_hot(y, 10).double()}
    return {(arm, loss): (m, x, t, loss) for arm, m in models.items() for loss, t in targets.items()}


def random_cases(cases: int, seed: int) -> list[Case]:
    """One to four layers of width 2 to 64, four activations, two parametrisations, some inputs repeated or zero."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    found: list[Case] = []
    for case in range(cases):
        shape = [pick(2, 64) for _ in range(pick(1, 4))] + [pick(2, 4)]
        activation, parametrization = ("relu", "erf", "tanh", "linear")[pick(0, 3)], ("ntk", "standard")[pick(0, 1)]
        net = mlp(shape, activation, parametrization, seed=case).double()
        points = torch.randn(pick(2, 6), shape[0], generator=generator, dtype=torch.float64)
        points[-1] = (points[-1], points[0], -points[0], 0 * points[0])[pick(0, 3)]
        labels = torch.randint(shape[-1], (len(points),), generator=generator)
        rank = pick(1, min(shape[:-1]))
        tuned = LoRA(rank, 0.5, 2.0).attach(net, case) if pick(0, 1) else net
        found.append((tuned, points, labels, "cross_entropy"))
    return found


def thm_fisher(seed: int, rank: int, widths: Sequence[int], n: int, cases: int) -> Claim:
    """The theorem at several widths, two losses, full fine-tuning and LoRA, and on random networks."""
    x, y = digits(n, seed)
    by_width = {w: trained(w, rank, x, y, seed) for w in widths}
    few = digits(6, seed)
    small = trained(widths[-1], rank, *few, seed)["LoRA", "cross_entropy"]
    wrong = "the weights, the mean over samples or the kernel's parameters are others"
    small_width = "it needs the limit of infinite width"
    evidence = []
    for width in widths:
        of_width = list(by_width[width].values())
        reason = small_width if width == widths[0] else wrong
        evidence += [
            Evidence(f"trace at width {width}, relative error", measure(trace_error, of_width), 0, 1e-10, reason,
                     "trace"),
            Evidence(f"spectrum at width {width}, relative error", measure(spectrum_error, of_width), 0, 1e-9, reason,
                     "spectrum"),
        ]  # fmt: skip
    evidence += [
        Evidence("trace, plain kernel against plain gradients", measure(plain_trace_error, small), 0, 1e-10, wrong,
                 "trace"),
        Evidence("spectrum, plain kernel against the P × P matrix", measure(plain_spectrum_error, small), 0, 1e-9,
                 wrong, "spectrum"),
        Evidence("random networks: largest error of the spectrum",
                 measure(spectrum_error, random_cases(cases, seed)), 0, 1e-9,
                 "some architecture, input or adapter breaks it", "spectrum"),
    ]  # fmt: skip
    return Claim(
        "thm-fisher",
        evidence,
        f"spectrum at width {widths[0]}, relative error",
        figure="fisher-spectrum",
        tables={
            "errors": {e.name: e.value for e in evidence},
            "spectra": {case: spectra(by_width[widths[-1]][case]) for case in by_width[widths[-1]]},
        },
    )
