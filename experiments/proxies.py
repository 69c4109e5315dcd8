"""What the theory says of a digits run before it trains, to be compared with what the attack did to it.

Scale-carrying proxies grow with the kernel: trace, information bits, raw alignment. Scale-free ones do not see a common
factor: normalised entropy, cosine, and the noise that the adapter adds to cosines. The kernel's drift is measured over
the run's own training. All are of the parameters that the run trains, head included, in float64. Of AdamW runs the same
are taken of Adam's kernel J D J^T too (``adam-kernel``), D the preconditioner that Adam comes to if it does not move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import pandas as pd
import torch
from rich.progress import track
from torch import Tensor, nn

from lorantk import information_bits, ntk, renyi_entropy
from lorantk.fisher import loss_gradients, loss_gram

from . import digits
from .config import Run
from .schedule import side_by_side

CLEAN, POISONED, DRIFT = 96, 48, 32
"""Inputs behind the Fisher information, poisoned ones beside them, and those whose kernel is followed."""

EPS = 1e-8
"""PyTorch's, beside the root mean square of a gradient in D."""


def measure(runs: Sequence[Run], jobs: int) -> pd.DataFrame:
    """`proxies` of each run, a row a run, in the order of their ids; `jobs` processes, -1 for one a core."""
    once = sorted({run.id: run for run in runs}.items())
    rows = side_by_side(_alone, [run for _, run in once], jobs)
    return pd.DataFrame(list(track(rows, "proxies", total=len(once))))


def _alone(run: Run) -> dict[str, float | str]:
    torch.set_num_threads(1)
    return proxies(run)


def proxies(run: Run) -> dict[str, float | str]:
    """Proxies of one attacked run, by name, beside its id.

    Returns
    -------
    dict
        fisher_trace: of the empirical Fisher on clean inputs at the start; information_bits: half its log
        pseudo-determinant, in nats; regularised_bits: half log det(I + Fisher / tau), tau the mean eigenvalue under
        full fine-tuning; entropy_unnormalised: Renyi's of order 1/2; entropy_normalised: Shannon's; alignment, cosine:
        mean absolute inner product and cosine of clean and poisoned gradients; cosine_noise: root mean square of its
        difference from full fine-tuning's cosine; kernel_drift: relative change of the kernel over the training,
        NaN if it diverged. For AdamW all but the last again of Adam's kernel, with "adam_" before their names.

    Raises
    ------
    ValueError
        If the run has no attack.
    """
    if run.attack == "none":
        raise ValueError("run must have an attack; got 'none'")
    model = digits.start([run])
    network = model.network(0).double()
    whole = replace(run, method="full", rank=None, variance=None, scaling=None, learning_rate=1.0)
    found: dict[str, float | str] = {"id": run.id, **_of_gram(_gram(network, run), _of_full(_gram, whole))}
    if run.optimizer == "adamw":
        of_adam = _of_gram(_adam_gram(network, run), _of_full(_adam_gram, whole))
        found |= {f"adam_{name}": value for name, value in of_adam.items()}
    kernel = _kernel(network, run)
    x, y = digits.poisoned(run)
    digits.train(model, [run], x[None], y[None])
    finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters)
    after = _kernel(model.network(0).double(), run) if finite else torch.nan * kernel
    return found | {"kernel_drift": ((after - kernel).norm() / kernel.norm()).item()}


def _of_gram(gram: Tensor, full: Tensor) -> dict[str, float]:
    """All proxies but the drift, from inner products of gradients, and those of full fine-tuning."""
    eigenvalues = torch.linalg.eigvalsh(gram[:CLEAN, :CLEAN] / CLEAN).clamp(min=0.0)
    cosine, full_cosine = _cosine(gram), _cosine(full)
    return {
        "fisher_trace": eigenvalues.sum().item(),
        "information_bits": information_bits(eigenvalues).item(),
        "regularised_bits": information_bits(
            eigenvalues, regularization=full.diagonal()[:CLEAN].mean().item() / CLEAN
        ).item(),
        "entropy_unnormalised": renyi_entropy(eigenvalues, 0.5).item(),
        "entropy_normalised": renyi_entropy(eigenvalues, 1.0, normalize=True).item(),
        "alignment": gram[:CLEAN, CLEAN:].abs().mean().item(),
        "cosine": cosine.abs().mean().item(),
        "cosine_noise": (cosine - full_cosine).square().mean().sqrt().item(),
    }


def _compared(run: Run) -> tuple[Tensor, Tensor]:
    """CLEAN clean inputs and POISONED poisoned ones with their labels."""
    x, y = (part[: CLEAN + POISONED] for part in digits.split(run.seed).train)
    poison_x, poison_y = digits.poison(x[CLEAN:], y[CLEAN:], replace(run, poison_rate=1.0))
    return torch.cat([x[:CLEAN], poison_x]).double(), torch.cat([y[:CLEAN], poison_y])


def _gram(network: nn.Module, run: Run) -> Tensor:
    """Inner products of loss gradients at the inputs compared."""
    return loss_gram(network, *_compared(run))


def _adam_gram(network: nn.Module, run: Run) -> Tensor:
    """The same weighted by `preconditioner`: from gradients one by one, as a factor an entry needs them."""
    gradients = loss_gradients(network, *_compared(run))
    return gradients * preconditioner(network, run) @ gradients.T


def preconditioner(network: nn.Module, run: Run) -> Tensor:
    """Adam's D = 1 / (sqrt(v) + EPS) for each trained weight, (P,), where the network stands; 0 where v is 0.

    v is the mean square of the gradient of a batch of the run's poisoned training data, drawn with replacement:
    m^2 + s^2 / batch_size for the mean m and the variance s^2 of the gradients of single samples. Adam's moment v, its
    bias corrected, comes to it while the parameters hardly move. Where it is 0 no training sample has a gradient, as
    at a unit that only other inputs reach: training never moves that weight, and 1 / EPS would be all that is seen.
    """
    x, y = digits.poisoned(run)
    first = second = torch.zeros(())
    for part in range(0, len(x), CLEAN):
        gradients = loss_gradients(network, x[part : part + CLEAN].double(), y[part : part + CLEAN])
        first, second = first + gradients.sum(0), second + gradients.square().sum(0)
    mean, square = first / len(x), second / len(x)
    v = mean**2 + (square - mean**2) / run.batch_size
    return torch.where(v > 0, 1 / (v.sqrt() + EPS), 0.0)


@lru_cache(maxsize=128)
def _of_full(gram: Callable[[nn.Module, Run], Tensor], run: Run) -> Tensor:
    """Inner products, of either kernel, for a run of full fine-tuning before its first step."""
    return gram(digits.start([run]).network(0).double(), run)


def _cosine(gram: Tensor) -> Tensor:
    norms = gram.diagonal().sqrt()
    return (gram / norms / norms[:, None])[:CLEAN, CLEAN:]


def _kernel(network: nn.Module, run: Run) -> Tensor:
    return ntk(network, digits.split(run.seed).test[0][:DRIFT].double(), output="trace")
