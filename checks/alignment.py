"""Chapter 8: attacks as alignment of gradients. Claims ``eq-3``, ``eq-4``, ``direction``, ``why-it-matters``."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.special import gammaln
from torch import Tensor, nn

from evidence.claims import Claim, Evidence, disagreement
from evidence.routes import Measured, measure
from experiments.alignment import Batch, Pair, pair, relative_alignment
from experiments.data import digits
from experiments.training import gradient_descent
from experiments.triggers import along_training, by_layer, room
from lorantk import (
    LoRA,
    cosine_law,
    flip_labels,
    gradient_alignment,
    insert_trigger,
    mlp,
    nsd_variance_bound,
)
from lorantk.fisher import loss_gram

from . import autograd, tolerance, triggers

BRIGHT = 16 * 8 / 60
"""Value of the trigger's pixels."""


Setting = tuple[nn.Module, Batch, dict[str, Batch]]


def setting(seed: int, width: int, n: int, warm_up: int, target: int, corner: Sequence[int]) -> Setting:
    """A network trained a little on clean digits, the clean samples, and the two kinds of poison."""
    x, y = digits(2 * n, seed)
    clean, poison_x, poison_y = (x[:n], y[:n]), x[n:], y[n:]
    poison = {
        "untargeted": (poison_x, flip_labels(poison_y, 1.0, 10, seed)),
        "backdoor": insert_trigger(poison_x, poison_y, 1.0, pixels=corner, value=BRIGHT, target=target, seed=seed),
    }
    fresh = mlp([64, width, width, 10], seed=seed).double()
    return gradient_descent(fresh, *clean, learning_rate=0.3, steps=warm_up), clean, poison


def few(batch: Batch, count: int = 6) -> Batch:
    """The first samples of a batch."""
    return batch[0][:count], batch[1][:count]


def alignment_error(model: nn.Module, clean: Batch, poison: Batch) -> float:
    """Alignment by the kernel against absolute inner products of plain gradients of the loss."""
    wanted = (autograd.loss_gradients(model, *clean) @ autograd.loss_gradients(model, *poison).T).abs()
    return disagreement(gradient_alignment(model, clean, poison), wanted)


def movement_error(model: nn.Module, clean: Batch, poison: Batch, learning_rate: float = 1e-6) -> float:
    """|d_c^T K d_p| from plain Jacobians against what a real step of SGD on a poisoned sample does to clean losses."""
    d = [torch.softmax(model(x).detach(), 1) - nn.functional.one_hot(y, 10) for x, y in (clean, poison)]
    J = [autograd.jacobian(model, x).unflatten(0, (len(x), -1)) for x, _ in (clean, poison)]
    formula = torch.einsum("ic,icp,jdp,jd->ij", d[0], J[0], J[1], d[1]).abs()
    columns = []
    for x, y in zip(poison[0].split(1), poison[1].split(1), strict=True):
        stepped = copy.deepcopy(model)
        optimizer = torch.optim.SGD([p for p in stepped.parameters() if p.requires_grad], lr=learning_rate)
        nn.functional.cross_entropy(stepped(x), y).backward()
        optimizer.step()
        losses = [nn.functional.cross_entropy(m(clean[0]), clean[1], reduction="none").detach()
                  for m in (model, stepped)]  # fmt: skip
        columns.append((losses[0] - losses[1]).abs() / learning_rate)
    return disagreement(formula, torch.stack(columns, 1))


def norm_error(model: nn.Module, poison: Batch) -> float:
    """Squared gradient norms of poisoned samples by the kernel against plain gradients."""
    wanted = autograd.loss_gradients(model, *poison).square().sum(1)
    return disagreement(loss_gram(model, *poison).diagonal(), wanted)


def objective(id: str, model: nn.Module, clean: Batch, poison: Batch, seed: int) -> Claim:
    """The definitions ``eq-3`` (untargeted) and ``eq-4`` (backdoor): the kernel form of an inner product."""
    attack = {"eq-3": "untargeted", "eq-4": "backdoor"}[id]
    clean, poison, adapted = few(clean), few(poison), LoRA(4, 0.25).attach(model, seed)
    tip, wrong = (
        f"{attack}, LoRA: kernel form against plain gradients",
        "the kernel, or the loss derivatives, are others",
    )
    evidence = [
        Evidence(tip, measure(alignment_error, adapted, clean, poison), 0, 1e-10, wrong),
        Evidence(f"{attack}, full: kernel form against plain gradients", measure(alignment_error, model, clean, poison),
                 0, 1e-10, wrong),
        Evidence(f"{attack}, LoRA: kernel form against one real step on each sample", measure(
            movement_error, adapted, clean, poison), 0, 1e-3, "a step does not act through this inner product"),
    ]  # fmt: skip
    if id == "eq-4":
        evidence.append(
            Evidence("backdoor, LoRA: influence d·K(x, x)d against plain gradients", measure(
                norm_error, adapted, poison), 0, 1e-10, wrong)
        )  # fmt: skip
    return Claim(id, evidence, tip, figure="alignment", definition=True)


def passes(model: nn.Module, clean: Batch, poison: Mapping[str, Batch]) -> dict[str, Pair]:
    """What all draws of A share, for each kind of poison."""
    return {attack: pair(model, clean, p) for attack, p in poison.items()}


def aligned(model: nn.Module, pairs: Mapping[str, Pair], ranks: Sequence[int], width: int,
            seeds: Sequence[int]) -> pd.DataFrame:  # fmt: skip
    """Inner products and cosines under LoRA inside the premise, relative to full fine-tuning, a row a draw."""
    rows = []
    for r, (attack, found), s in itertools.product(ranks, pairs.items(), seeds):
        inside = 0.95 * min(n * nsd_variance_bound(r, n) for n in (64, width))
        row: dict[str, object] = {"attack": attack, "rank": r, "seed": s}
        rows.append(row | relative_alignment(model, found, r, inside, s))
    return pd.DataFrame(rows)


COLUMNS = ["inner", "cosine", "cosine_equal", "error", "error_equal", "batch", "batch_equal", "positive"]


def largest(table: pd.DataFrame, attack: str, column: str) -> float:
    """The largest of a column's means over draws, over ranks."""
    return table[table.attack == attack].groupby("rank")[column].mean().max()


def plain_relative(model: nn.Module, clean: Batch, poison: Batch, rank: int, variance: str, seed: int) -> float:
    """Mean absolute inner product of plain gradients, LoRA / full."""
    adapted = LoRA(rank, variance).attach(model, seed)
    means = [(autograd.loss_gradients(m, *clean) @ autograd.loss_gradients(m, *poison).T).abs().mean()
             for m in (adapted, model)]  # fmt: skip
    return (means[0] / means[1]).item()


def influence(model: nn.Module, poison: Batch, rank: int, variance: str, seed: int) -> float:
    """Largest ratio of squared gradient norms of poisoned samples, LoRA / full, by the loss Gram matrix."""
    return (loss_gram(LoRA(rank, variance).attach(model, seed), *poison).diagonal()
            / loss_gram(model, *poison).diagonal()).max().item()  # fmt: skip


def plain_influence(model: nn.Module, poison: Batch, rank: int, variance: str, seed: int) -> float:
    """The same from plain gradients."""
    squares = [autograd.loss_gradients(m, *poison).square().sum(1)
               for m in (LoRA(rank, variance).attach(model, seed), model)]  # fmt: skip
    return (squares[0] / squares[1]).max().item()


def claims(seed: int, width: int, n: int, ranks: Sequence[int], seeds: int, pairs: int, warm_up: int,
           target: int, corner: Sequence[int]) -> dict[str, Claim]:  # fmt: skip
    """All claims of the chapter by their ids; the trigger is a bright patch at the pixels `corner`."""
    model, clean, poison = found = setting(seed, width, n, warm_up, target, corner)
    shared = measure(passes, *found)
    table = measure(aligned, model, shared, ranks, width, range(seed, seed + seeds))
    made = [objective("eq-3", model, clean, poison["untargeted"], seed),
            objective("eq-4", model, clean, poison["backdoor"], seed),
            direction(seed, found, shared, ranks, seeds, pairs, target, corner, table),
            why_it_matters(seed, width, found, ranks, seeds, pairs, table)]  # fmt: skip
    return {claim.id: claim for claim in made}


def direction(seed: int, found: Setting, shared: Measured[dict[str, Pair]], ranks: Sequence[int], seeds: int,
              draws: int, target: int, corner: Sequence[int], table: Measured[pd.DataFrame]) -> Claim:  # fmt: skip
    """What the paper's inference needs of inner products, norms and span, where M <= 0; `table` is of `aligned`."""
    model, clean, poison = found
    several = range(seed, seed + seeds)
    layers = measure(by_layer, model, clean[0], LoRA(triggers.RANK, "1/n"), triggers.NORM, several)
    rooms, others = measure(room, model, shared, ranks, several), few(poison["untargeted"], len(clean[0]) // 3)[0]
    evidence = [
        *inner_products(seed, found, ranks[0], table),
        *influences(seed, found, ranks[0]),
        *triggers.search(model, clean, poison, ranks[0], seed, rooms),
        *triggers.null(model, clean, target, seed, layers),
        *triggers.unknown_draw(clean, corner, seed, ranks, draws),
        *triggers.known_draw(model, clean, others, target, seed, draws // 10),
        triggers.balance(model, shared.value["backdoor"], ranks[-1], seed, draws // 10),
    ]
    tables = {"aligned": table.value, "layers": layers.value, "room": rooms.value}
    return Claim("direction", evidence, evidence[0].name, figure="alignment", tables=tables)


def learned(seed: int, width: int, n: int, warm_up: int, target: int, corner: Sequence[int], checkpoints: Sequence[int],
            draws: int) -> pd.DataFrame:  # fmt: skip
    """A random and a null trigger on a third as many samples as are clean, learned by LoRA; see `along_training`."""
    model, clean, poison = setting(seed, width, n, warm_up, target, corner)
    x, y = digits(2 * n + 300, seed)
    others, fresh = few(poison["untargeted"], n // 3)[0], (x[2 * n :], y[2 * n :])
    return along_training(model, clean, others, fresh, LoRA(triggers.RANK, "1/n"), triggers.NORM, target, 0.3,
                          checkpoints, range(seed, seed + draws))  # fmt: skip


def inner_products(seed: int, found: Setting, low: int, table: Measured[pd.DataFrame]) -> list[Evidence]:
    """What the inference needs of inner products, by attack."""
    model, clean, poison = found
    variance = f"{0.95 * 64 * nsd_variance_bound(low, 64)}/n"
    shrink = "where M ≤ 0 no squared norm grows, and on the digits mean inner products shrink with them"
    evidence = []
    for attack, batch in poison.items():
        evidence += [
            Evidence(f"{attack}: inner product, LoRA / full, largest over ranks",
                     measure(largest, table, attack, "inner"), 1, np.inf, shrink, attack),
            Evidence(f"{attack}: inner product of plain gradients at rank {low}, LoRA / full", measure(
                plain_relative, model, few(clean), few(batch), low, variance, seed), 1, np.inf, shrink, attack),
        ]  # fmt: skip
    return evidence


def influences(seed: int, found: Setting, low: int) -> list[Evidence]:
    """The squared norms of both gradients, which the poster asks to influence training."""
    model, clean, poison = found
    variance = f"{0.95 * 64 * nsd_variance_bound(low, 64)}/n"
    grows, evidence = "the order of the kernels does not carry over to the loss", []
    for name, batch in (("backdoor", poison["backdoor"]), ("clean samples", clean)):
        evidence += [
            Evidence(f"{name}: largest influence at rank {low}, LoRA / full", measure(
                influence, model, batch, low, variance, seed), 0, 1, grows, "influence", miss=1e-3),
            Evidence(f"{name}: the same, six samples, plain gradients", measure(
                plain_influence, model, few(batch), low, variance, seed), 0, 1, grows, "influence", miss=1e-3),
        ]  # fmt: skip
    return evidence


def projected(rank: int, width: int, level: float, draws: Sequence[int], seed: int) -> Tensor:
    """abs(cos(A a, A a')) of an orthogonal pair, a value a draw of A with variance level / n."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(width, 2, generator=generator, dtype=torch.float64)).Q.T
    single, lora = mlp([width, 1], "linear").double(), LoRA(rank, f"{level}/n")
    drawn = (lora.sample(single, s)["0"] for s in draws)
    return torch.stack([torch.cosine_similarity(frame[0] @ a.T, frame[1] @ a.T, dim=0).abs() for a in drawn])


def cosines(ranks: Sequence[int], width: int, draws: int, seed: int) -> pd.DataFrame:
    """Mean of `projected` at two variances, beside the exact law."""
    rows = []
    for r, level in itertools.product(ranks, (0.05, 1.0)):
        values = projected(r, width, level, range(seed, seed + draws), seed)
        exact = float(np.exp(gammaln(r / 2) - gammaln((r + 1) / 2)) / np.pi**0.5)
        rows.append(
            {"rank": r, "variance_times_n": level, "measured": values.mean().item(),
             "se": values.std().item() / draws**0.5, "exact": exact, "approximate": (2 / np.pi / r) ** 0.5}
        )  # fmt: skip
    return pd.DataFrame(rows)


def deviation(law: pd.DataFrame) -> float:
    """Largest distance of a mean from the exact law in standard errors, over ranks above 1."""
    return ((law.measured - law.exact) / law.se)[law["rank"] > 1].abs().max()


def gradient_cosine(rank: int, width: int, draws: int, seed: int) -> float:
    """Mean abs(cos) of the gradients of B on an orthogonal pair, from plain gradients, minus the law, in its error."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(width, 2, generator=generator, dtype=torch.float64)).Q.T
    single, lora = mlp([width, 1], "linear").double(), LoRA(rank, "1/n")
    values = []
    for s in range(seed, seed + draws):
        one, other = autograd.jacobian(lora.attach(single, s), frame)
        values.append((torch.dot(one, other) / (one.norm() * other.norm())).abs())
    found = torch.stack(values)
    return ((found.mean() - cosine_law(rank)[1]) / (found.std() / draws**0.5)).item()


def rate(table: pd.DataFrame, attack: str, column: str) -> float:
    """Power of the rank in a column's means over draws."""
    means = table[table.attack == attack].groupby("rank")[column].mean()
    return tolerance.power(means.index, means)


def plain_rate(model: nn.Module, clean: Batch, poison: Batch, ranks: Sequence[int], seeds: Sequence[int]) -> float:
    """The same of the cosine's root mean square error, from plain gradients at variance 1 in every layer."""

    def cosine(m: nn.Module) -> Tensor:
        G, H = (nn.functional.normalize(autograd.loss_gradients(m, *b)) for b in (clean, poison))
        return (G @ H.T).abs()

    full = cosine(model)
    errors = [np.mean([(cosine(LoRA(r, 1.0).attach(model, s)) - full).square().mean().sqrt().item() for s in seeds])
              for r in ranks]  # fmt: skip
    return tolerance.power(ranks, errors)


DISJOINT = ((1.0, -1.0, 0.0, 0.0), (0.0, 0.0, 1.0, -1.0))
"""Loss derivatives of two samples that share no class: each is pushed from one class to another."""


def disjoint_cosine(width: int, seed: int, derivatives: Sequence[Sequence[float]]) -> float:
    """abs(cos) of the gradients of a last layer at rank 1, squared error, two inputs with given loss derivatives."""
    model = mlp([width, 4], "linear").double()
    x = torch.randn(2, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = model(x).detach() - torch.tensor(derivatives, dtype=x.dtype)
    one, other = zip(x.split(1), y.split(1), strict=True)
    return gradient_alignment(LoRA(1, "1/n").attach(model, seed), one, other, "squared_error", cosine=True).item()


def confident_cosine(width: int, seed: int) -> float:
    """The same from plain gradients of the cross-entropy: two inputs, surely of classes 0 and 2, labelled 1 and 3."""
    model = mlp([width, 4], "linear", "standard").double()
    x = torch.randn(2, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model[0].weight.data = 60 * torch.eye(4, dtype=x.dtype)[[0, 2]].T @ torch.linalg.pinv(x).T  # a logit of 60 each
    G = autograd.loss_gradients(LoRA(1, "1/n").attach(model, seed), x, torch.tensor([1, 3]))
    return (torch.dot(*G) / G.norm(dim=1).prod()).abs().item()


def through_cotangents(width: int, seed: int) -> list[Evidence]:
    """Gradients of a last layer at rank 1, orthogonal for one pair of loss derivatives and parallel for another."""
    apart, same = "the cotangents do not enter the gradient of B", "the two activations are told apart at rank 1"
    return [
        Evidence("rank 1, derivatives (1, −1, 0, 0) and (0, 0, 1, −1): |cosine|", measure(
            disjoint_cosine, width, seed, DISJOINT), 0, 1e-12, apart, "cotangents"),
        Evidence("the same, confident predictions and wrong labels, plain gradients: |cosine|", measure(
            confident_cosine, width, seed), 0, 1e-12, apart, "cotangents"),
        Evidence("rank 1, derivatives (1, −1, 0, 0) twice: |cosine|", measure(
            disjoint_cosine, width, seed, DISJOINT[:1] * 2), 1 - 1e-9, 1 + 1e-9, same, "cotangents"),
    ]  # fmt: skip


def why_it_matters(seed: int, width: int, found: Setting, ranks: Sequence[int], seeds: int, pairs: int,
                   on_digits: Measured[pd.DataFrame]) -> Claim:  # fmt: skip
    """Angles under a random projection: the law in one layer, and the error of the cosine on digits."""
    model, clean, poison = found
    law = measure(cosines, ranks, width, pairs // 4, seed)
    several, miss = 2 * (len(ranks) - 1), tolerance.MISS
    slack = tolerance.slope(ranks, 0.3 / seeds**0.5) + 0.1
    reason = "the rows of A do not act as independent projections"
    scale = "layers are reweighted, or the noise is no average over r rows"
    tip = "exact law, largest deviation in standard errors"
    evidence = [
        Evidence(tip, measure(deviation, law), 0, tolerance.deviations(miss / several) + 0.5, reason, "law", miss=1e-4),
        Evidence("gradients of B at rank 3: deviation from the law in standard errors", measure(
            gradient_cosine, 3, width, pairs // 8, seed), -5, 5, reason, "law", miss=1e-5),
    ]  # fmt: skip
    evidence += [
        Evidence(f"power of the rank in the cosine's error, {attack}", measure(rate, on_digits, attack, "error_equal"),
                 -0.5 - slack, -0.5 + slack, scale, "digits", miss=1e-4) for attack in poison
    ]  # fmt: skip
    chosen = [ranks[0], ranks[-1]]
    evidence.append(
        Evidence(f"the same at ranks {chosen[0]} and {chosen[1]}, six samples, plain gradients", measure(
            plain_rate, model, few(clean), few(poison["backdoor"]), chosen, range(seed, seed + 6)), -0.8, -0.2, scale,
            "digits", miss=1e-3)
    )  # fmt: skip
    evidence += through_cotangents(width, seed)
    return Claim("why-it-matters", evidence, tip, figure="cosine-law", tables={"law": law.value})
