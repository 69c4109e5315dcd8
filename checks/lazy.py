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

from . import autograd, rates, tolerance

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
    runs: int

    def pairs(self, arm: str | None = None) -> dict[Key, tuple[nn.Module, nn.Module]]:
        """(before, after) at the first learning rate, of one arm or of all adapted ones."""
        return {
            key[:3]: (self.before[key[:3]], model)
            for key, model in self.after.items()
            if key[3] == self.learning_rate and (key[0] == arm if arm else key[0] != "full")
        }


def fine_tune(seed: int, widths: Sequence[int], ranks: Sequence[int], n: int, runs: int, learning_rate: float,
              steps: int, further: Sequence[float] = ()) -> Runs:  # fmt: skip
    """Networks trained on one set of digits, then fine-tuned on another in full and by LoRA with E A^T A = I.

    `further` are learning rates too, at the width in the middle.
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
            more = further if width == widths[len(widths) // 2] else ()
            for rate in sorted({learning_rate, *more}):
                after[arm, width, s, rate] = gradient_descent(model, *second, learning_rate=rate, steps=steps)
    return Runs(before, after, second, learning_rate, steps, runs)


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


def drift_with_A_frozen(seed: int, runs: Runs, widths: Sequence[int], ranks: Sequence[int]) -> pd.DataFrame:
    """The same training with A frozen: all layers adapted, or the middle one alone."""
    x = runs.data[0]
    loras = {f"A frozen, rank {r}": LoRA(r, 1 / r) for r in ranks}
    loras |= {f"A frozen, one layer, rank {r}": LoRA(r, 1 / r, layers=("2",)) for r in ranks}
    rows = []
    for width, run, (arm, lora) in itertools.product(widths, range(runs.runs), loras.items()):
        start = lora.attach(runs.before["full", width, run], seed + run)
        for name, parameter in start.named_parameters():
            parameter.requires_grad_(".up." in name)
        end = gradient_descent(start, *runs.data, learning_rate=runs.learning_rate, steps=runs.steps)
        kernel = ntk(start, x, output="trace")
        moved = (ntk(end, x, output="trace") - kernel).norm() / kernel.norm()
        rows.append(
            {"arm": arm, "width": width, "run": run, "learning_rate": runs.learning_rate, "drift": moved.item()}
        )
    return pd.DataFrame(rows)


def part_left(frozen: pd.DataFrame, trained: pd.DataFrame, ranks: Sequence[int]) -> float:
    """Mean drift with A frozen over that of LoRA, all layers adapted, over the same ranks, widths and runs."""
    still = frozen[frozen.arm.isin([f"A frozen, rank {r}" for r in ranks])]
    both = still.assign(arm=still.arm.str.removeprefix("A frozen, ")).merge(
        trained, on=["arm", "width", "run", "learning_rate"], suffixes=("_frozen", "")
    )
    return both.drift_frozen.mean() / both.drift.mean()


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


def one_layer_over_full(frozen: pd.DataFrame, trained: pd.DataFrame) -> float:
    """Mean drift with A frozen in the one adapted layer over that of full fine-tuning, widest: larger of the ranks."""
    one = frozen[frozen.arm.str.contains("one layer") & (frozen.width == frozen.width.max())]
    full = trained[(trained.arm == "full") & (trained.width == frozen.width.max())]
    full = full[full.learning_rate.isin(frozen.learning_rate)]
    return one.groupby("arm").drift.mean().max() / full.drift.mean()


def all_over_one(frozen: pd.DataFrame, rank: int) -> float:
    """Mean drift with A frozen, all layers over one layer, in the widest networks."""
    mean = frozen[frozen.width == frozen.width.max()].groupby("arm").drift.mean()
    return mean[f"A frozen, rank {rank}"] / mean[f"A frozen, one layer, rank {rank}"]


def ntk_constant_lora(
    seed: int, runs: Runs, widths: Sequence[int], ranks: Sequence[int], compared: Sequence[int]
) -> Claim:
    """LoRA's kernel before and after fine-tuning, at growing width, why it moves, and what holds it.

    `compared` are the widths at which the parametrisations are compared.
    """
    x = runs.data[0]
    table = measure(changes, runs)
    moved = {arm: measure(drift, table, arm, runs.learning_rate) for arm in ["full", *(f"rank {r}" for r in ranks)]}
    why = measure(causes, runs.pairs(), x)
    ends = {k: p for k, p in runs.pairs(f"rank {ranks[-1]}").items() if k[1] in (widths[0], widths[-1]) and k[2] < 2}
    start = measure(onset, seed, widths[-2], ranks[-1], runs.data)
    tip, falls = f"power of the width in the drift, LoRA rank {ranks[1]}", "features are learned at every width"

    frozen = measure(drift_with_A_frozen, seed, runs, widths[:4], (ranks[0], ranks[-1]))
    few, rank = (runs.data[0][:6], runs.data[1][:6]), ranks[-1]
    scan = seed, compared, 3, rank, runs.learning_rate, few
    two_widths = seed, (compared[0], compared[2]), 3
    first, moves = measure(rates.kernel_of_A, *scan), measure(rates.features_moved, seed, compared[:3], *scan[2:])
    peft, fixed = LoRA(rank, layers=rates.LAYERS), LoRA(rank, 1 / (3 * rates.VARIANCE), layers=rates.LAYERS)
    nearer = "the power is nearer to {} than to {}".format

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
            Evidence("drift with A frozen / drift of LoRA, all layers, two ranks", measure(
                part_left, frozen, table, (ranks[0], ranks[-1])), 0, 0.5, "A's learning is not what moves the kernel",
                reading="corrected", miss=5e-3),
            Evidence("drift with A frozen, one layer / drift of full, wide network", measure(
                one_layer_over_full, frozen, table), 0, 10, "A frozen in one layer leaves the kernel free to move",
                reading="corrected", miss=1e-3),
            Evidence(f"drift with A frozen, all layers / one layer, rank {ranks[0]}, wide network", measure(
                all_over_one, frozen, ranks[0]), 2, np.inf, "adapted layers leave each other's cotangents alone",
                reading="corrected", miss=5e-3),
            Evidence("power of the width in A's kernel / B's after one step: standard, PEFT's draw", measure(
                rates.power_of_width, first, "equal rates"), 0.5, 1.5, nearer(0, 1), reading="corrected", miss=1e-3),
            Evidence("the same by plain gradients, two widths", measure(
                rates.plain_power, *two_widths, peft, "standard", runs.learning_rate, few), 0.5, 1.5, nearer(0, 1),
                reading="corrected", miss=1e-3),
            Evidence("the same by plain gradients: NTK parametrisation, fixed variance", measure(
                rates.plain_power, *two_widths, fixed, "ntk", runs.learning_rate, few), -0.5, 0.5, nearer(1, 0),
                reading="corrected", miss=1e-3),
            Evidence("kernel after ten steps: NTK parametrisation to standard with B's rate n/2 times A's", measure(
                rates.two_units, seed, compared[0], rank, runs.learning_rate, few), 0, 1e-9,
                "the parametrisation is more than a ratio of rates", reading="corrected"),
            Evidence("power of the width in the features' change after five steps: standard, equal rates", measure(
                rates.power_of_width, moves, "equal rates"), 0.5, 1.5, nearer(0, 1), reading="corrected", miss=1e-3),
            Evidence("the same with B's rate n/2 times A's", measure(rates.power_of_width, moves, "B's n/2 times A's"),
                     -0.5, 0.5, nearer(1, 0), reading="corrected", miss=1e-3),
        ],
        tip,
        figure="lora-drift",
        tables={"drift": table.value, "causes": why.value, "onset": start.value, "frozen": frozen.value,
                "kernel_of_A": first.value, "features_moved": moves.value},
    )  # fmt: skip
