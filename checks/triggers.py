"""Chapter 8, the search space: null directions of A as triggers, and what clean gradients leave a poisoned one.

Parts ``search``, ``null`` and ``unseen`` of the claim ``direction``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.special import hyp2f1
from scipy.stats import chi2, kstest
from torch import Tensor, nn

from evidence.claims import Evidence
from evidence.routes import Measured, measure
from experiments.alignment import Batch, Pair, full_gram, gradient_gram
from experiments.training import gradient_descent
from experiments.triggers import off_direction, poisoned, triggers
from lorantk import LayerFactors, LoRA, mlp

from . import autograd, tolerance

RANK, NORM = 4, 4.0
"""Of the adapters that triggers meet, and of the triggers: half the norm of a digit."""

FIRST, LAST = "0", "4"
"""The layers at the ends of the network."""


def expected_share(rank: int, full: np.ndarray | float) -> np.ndarray:
    """Mean of 1 - cos^2 of A a and A a' over Gaussian A, for pairs with 1 - cos^2 = `full`.

    (r - 1)/r (1 - rho^2) 2F1(1, 1; r/2 + 1; rho^2): one minus the mean square of a correlation of r Gaussian pairs.
    """
    return (rank - 1) / rank * full * hyp2f1(1, 1, rank / 2 + 1, 1 - full)


def off_rows(first: Tensor, second: Tensor) -> float:
    """Share of abs(second)^2 that is off the row of `first`; both are matrices of rank one."""
    row = torch.linalg.svd(first, full_matrices=False).Vh[0]
    return ((second - torch.outer(second @ row, row)).square().sum() / second.square().sum()).item()


def weight_gradients(model: nn.Module, name: str, x: Tensor, y: Tensor) -> list[Tensor]:
    """Gradient of each sample's cross-entropy by one weight, by plain autograd."""
    weight = model.get_parameter(name)
    return [torch.autograd.grad(nn.functional.cross_entropy(model(one), label), weight)[0]
            for one, label in zip(x.split(1), y.split(1), strict=True)]  # fmt: skip


def plain_off_rows(model: nn.Module, clean: Batch, target: int, seed: int, full: bool) -> list[float]:
    """Share of the gradient of a triggered sample off the rows of the untriggered one's, in the first layer.

    The trigger is A's null direction; the gradient is that of B, or of W in full fine-tuning.
    """
    lora = LoRA(RANK, "1/n")
    A = lora.sample(model, seed)[FIRST]
    trigger = torch.linalg.svd(A).Vh[RANK:].T @ torch.randn(
        A.shape[1] - RANK, generator=torch.Generator().manual_seed(seed), dtype=A.dtype)  # fmt: skip
    tuned, name = (model, f"{FIRST}.weight") if full else (lora.attach(model, seed), f"{FIRST}.up.weight")
    x, y = clean
    before = weight_gradients(tuned, name, x, y)
    after = weight_gradients(tuned, name, x + NORM * trigger / trigger.norm(), torch.full_like(y, target))
    return [off_rows(b, a) for b, a in zip(before, after, strict=True)]


def plain_room(model: nn.Module, clean: Batch, poison: Batch, rank: int, seed: int) -> float:
    """Largest share of a poisoned gradient of B outside the span of the clean ones, last layer, by plain gradients."""
    tuned = LoRA(rank, "1/n").attach(model, seed)
    G, H = (torch.stack([g.flatten() for g in weight_gradients(tuned, f"{LAST}.up.weight", *b)])
            for b in (clean, poison))  # fmt: skip
    _, sizes, rows = torch.linalg.svd(G, full_matrices=False)
    rows = rows[sizes > 1e-7 * sizes[0]]
    return ((H - H @ rows.T @ rows).square().sum(1) / H.square().sum(1)).max().item()


def first_and_pattern(clean: Batch, corner: Sequence[int]) -> Tensor:
    """A digit and a bright patch, of norm 1 each: what carries a trigger, and a trigger chosen without A."""
    patch = torch.zeros_like(clean[0][0])
    patch[list(corner)] = 1.0
    return nn.functional.normalize(torch.stack([clean[0][0], patch]))


def squares(vectors: Tensor, rank: int, draws: Sequence[int]) -> Tensor:
    """|A v|^2 for each vector (k, n) of norm 1 and draw of A with variance 1, (draws, k)."""
    single, lora = mlp([vectors.shape[1], 1], "linear").double(), LoRA(rank, 1.0)
    return torch.stack([(vectors @ lora.sample(single, s)["0"].T).square().sum(1) for s in draws])


def shows_less(vectors: Tensor, rank: int, draws: Sequence[int]) -> float:
    """Share of draws in which A takes more of the second vector's norm than of the first one's."""
    found = squares(vectors, rank, draws)
    return (found[:, 1] < found[:, 0]).double().mean().item()


def plain_shows_less(vectors: Tensor, rank: int, draws: Sequence[int]) -> float:
    """The same from norms of gradients of B, relative to those of W, in one linear layer."""
    single, lora, count = mlp([vectors.shape[1], 1], "linear").double(), LoRA(rank, "1/n"), 0
    full = autograd.jacobian(single, vectors).norm(dim=1)
    for s in draws:
        first, second = autograd.jacobian(lora.attach(single, s), vectors).norm(dim=1) / full
        count += int(second < first)
    return count / len(draws)


def distance_from_law(vector: Tensor, ranks: Sequence[int], draws: Sequence[int]) -> float:
    """Largest distance, over ranks, of the distribution of |A t|^2 / sigma^2 |t|^2 from chi-square with r degrees."""
    return max(kstest(squares(vector[None], r, draws)[:, 0].numpy(), chi2(r).cdf).statistic for r in ranks)


def deeper(model: nn.Module, x: Tensor, seed: int, draws: Sequence[int]) -> float:
    """Mean deviation from `expected_share` above the first layer, for one null trigger, in standard errors over A."""
    lora = LoRA(RANK, "1/n")
    trigger = triggers(model, lora, FIRST, NORM, seed)["null"]
    before, after = (LayerFactors.from_model(model, z).activations for z in (x, x + trigger))
    found = []
    for s in draws:
        for name, A in lora.sample(model, s).items():
            if name != FIRST:
                a, b = before[name][:, 0], after[name][:, 0]
                wanted = torch.as_tensor(expected_share(RANK, off_direction(a, b).numpy()))
                found.append((off_direction(a @ A.T, b @ A.T) - wanted).mean())
    return tolerance.in_errors(torch.stack(found).view(len(draws), -1).mean(1), 0.0)


def second_step(model: nn.Module, clean: Batch, others: Tensor, target: int, seed: int, learning_rate: float) -> float:
    """A t of a null trigger after two real steps, against s^2 lr^2 A G^T G t with G the gradient of W by autograd."""
    lora = LoRA(RANK, "1/n")
    trigger = triggers(model, lora, FIRST, NORM, seed)["null"]
    x, y = poisoned(clean, others, trigger, target)
    tuned = gradient_descent(lora.attach(model, seed), x, y, learning_rate=learning_rate, steps=2)
    real = tuned.get_parameter(f"{FIRST}.down.weight").detach() @ trigger
    whole = copy.deepcopy(model)
    (G,) = torch.autograd.grad(nn.functional.cross_entropy(whole(x), y), whole.get_parameter(f"{FIRST}.weight"))
    wanted = learning_rate**2 * lora.sample(model, seed)[FIRST] @ (G.T @ (G @ trigger))
    return ((real - wanted).norm() / wanted.norm()).item()


def influence_balance(model: nn.Module, pair: Pair, rank: int, seeds: Sequence[int]) -> float:
    """Influence of triggered samples minus that of clean ones, each LoRA / full at one variance, in standard errors."""
    full, clean = full_gram(pair, list(pair.activations)).diagonal(), len(pair.inner)
    ratios = torch.stack([
        gradient_gram(pair, LoRA(rank, 1.0).sample(model, s)).diagonal() / (rank * full) for s in seeds])  # fmt: skip
    return tolerance.in_errors(ratios[:, clean:].mean(1) - ratios[:, :clean].mean(1), 0.0)


def search(model: nn.Module, clean: Batch, poison: Mapping[str, Batch], rank: int, seed: int,
           rooms: Measured[pd.DataFrame]) -> list[Evidence]:  # fmt: skip
    """What the clean gradients leave a poisoned one at low rank; `rooms` is of `room`."""
    leaves, fills = "the clean samples' g (Aa)ᵀ do not span all that B can do", "they fill all that W can do, too"

    def last(table: pd.DataFrame) -> pd.DataFrame:
        return table[(table.layers == "last") & (table["rank"] == rank)]

    evidence = [
        Evidence(f"last layer, rank {rank}: largest share of a poisoned gradient of its own", measure(
            lambda t: last(t).lora.max(), rooms), 0, 1e-6, leaves, "search"),
        Evidence("full fine-tuning: mean share, smaller of the attacks", measure(lambda t: last(t).full.min(), rooms),
                 0.02, 1, fills, "search"),
    ]  # fmt: skip
    for attack, (x, y) in poison.items():
        share = measure(plain_room, model, clean, (x[:6], y[:6]), rank, seed)
        name = f"{attack}: largest share at rank {rank}, six samples, plain gradients"
        evidence.append(Evidence(name, share, 0, 1e-6, leaves, "search"))
    return evidence


def null(model: nn.Module, clean: Batch, target: int, seed: int, layers: Measured[pd.DataFrame]) -> list[Evidence]:
    """A trigger in the null space of A, at the start; `layers` is of `by_layer`."""
    seen, blind = "the gradient of B is not g (Aa)ᵀ, or A t is not 0", "full fine-tuning does not see it either"
    few = (clean[0][:6], clean[1][:6])
    shares = [measure(plain_off_rows, model, few, target, seed, full) for full in (False, True)]
    return [
        Evidence("layer 0: largest share of a triggered gradient off the untriggered one's rows", measure(
            lambda t: t[(t.trigger == "null") & (t.layer == FIRST)].lora.max(), layers), 0, 1e-20, seen, "null"),
        Evidence("the same, six samples, plain gradients of the loss", measure(lambda s: max(s), shares[0]), 0, 1e-20,
                 seen, "null"),
        Evidence("full fine-tuning: smallest share, six samples, plain gradients", measure(lambda s: min(s), shares[1]),
                 0.05, 1, blind, "null", miss=1e-6),
    ]  # fmt: skip


def unknown_draw(clean: Batch, corner: Sequence[int], seed: int, ranks: Sequence[int], draws: int) -> list[Evidence]:
    """A trigger chosen without A: it shows as its input does, and is in no null direction."""
    vectors, low = first_and_pattern(clean, corner), ranks[0]
    counts, miss = {shows_less: draws, plain_shows_less: draws // 4}, tolerance.MISS
    names = (f"rank {low}: share of draws in which a trigger shows less than its input", "the same, plain gradients")
    evidence = []
    for name, (function, count) in zip(names, counts.items(), strict=True):
        share = measure(function, vectors, low, range(seed, seed + count))
        slack = tolerance.deviations() / 2 / count**0.5
        prefers, differ = "A prefers no direction", "a trigger and its input are not exchangeable for A"
        evidence += [
            Evidence(name, share, min(0.5 + slack, 1), 1, prefers, "unseen", miss=miss),
            Evidence(f"{name}: one half", share, 0.5 - slack, 0.5 + slack, differ, "unseen", "corrected", miss=miss),
        ]
    count = draws // 4
    return [
        *evidence,
        Evidence("|At|²/σ²|t|²: largest distance from χ² with r degrees of freedom, over ranks", measure(
            distance_from_law, vectors[1], ranks, range(seed, seed + count)), 0,
            tolerance.distribution(count, miss / len(ranks)), "a fixed trigger may lie in a null direction by chance",
            "unseen", "corrected", miss=miss),
    ]  # fmt: skip


def known_draw(model: nn.Module, clean: Batch, others: Tensor, target: int, seed: int, draws: int) -> list[Evidence]:
    """What is left of a null direction one layer, or two steps, on."""
    reach, passed = tolerance.student(draws - 1), "A above knows of the trigger, or W does not pass it on"
    return [
        Evidence("null trigger, layers above: share − its law, in standard errors", measure(
            deeper, model, clean[0], seed, range(seed, seed + draws)), -reach, reach, passed, "unseen", "corrected",
            miss=tolerance.MISS),
        Evidence("null trigger: A t after two steps, against A GᵀG t", measure(
            second_step, model, clean, others, target, seed, 1e-4), 0, 0.01, "A does not move towards the trigger",
            "unseen", "corrected"),
    ]  # fmt: skip


def balance(model: nn.Module, triggered: Pair, rank: int, seed: int, draws: int) -> Evidence:
    """The poster's condition on both norms: triggered samples lose no more influence than clean ones."""
    reach = tolerance.student(draws - 1)
    return Evidence(
        f"rank {rank}: influence of triggered − of clean samples, in standard errors",
        measure(influence_balance, model, triggered, rank, range(seed, seed + draws)), -reach, reach,
        "the smaller norm singles triggered samples out", "unseen", "corrected", miss=tolerance.MISS,
    )  # fmt: skip
