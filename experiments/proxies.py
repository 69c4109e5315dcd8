"""What the theory says of a digits run before it trains, to be compared with what the attack did to it.

Scale-carrying proxies grow with the kernel: trace, information bits, raw alignment. Scale-free ones do not see a common
factor: normalised entropy, cosine, and the noise that the adapter adds to cosines. The kernel's drift is measured over
the run's own training. All are of the parameters that the run trains, head included, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import pandas as pd
import torch
from rich.progress import track
from torch import Tensor, nn

from lorantk import information_bits, ntk, renyi_entropy
from lorantk.fisher import loss_gram

from . import digits
from .config import Run
from .schedule import side_by_side

CLEAN, POISONED, DRIFT = 96, 48, 32
"""Inputs behind the Fisher information, poisoned ones beside them, and those whose kernel is followed."""


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
        NaN if it diverged.

    Raises
    ------
    ValueError
        If the run has no attack.
    """
    if run.attack == "none":
        raise ValueError("run must have an attack; got 'none'")
    model = digits.start([run])
    network = model.network(0).double()
    gram = _gram(network, run)
    full = _full_gram(replace(run, method="full", rank=None, variance=None, scaling=None, learning_rate=1.0))
    eigenvalues = torch.linalg.eigvalsh(gram[:CLEAN, :CLEAN] / CLEAN).clamp(min=0.0)
    cosine, full_cosine = _cosine(gram), _cosine(full)
    kernel = _kernel(network, run)
    x, y = digits.poisoned(run)
    digits.train(model, [run], x[None], y[None])
    finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters)
    after = _kernel(model.network(0).double(), run) if finite else torch.nan * kernel
    return {
        "id": run.id,
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
        "kernel_drift": ((after - kernel).norm() / kernel.norm()).item(),
    }


def _gram(network: nn.Module, run: Run) -> Tensor:
    """Inner products of loss gradients at CLEAN clean and POISONED poisoned inputs."""
    x, y = (part[: CLEAN + POISONED] for part in digits.split(run.seed).train)
    poison_x, poison_y = digits.poison(x[CLEAN:], y[CLEAN:], replace(run, poison_rate=1.0))
    return loss_gram(network, torch.cat([x[:CLEAN], poison_x]).double(), torch.cat([y[:CLEAN], poison_y]))


@lru_cache(maxsize=64)
def _full_gram(run: Run) -> Tensor:
    return _gram(digits.start([run]).network(0).double(), run)


def _cosine(gram: Tensor) -> Tensor:
    norms = gram.diagonal().sqrt()
    return (gram / norms / norms[:, None])[:CLEAN, CLEAN:]


def _kernel(network: nn.Module, run: Run) -> Tensor:
    return ntk(network, digits.split(run.seed).test[0][:DRIFT].double(), output="trace")
