"""Chapter 10: the relation of the kernels in a self-attention block. Claim ``thm-relation-attention``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from evidence.claims import Claim, Evidence, disagreement
from evidence.routes import measure
from experiments.data import digits
from experiments.kernel_changes import change_by_adapters
from lorantk import Adapter, LayerFactors, LoRA, attach, ntk
from lorantk.models import SelfAttentionBlock

from . import autograd

PROJECTIONS = ("query", "key", "value", "up", "down")


class Case(NamedTuple):
    """A block, inputs of several tokens, A for some projections, s, and the block with these adapters."""

    block: nn.Module
    x: Tensor
    A: dict[str, Tensor]
    scaling: float
    adapted: nn.Module


def case_of(block: nn.Module, x: Tensor, A: dict[str, Tensor], scaling: float) -> Case:
    """The case with its adapters attached."""
    return Case(block, x, A, scaling, attach(block, {name: Adapter(a, None, scaling) for name, a in A.items()}))


def below(case: Case) -> Case:
    """The same case with A scaled so that the largest eigenvalue of every M is 0."""
    scaled = {name: a / (case.scaling * torch.linalg.matrix_norm(a, 2)) for name, a in case.A.items()}
    return case_of(case.block, case.x, scaled, case.scaling)


def relation(cases: Sequence[Case]) -> float:
    """Largest error of the relation: kernel of the adapted block by torch.func against layer factors with M."""
    errors = []
    for case in cases:
        lora = ntk(case.adapted, case.x, method="jacobian")
        full = ntk(case.block, case.x, layers=list(case.A), method="jacobian")
        change = change_by_adapters(LayerFactors.from_model(case.block, case.x), case.A, case.scaling)
        errors.append(disagreement(full + change, lora))
    return max(errors)


def plain_relation(case: Case) -> float:
    """The same for one case, from plain gradients by each whole weight: K_LoRA = sum s^2 (G A^T) . (G' A^T)."""
    total = torch.tensor(0.0, dtype=torch.float64)
    for name, A in case.A.items():
        weight = case.block.get_parameter(f"{name}.weight")
        G = autograd.jacobian(case.block, case.x, [name])[:, : weight.numel()].unflatten(1, weight.shape)
        through = case.scaling * (G @ A.T).flatten(1)
        total = total + through @ through.T
    return disagreement(total, autograd.kernel(case.adapted, case.x))


def differences(cases: Sequence[Case]) -> Tensor:
    """Spectrum of K_FF - K_LoRA of the adapted layers, ascending, over its largest eigenvalue, of all cases."""
    found = []
    for case in cases:
        gap = ntk(case.block, case.x, layers=list(case.A)) - ntk(case.adapted, case.x)
        eigenvalues = torch.linalg.eigvalsh(gap.flatten(2).flatten(0, 1))
        found.append(eigenvalues / eigenvalues[-1])
    return torch.cat(found)


def plain_difference(case: Case) -> float:
    """The smallest over the largest of these eigenvalues by plain gradients."""
    weights = torch.linalg.eigvalsh(autograd.kernel(case.block, case.x, [f"{name}" for name in case.A])
                                    - autograd.kernel(case.adapted, case.x))  # fmt: skip
    return (weights[0] / weights[-1]).item()


def random_cases(cases: int, seed: int) -> list[Case]:
    """One to five tokens, random ranks, scalings and sizes, all projections at once."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    found = []
    for case in range(cases):
        block, s = SelfAttentionBlock(8, pick(2, 64), 2, case).double(), 0.25 * 2 ** pick(0, 4)
        x = torch.randn(pick(1, 4), pick(1, 5), 8, generator=generator, dtype=torch.float64)
        drawn = LoRA(pick(1, 2), 1.0, layers=list(PROJECTIONS)).sample(block, case)
        found.append(case_of(block, x, drawn, s))
    return found


def on_digits(seed: int, rank: int, scaling: float, hidden: int, n: int) -> Case:
    """A block on digits read as eight tokens of eight pixels."""
    block = SelfAttentionBlock(8, hidden, 10, seed).double()
    drawn = LoRA(rank, "1/n", layers=list(PROJECTIONS)).sample(block, seed)
    return case_of(block, digits(n, seed)[0].reshape(n, 8, 8), drawn, scaling)


def thm_relation_attention(seed: int, rank: int, scaling: float, hidden: int, n: int, cases: int) -> Claim:
    """The relation and its order, projection by projection, for all at once, and in random blocks."""
    whole, searched = on_digits(seed, rank, scaling, hidden, n), random_cases(cases, seed)
    single = {name: case_of(whole.block, whole.x, {name: A}, scaling) for name, A in whole.A.items()}
    small = whole._replace(x=whole.x[:2])
    mixes, breaks = "positions or heads mix otherwise", "the order does not pass through attention"
    tip = "all five at once, smallest / largest eigenvalue of the difference"
    errors = {name: measure(relation, [case]) for name, case in single.items()}
    gaps = {name: measure(differences, [below(case)]) for name, case in single.items()}
    return Claim(
        "thm-relation-attention",
        [
            *(Evidence(f"relation, {name}", error, 0, 1e-10, mixes, "relation") for name, error in errors.items()),
            Evidence("relation, plain gradients, all projections", measure(plain_relation, small), 0, 1e-10, mixes,
                     "relation"),
            Evidence("random blocks: largest error of the relation", measure(relation, searched), 0, 1e-10, mixes,
                     "relation"),
            *(Evidence(f"smallest / largest eigenvalue of the difference, {name}",
                       measure(lambda s: s.min().item(), gap), -1e-10, 1, breaks, "order")
              for name, gap in gaps.items()),
            Evidence(tip, measure(lambda s: s.min().item(), measure(differences, [below(whole)])), -1e-10, 1, breaks,
                     "order"),
            Evidence("the same by plain gradients, two images", measure(plain_difference, below(small)), -1e-10, 1,
                     breaks, "order"),
            Evidence("random blocks: smallest / largest eigenvalue", measure(
                lambda s: s.min().item(), measure(differences, [below(case) for case in searched])), -1e-10, 1, breaks,
                "order"),
        ],
        tip,
        figure="attention-order",
        tables={"case": below(whole)},
    )  # fmt: skip
