"""Chapter 3: the kernel of LoRA at B = 0. Claims ``lem-lora-ntk``, ``thm-relation``, ``ntk-limit-lora``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from evidence.claims import Claim, Evidence, disagreement
from evidence.routes import measure
from experiments.data import digits
from lorantk import LayerFactors, LoRA, delta_matrix, infinite_width_ntk, lora_ntk_sweep, mlp, ntk
from lorantk.grams import gram

from . import autograd, tolerance

EVERY = ("0", "2", "4")
"""Linear layers of the networks here."""


def recursion_error(model: nn.Module, x: Tensor, lora: LoRA, seed: int) -> float:
    """The printed recursion from layer factors against the kernel of the adapted network by torch.func.

    Layers without an adapter are trained in full, as layer 1 is in the recursion; A stands for s A.
    """
    factors, full = LayerFactors.from_model(model, x), [name for name in EVERY if name not in (lora.layers or EVERY)]
    scaled = factors.project({name: lora.scaling * A for name, A in lora.sample(model, seed).items()})
    ours, trained = gram(scaled, scaled, output="trace"), ntk(lora.attach(model, seed), x, method="jacobian",
                                                              output="trace")  # fmt: skip
    if full:
        ours = ours + gram(factors, factors, [(name, "weight") for name in full], "trace")
        trained = trained + ntk(model, x, layers=full, method="jacobian", output="trace")
    return disagreement(ours, trained)


def plain_shares(model: nn.Module, x: Tensor, matrices: Mapping[str, Tensor]) -> Tensor:
    """Sum over layers of (a^T P a') (g . g') with P = matrices[layer], from a forward pass by hand, (n, n)."""
    a, inputs, outputs = x, {}, {}
    for name, module in model.named_children():
        inputs[name] = a
        a = module(a)
        outputs[name] = a
    total = torch.zeros(len(x), len(x), dtype=x.dtype)
    for name, P in matrices.items():
        (g,) = torch.autograd.grad(a.sum(), outputs[name], retain_graph=True)
        features = getattr(model.get_submodule(name), "prefactor", 1.0) * inputs[name].detach()
        total += (features @ P @ features.T) * (g @ g.T)
    return total


def plain_recursion_error(model: nn.Module, x: Tensor, lora: LoRA, seed: int) -> float:
    """The same without `lorantk`: s^2 A^T A in the adapted layers, the identity in the others."""
    A = lora.sample(model, seed)
    matrices = {name: lora.scaling**2 * A[name].T @ A[name] if name in A else torch.eye(_fan_in(model, name)).double()
                for name in EVERY}  # fmt: skip
    full = [name for name in EVERY if name not in A]
    trained = autograd.trace_kernel(lora.attach(model, seed), x)
    if full:
        trained = trained + autograd.trace_kernel(model, x, full)
    return disagreement(plain_shares(model, x, matrices), trained)


def _fan_in(model: nn.Module, name: str) -> int:
    return model.get_parameter(f"{name}.weight").shape[1]


def mean_over_draws(model: nn.Module, x: Tensor, lora: LoRA, seeds: Sequence[int]) -> float:
    """Distance of the mean over A to s^2 r sigma^2 times the full kernel, in standard errors; variance 1/r."""
    sampled = lora_ntk_sweep(model, x, loras=[lora], seeds=seeds, output="trace")[0]
    exact = lora.scaling**2 * ntk(model, x, output="trace")
    return ((sampled.mean(0) - exact).norm() / (sampled.var(0).sum() / len(seeds)).sqrt()).item()


def distance_to_recursion(networks: Sequence[nn.Module], x: Tensor, lora: LoRA) -> float:
    """Distance of the mean over networks of E K_LoRA to the infinite-width recursion, in standard errors."""
    means = torch.stack([lora.scaling**2 * ntk(model, x, output="trace") for model in networks])
    limit = infinite_width_ntk(x, depth=len(EVERY), lora=lora)
    return ((means.mean(0) - limit).norm() / (means.var(0).sum() / len(means)).sqrt()).item()


def lem_lora_ntk(seed: int, width: int, rank: int, scaling: float, wide: int, draws: int) -> Claim:
    """The recursion of the lemma in a network of three layers, and its mean over A in wide ones."""
    x = digits(40, seed)[0]
    model, few = mlp([64, width, width, 1], seed=seed).double(), x[:6]
    hidden = {s: LoRA(rank, 1 / rank, s, EVERY[1:]) for s in (1.0, scaling)}
    every, mean = LoRA(rank, 1 / rank, scaling), LoRA(rank, 1 / rank, scaling)
    networks = [mlp([64, wide, wide, 1], seed=16 * seed + k).double() for k in range(16)]
    wrong = "A stands elsewhere, or layers mix"
    tip = "printed form, layer 1 in full, s = 1"
    return Claim(
        "lem-lora-ntk",
        [
            Evidence(tip, measure(recursion_error, model, x, hidden[1.0], seed), 0, 1e-10, wrong),
            Evidence("the same, plain gradients and a forward pass by hand", measure(
                plain_recursion_error, model, few, hidden[1.0], seed), 0, 1e-10, wrong),
            Evidence(f"printed form with sA for A, s = {scaling:g}", measure(
                recursion_error, model, x, hidden[scaling], seed), 0, 1e-10, "s does not enter as s²"),
            Evidence("layer 1 adapted too: its share with A as well", measure(
                recursion_error, model, x, every, seed), 0, 1e-10, "layer 1 is another case", reading="corrected"),
            Evidence("mean of draws to s² r σₐ² K, in standard errors", measure(
                mean_over_draws, model, x[:8], mean, range(seed, seed + draws)), 0, 5,
                "the mean over A is another kernel", reading="corrected", miss=1e-4),
            Evidence("mean of wide networks to the recursion, in standard errors", measure(
                distance_to_recursion, networks, x[:8], mean), 0, 6, "the limit has another factor",
                reading="corrected", miss=1e-4),
        ],
        tip,
        figure="kernel-pictures",
    )  # fmt: skip


def relation_error(model: nn.Module, x: Tensor, lora: LoRA, seed: int) -> float:
    """K_FF + sum over adapted layers of (a^T M a') (g . g') against the kernel of the adapted network, torch.func."""
    factors, adapted = LayerFactors.from_model(model, x), lora.layers or EVERY
    rest = [name for name in EVERY if name not in adapted]
    kernel = ntk(lora.attach(model, seed), x, method="jacobian", output="trace")
    if rest:
        kernel = kernel + ntk(model, x, layers=rest, method="jacobian", output="trace")
    total = ntk(model, x, method="jacobian", output="trace")
    for name, A in lora.sample(model, seed).items():
        a, g = factors.activations[name][:, 0], factors.cotangents[name][:, 0, 0]
        total = total + (a @ delta_matrix(A, lora.scaling) @ a.T) * (g @ g.T)
    return disagreement(total, kernel)


def plain_relation_error(model: nn.Module, x: Tensor, lora: LoRA, seed: int) -> float:
    """The same without `lorantk`."""
    A = lora.sample(model, seed)
    M = {name: lora.scaling**2 * a.T @ a - torch.eye(a.shape[1]).double() for name, a in A.items()}
    kernel, rest = autograd.trace_kernel(lora.attach(model, seed), x), [name for name in EVERY if name not in A]
    if rest:
        kernel = kernel + autograd.trace_kernel(model, x, rest)
    return disagreement(autograd.trace_kernel(model, x) + plain_shares(model, x, M), kernel)


def thm_relation(seed: int, width: int, rank: int, scaling: float) -> Claim:
    """K_LoRA = K_FF + Delta in a network of three layers."""
    x = digits(40, seed)[0]
    model, few = mlp([64, width, width, 1], seed=seed).double(), x[:6]
    one, scaled = LoRA(rank, 1 / rank, 1.0, ("2",)), LoRA(rank, 1 / rank, scaling, ("2",))
    every, wrong = LoRA(rank, 1 / rank, scaling), "the difference is not in M alone"
    tip = "printed relation, one layer, s = 1"
    return Claim(
        "thm-relation",
        [
            Evidence(tip, measure(relation_error, model, x, one, seed), 0, 1e-10, wrong),
            Evidence("the same, plain gradients and a forward pass by hand", measure(
                plain_relation_error, model, few, one, seed), 0, 1e-10, wrong),
            Evidence(f"printed relation with sA for A, s = {scaling:g}", measure(
                relation_error, model, x, scaled, seed), 0, 1e-10, "s does not enter as s²"),
            Evidence(f"all layers adapted, s = {scaling:g}: corrections added", measure(
                relation_error, model, x, every, seed), 0, 1e-10, "corrections of several layers mix",
                reading="corrected"),
        ],
        tip,
        figure="kernel-pictures",
    )  # fmt: skip


def ratios(networks: Mapping[int, nn.Module], x: Tensor, ranks: Sequence[int], layers: Sequence[str],
           seeds: Sequence[int]) -> dict[int, Tensor]:  # fmt: skip
    """K_LoRA(x, x) / K_FF(x, x) of the adapted layers for each width, (ranks, draws), at variance 1/r."""
    loras = [LoRA(r, 1 / r, 1.0, tuple(layers)) for r in ranks]
    found = {}
    for width, model in networks.items():
        values = lora_ntk_sweep(model, x, loras=loras, seeds=seeds, output="trace")[..., 0, 0]
        found[width] = values / ntk(model, x, layers=list(layers), output="trace")[0, 0]
    return found


def plain_ratios(networks: Mapping[int, nn.Module], x: Tensor, ranks: Sequence[int], layers: Sequence[str],
                 seeds: Sequence[int]) -> dict[int, Tensor]:  # fmt: skip
    """The same from plain gradients of adapted networks."""
    found = {}
    for width, model in networks.items():
        full = autograd.trace_kernel(model, x, layers)[0, 0]
        loras = [LoRA(r, 1 / r, 1.0, tuple(layers)) for r in ranks]
        found[width] = torch.stack([torch.stack([autograd.trace_kernel(lora.attach(model, s), x)[0, 0] for s in seeds])
                                    for lora in loras]) / full  # fmt: skip
    return found


def with_others(found: Mapping[int, Tensor], networks: Mapping[int, nn.Module], x: Tensor, ranks: Sequence[int],
                seeds: Sequence[int]) -> dict[int, Tensor]:  # fmt: skip
    """K_LoRA(x, x) of all layers, which add up, from the `ratios` of layer 2 and the same draws."""
    loras = [LoRA(r, 1 / r, 1.0, [name for name in EVERY if name != "2"]) for r in ranks]
    return {width: values * ntk(networks[width], x, layers=["2"], output="trace")[0, 0]
            + lora_ntk_sweep(networks[width], x, loras=loras, seeds=seeds, output="trace")[..., 0, 0]
            for width, values in found.items()}  # fmt: skip


def spread(found: Mapping[int, Tensor], ranks: Sequence[int]) -> pd.DataFrame:
    """Relative standard deviation over the draws, a row a width and rank."""
    return pd.DataFrame(
        [{"width": w, "rank": r, "spread": (v.std() / v.mean()).item()}
         for w, values in found.items() for r, v in zip(ranks, values, strict=True)]
    )  # fmt: skip


def rate(found: Mapping[int, Tensor], ranks: Sequence[int], rank: int) -> float:
    """Power of the width in the spread at one rank."""
    table = spread(found, ranks)
    table = table[table["rank"] == rank]
    return tolerance.power(table.width, table.spread)


def distances(found: Mapping[int, Tensor], ranks: Sequence[int]) -> float:
    """Largest Kolmogorov distance of r K_LoRA / E K_LoRA to the chi-square law with r degrees of freedom."""
    return max(kstest(v.numpy() * r, "chi2", args=(r,)).statistic
               for values in found.values() for r, v in zip(ranks, values, strict=True))  # fmt: skip


ANGLES = (0.0, 1.0, 1.75, 2.4)
"""Angles of second inputs to the first: cosines of ReLU's features behind them from 1 to about 0.04."""


def pairs_at_angles(seed: int) -> Tensor:
    """Two digits made orthogonal span a plane; its unit vectors at `ANGLES`, (angles, 64)."""
    one, other = torch.linalg.qr(digits(2, seed)[0].T)[0].T
    angles = torch.tensor(ANGLES, dtype=one.dtype)[:, None]
    return angles.cos() * one + angles.sin() * other


def entries(networks: Mapping[int, nn.Module], x: Tensor, rank: int, seeds: Sequence[int]) -> pd.DataFrame:
    """Kernel of layer 2 between the first input and each, over its mean over A; a row an entry and draw."""
    lora, rows = LoRA(rank, 1 / rank, 1.0, ("2",)), []
    for width, model in networks.items():
        a = LayerFactors.from_model(model, x, ["2"]).activations["2"][:, 0]
        cosines = nn.functional.cosine_similarity(a[:1], a)
        drawn = lora_ntk_sweep(model, x[:1], x, loras=[lora], seeds=seeds, output="trace")[0, :, 0]
        values = drawn / ntk(model, x[:1], x, layers=["2"], output="trace")[0]
        rows += [{"width": width, "cosine": c.item(), "value": v.item()}
                 for c, column in zip(cosines, values.T, strict=True) for v in column]  # fmt: skip
    return pd.DataFrame(rows)


def entry_spread(table: pd.DataFrame, rank: int) -> pd.DataFrame:
    """Spread of each entry over the draws beside sqrt((1 + 1 / cosine^2) / rank), and the distance in standard errors.

    The mean over A is known, so the spread is the root of the mean square about 1. An entry is a sum of `rank` products
    of two Gaussians with correlation c, of variance 1 + c^2 and fourth cumulant 6 (1 + 6 c^2 + c^4) each.
    """
    rows = []
    for _, g in table.groupby(["width", "cosine"]):
        width, c = g.width.iloc[0], g.cosine.iloc[0]
        spread, law = ((g.value - 1) ** 2).mean() ** 0.5, ((1 + 1 / c**2) / rank) ** 0.5
        excess = 6 * (1 + 6 * c**2 + c**4) / (rank * (1 + c**2) ** 2)
        error = ((2 + excess) / (4 * len(g))) ** 0.5
        rows.append({"width": width, "rank": rank, "cosine": c, "spread": spread, "law": law,
                     "errors": abs(spread / law - 1) / error})  # fmt: skip
    return pd.DataFrame(rows)


def plain_entries(networks: Mapping[int, nn.Module], x: Tensor, rank: int, seeds: Sequence[int]) -> pd.DataFrame:
    """The same as `entries` from plain gradients and a forward pass by hand."""
    lora, rows = LoRA(rank, 1 / rank, 1.0, ("2",)), []
    for width, model in networks.items():
        hidden = nn.Sequential(*list(model.children())[:2])
        a = hidden(x).detach()
        mean = autograd.trace_kernel(model, x, ["2"])[0]
        for s in seeds:
            values = autograd.trace_kernel(lora.attach(model, s), x)[0] / mean
            rows += [{"width": width, "cosine": (a[0] @ b / (a[0].norm() * b.norm())).item(), "value": v.item()}
                     for b, v in zip(a, values, strict=True)]  # fmt: skip
    return pd.DataFrame(rows)


def ntk_limit_lora(seed: int, widths: Sequence[int], ranks: Sequence[int], draws: int) -> Claim:
    """Randomness of LoRA's kernel value over draws of A at growing width, one adapted layer or all."""
    x = digits(40, seed)[0][:1]
    networks = {w: mlp([64, w, w, 1], seed=seed).double() for w in widths}
    seeds = range(seed, seed + draws)
    one = measure(ratios, networks, x, ranks, ["2"], seeds)
    ends = {w: networks[w] for w in (widths[0], widths[len(widths) // 2])}
    plain = measure(plain_ratios, ends, x, ranks[-1:], ["2"], seeds[: min(draws, 150)])
    everything = with_others(one.value, networks, x, ranks, seeds)
    table = pd.concat([spread(one.value, ranks).assign(arm="one layer"),
                       spread(everything, ranks).assign(arm="all layers")], ignore_index=True)  # fmt: skip
    many, pairs, middle = len(widths) * len(ranks), pairs_at_angles(seed), ranks[len(ranks) // 2]
    drawn = measure(entry_spread, measure(entries, networks, pairs, middle, seeds), middle)
    by_hand = measure(entry_spread, measure(plain_entries, {widths[0]: networks[widths[0]]}, pairs, middle,
                                            seeds[: min(draws, 150)]), middle)  # fmt: skip
    largest = tolerance.deviations()
    tip = f"power of the width in the spread over A, rank {ranks[1]}"
    falls = "the r features of a layer are no average over its width"
    return Claim(
        "ntk-limit-lora",
        [Evidence(f"power of the width in the spread over A, rank {r}", measure(rate, one, ranks, r), -0.6, -0.4, falls,
                  miss=tolerance.MISS) for r in ranks]
        + [
            Evidence(f"the same by plain gradients, rank {ranks[-1]}", measure(rate, plain, ranks[-1:], ranks[-1]),
                     -0.6, -0.4, falls, miss=1e-3),
            Evidence("largest Kolmogorov distance to chi-square / r", measure(distances, one, ranks), 0,
                     tolerance.distribution(draws, tolerance.MISS / many), "the law is another one",
                     reading="corrected", miss=tolerance.MISS),
            Evidence(f"spread of entries to sqrt((1 + 1/cosine²)/r), rank {middle}, in standard errors", measure(
                lambda t: t.errors.max(), drawn), 0, largest, "off the diagonal the spread has another law",
                reading="corrected", miss=5e-3),
            Evidence("the same by plain gradients, narrowest network", measure(lambda t: t.errors.max(), by_hand), 0,
                     largest, "off the diagonal the spread has another law", reading="corrected", miss=5e-3),
        ],
        tip,
        figure="lora-spread",
        tables={"entries": drawn.value,
                "spread": table.sort_values(["width", "arm", "rank"], key=_order, ignore_index=True)[
            ["arm", "width", "rank", "spread"]]},
    )  # fmt: skip


def _order(column: pd.Series) -> pd.Series:
    """ "one layer" before "all layers"."""
    return column.map({"one layer": 0, "all layers": 1}) if column.name == "arm" else column
