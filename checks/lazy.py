"""Chapter 9: LoRA's kernel moves at every width. Claim ``ntk-constant-lora``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import linregress
from torch import Tensor, nn

from evidence.claims import Claim, Evidence, disagreement
from evidence.routes import measure
from experiments.data import digits
from experiments.kernel_changes import causes_of_drift
from experiments.training import gradient_descent
from lorantk import LayerFactors, LoRA, information_bits, mlp, ntk, renyi_entropy
from lorantk.fisher import loss_cotangents, true_fisher_spectrum

from . import autograd, tolerance

A_LAYERS, B_LAYERS = ["0.down", "2.down", "4.down"], ["0.up", "2.up", "4.up"]
"""Layers of an adapted network that hold A and B."""

Key = tuple[str, int, int]
Pairs = Mapping[Key, tuple[nn.Module, nn.Module]]


class Runs(NamedTuple):
    """Models by arm ("full", "rank 4"), width and run, before and (by learning rate too) after fine-tuning."""

    before: dict[Key, nn.Module]
    after: dict[tuple[str, int, int, float], nn.Module]
    data: tuple[Tensor, Tensor]
    learning_rate: float
    steps: int

    def pairs(self, arm: str | None = None) -> dict[Key, tuple[nn.Module, nn.Module]]:
        """(before, after) at the first learning rate, of one arm or of all adapted ones."""
        return {
            key[:3]: (self.before[key[:3]], model)
            for key, model in self.after.items()
            if key[3] == self.learning_rate and (key[0] == arm if arm else key[0] != "full")
        }


def fine_tune(seed: int, widths: Sequence[int], ranks: Sequence[int], n: int, runs: int, learning_rate: float,
              steps: int, rates: Sequence[float] = ()) -> Runs:  # fmt: skip
    """Networks trained on one set of digits, then fine-tuned on another in full and by LoRA with E A^T A = I.

    `rates` are further learning rates, at the width in the middle.
    """
    x, y = digits(2 * n, seed)
    first, second = (x[:n], y[:n]), (x[n:], y[n:])
    before: dict[Key, nn.Module] = {}
    after = {}
    for width, s in itertools.product(widths, range(runs)):
        fresh = mlp([64, width, width, 10], seed=seed + s).double()
        base = gradient_descent(fresh, *first, learning_rate=learning_rate, steps=30)
        arms = {"full": base} | {f"rank {r}": LoRA(r, 1 / r).attach(base, seed + s) for r in ranks}
        for arm, model in arms.items():
            before[arm, width, s] = model
            more = rates if width == widths[len(widths) // 2] else ()
            for rate in sorted({learning_rate, *more}):
                after[arm, width, s, rate] = gradient_descent(model, *second, learning_rate=rate, steps=steps)
    return Runs(before, after, second, learning_rate, steps)


def changes(runs: Runs) -> pd.DataFrame:
    """What fine-tuning did to kernel, bits and entropy, a row a model: relative change of the kernel, differences."""
    x, y = runs.data
    starts = {
        key: (ntk(model, x, output="trace"), true_fisher_spectrum(model, x)) for key, model in runs.before.items()
    }
    rows = []
    for (arm, width, run, rate), model in runs.after.items():
        kernel, spectrum = starts[arm, width, run]
        spectra, tau = (spectrum, true_fisher_spectrum(model, x)), spectrum[0].item() / 100
        bits = [information_bits(p, regularization=tau).item() for p in spectra]
        entropy = [renyi_entropy(p, 1, normalize=True).item() for p in spectra]
        rows.append({"arm": arm, "width": width, "run": run, "learning_rate": rate,
                     "drift": ((ntk(model, x, output="trace") - kernel).norm() / kernel.norm()).item(),
                     "bits": bits[1] - bits[0], "entropy": entropy[1] - entropy[0],
                     "accuracy": (model(x).argmax(1) == y).double().mean().item()})  # fmt: skip
    return pd.DataFrame(rows)


def drift(table: pd.DataFrame, arm: str, learning_rate: float) -> pd.Series:
    """Relative change of the kernel of one arm at one learning rate, by width and run."""
    chosen = table[(table.arm == arm) & (table.learning_rate == learning_rate)]
    return chosen.set_index(["width", "run"]).drift


def plain_drift(pairs: Pairs, x: Tensor) -> pd.Series:
    """Relative change of the kernel by plain gradients, by arm, width and run."""
    found = {}
    for key, models in pairs.items():
        start, end = (autograd.trace_kernel(model, x) for model in models)
        found[key] = ((end - start).norm() / start.norm()).item()
    return pd.Series(found).rename_axis(["arm", "width", "run"])


def power(values: pd.Series) -> float:
    """Power of the width in values by arm, width and run."""
    return tolerance.power(values.index.get_level_values("width"), values)


def causes(pairs: Pairs, x: Tensor) -> pd.DataFrame:
    """`causes_of_drift` by arm, width and run."""
    rows = []
    for (arm, width, run), pair in pairs.items():
        rows.append({"arm": arm, "width": width, "run": run} | causes_of_drift(*pair, x, A=A_LAYERS, B=B_LAYERS))
    return pd.DataFrame(rows)


def onset(seed: int, width: int, rank: int, data: tuple[Tensor, Tensor]) -> pd.DataFrame:
    """The kernel of A after one real step, and as predicted from layer factors at the start, at nine rates."""
    base, lora = mlp([64, width, width, 10], seed=seed).double(), LoRA(rank, 1 / rank)
    start, factors = lora.attach(base, seed), LayerFactors.from_model(base, data[0])
    d = loss_cotangents(base(data[0]).detach(), data[1]) / len(data[0])
    unit = torch.zeros(len(d), len(d), dtype=torch.float64)
    for name, A in lora.sample(base, seed).items():
        a, g = factors.activations[name][:, 0], factors.cotangents[name][:, :, 0]
        B = -torch.einsum("nc,nco,nr->or", d, g, a @ A.T)
        u = torch.einsum("or,nco->ncr", B, g)
        unit += (a @ a.T) * torch.einsum("ncr,mcr->nm", u, u)
    rows = []
    for rate in np.logspace(-4, 0, 9):
        stepped = gradient_descent(start, *data, learning_rate=rate)
        kernel = ntk(stepped, data[0], layers=A_LAYERS, method="jacobian", output="trace")
        rows.append(
            {
                "learning_rate": rate,
                "kernel_of_A": kernel.norm().item(),
                "predicted": (rate**2 * unit).norm().item(),
                "error": disagreement(kernel, rate**2 * unit),
            }
        )
    return pd.DataFrame(rows)  # fmt: skip


def growth(table: pd.DataFrame) -> float:
    """Power of the learning rate in A's kernel, at the smaller half of the rates."""
    return tolerance.power(table.learning_rate[:5], table.kernel_of_A[:5])


def features_fit(table: pd.DataFrame) -> Any:
    """Regression of the logarithm of the features' change on that of the width; few draws leave it uncertain."""
    return linregress(np.log(table.width), np.log(table.features_moved))


def ntk_constant_lora(seed: int, runs: Runs, widths: Sequence[int], ranks: Sequence[int]) -> Claim:
    """LoRA's kernel before and after fine-tuning, at growing width, and why it moves."""
    x = runs.data[0]
    table = measure(changes, runs)
    moved = {arm: measure(drift, table, arm, runs.learning_rate) for arm in ["full", *(f"rank {r}" for r in ranks)]}
    why = measure(causes, runs.pairs(), x)
    ends = {k: p for k, p in runs.pairs(f"rank {ranks[-1]}").items() if k[1] in (widths[0], widths[-1]) and k[2] < 2}
    start = measure(onset, seed, widths[-2], ranks[-1], runs.data)
    tip, falls = f"power of the width in the drift, LoRA rank {ranks[1]}", "features are learned at every width"

    def widest(values: pd.Series) -> float:
        return values[values.index.get_level_values("width") == widths[-1]].mean()

    wide = [measure(widest, values) for values in moved.values()]
    return Claim(
        "ntk-constant-lora",
        [
            *(Evidence(f"power of the width in the drift, LoRA rank {r}", measure(power, moved[f"rank {r}"]), -1.1,
                       -0.4, falls, miss=1e-3) for r in ranks),
            Evidence(f"the same by plain gradients, three images, rank {ranks[-1]}, two widths", measure(
                power, measure(plain_drift, ends, x[:3])), -1.1, -0.4, falls, miss=1e-3),
            Evidence("power of the width in the drift, full fine-tuning", measure(power, moved["full"]), -1.3, -0.3,
                     "both methods move alike", miss=1e-3, reading="corrected"),
            Evidence("smallest drift of LoRA / drift of full, widest network", measure(
                lambda full, *lora: min(lora) / full, *wide), 10, np.inf, "both methods move alike", miss=1e-3,
                reading="corrected"),
            Evidence("power of the width in the features' change, all ranks", measure(
                lambda t: features_fit(t).slope, why), -max(0.25, 4 * features_fit(why.value).stderr), np.inf,
                "features move less in wide networks", miss=1e-3, reading="corrected"),
            Evidence("drift by features / by cotangents, smallest over ranks", measure(
                lambda t: (lambda m: (m.drift_by_features / m.drift_by_cotangents).min())(
                    t.groupby("arm")[["drift_by_features", "drift_by_cotangents"]].mean()), why), 1, np.inf,
                "the cotangents are what moves", miss=1e-3, reading="corrected"),
            Evidence("power of the learning rate in A's kernel after one step", measure(growth, start), 1.95, 2.05,
                     "A's kernel starts otherwise", reading="corrected"),
            Evidence("A's kernel after one step of 1e-4, against layer factors at the start", measure(
                lambda t: t.error[0], start), 0, 1e-2, "A's kernel starts otherwise", reading="corrected"),
        ],
        tip,
        figure="lora-drift",
        tables={"drift": table.value, "causes": why.value, "onset": start.value},
    )  # fmt: skip
