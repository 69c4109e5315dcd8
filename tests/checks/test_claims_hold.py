"""Every claim, recomputed small: it says the same at twenty seeds, and a mistake in its computation turns a check."""

import importlib
import itertools
import json
from pathlib import Path

import pytest
import torch
from scipy.stats import poisson
from small_claims import CLAIMS, DETERMINED, RANDOM, attacks, information, wide

from evidence.statements import STATEMENTS
from lorantk import Adapter, LoRA
from lorantk.lora import LoRALayer

ROOT = Path(__file__).resolve().parents[2]


def committed_verdicts(id):
    record = json.loads((ROOT / "tests" / "reference" / "claims" / f"{id}.json").read_text())
    return {part["part"]: part["verdict"] for part in record["parts"]}


def surprises(claim, wanted):
    """Own checks that fail, and parts with another verdict than the committed one."""
    turned = [e.name for e in claim.turned]
    return turned + [part for part in claim.parts if not turned and claim.verdict_of(part) != wanted[part]]


def test_every_statement_has_a_small_claim():
    assert sorted(CLAIMS) == sorted(STATEMENTS)


@pytest.mark.parametrize("id", DETERMINED)
def test_a_claim_without_chance_says_the_same_at_other_seeds(id):
    for seed in range(2):
        assert surprises(CLAIMS[id](seed), committed_verdicts(id)) == []


@pytest.mark.slow
@pytest.mark.parametrize("ids", RANDOM, ids=" ".join)
def test_random_claims_say_the_same_at_twenty_seeds(ids):
    found, expected = [], 0.0
    for seed, id in itertools.product(range(20), ids):
        claim = CLAIMS[id](seed)
        found += [(seed, name) for name in surprises(claim, committed_verdicts(id))]
        expected += sum(e.miss for e in claim.evidence)
    assert len(found) <= poisson.isf(1e-3, max(expected, 1e-9)), f"{found}, of which {expected:.2g} were to be expected"


def scaled(factor):
    return lambda f: lambda *args, **kwargs: factor * f(*args, **kwargs)


def without_scaling(f):
    return lambda A, scaling=1.0: f(A)


def without_identity(f):
    return lambda A, scaling=1.0: f(A, scaling) + torch.eye(A.shape[1], dtype=A.dtype)


def another_seed(f):
    return lambda self, model, seed=0: f(self, model, seed + 1)


def too_large(f):
    def attach(model, adapters):
        return f(model, {k: Adapter(3 * (a.A if isinstance(a, Adapter) else a)) for k, a in adapters.items()})

    return attach


def twice_the_scaling(f):
    return lambda *args: {k: Adapter(a.A, a.B, 2 * a.scaling) for k, a in f(*args).items()}


def no_step(f):
    return lambda model, *args, **kwargs: f(model, *args, **kwargs | {"steps": 0})


MISTAKES = {
    "eq-1": ("s is a tenth too large", (LoRALayer, "forward"), lambda f: lambda self, a: 1.1 * f(self, a)),
    "eq-2": ("a factor of the kernel", "checks.definitions.ntk", scaled(1.1)),
    "ntk-limit": ("the prefactor is dropped", "checks.infinite_width.mlp",
                  lambda f: lambda *a, **k: f(*a, **k | {"parametrization": "standard"})),
    "ntk-limit-lora": ("values cubed", "checks.lora_kernel.lora_ntk_sweep", lambda f: lambda *a, **k: f(*a, **k) ** 3),
    "ntk-constant": ("nothing is trained", "checks.infinite_width.gradient_descent", no_step),
    "ntk-constant-lora": ("a factor of the loss", "checks.lazy.loss_cotangents", scaled(2.0)),
    "eq-3": ("a factor of the alignment", "checks.alignment.gradient_alignment", scaled(1.1)),
    "eq-4": ("a factor of the influence", "checks.alignment.loss_gram", scaled(1.1)),
    "thm-fisher": ("a mean over samples is dropped", "checks.fisher_information.fisher_spectrum", scaled(2.0)),
    "eq-6": ("the half is dropped", "checks.entropy.information_bits", scaled(2.0)),
    "eq-7": ("another order", "checks.entropy.renyi_entropy", lambda f: lambda s, a, **k: f(s, a + 0.1, **k)),
    "eq-8": ("a factor of the recursion", "checks.infinite_width.infinite_width_ntk", scaled(2.0)),
    "eq-9": ("v is dropped", "checks.infinite_width.infinite_width_ntk", scaled(0.5)),
    "lem-lora-ntk": ("another seed's A", (LoRA, "attach"), another_seed),
    "thm-relation": ("s is dropped", "checks.lora_kernel.delta_matrix", without_scaling),
    "thm-relation-attention": ("s is dropped", "experiments.kernel_changes.delta_matrix", without_scaling),
    "thm-nsd": ("A transpose A instead of M", "checks.matrix_m.delta_matrix", without_identity),
    "cor-ideal": ("A transpose A instead of M", "experiments.order.delta_matrix", without_identity),
    "order-on-data": ("s sigma is too large", "experiments.order.ntk", lambda f: lambda m, *a, **k: f(m, *a, **k) ** 2),
    "order-in-training": ("B is dropped", "experiments.certificate.order_certificate",
                          lambda f: lambda A, B=None, scaling=1.0: f(A, None, scaling)),
    "kernel-scale": ("the rank is dropped", "checks.optimizer.kernel_scale", lambda f: lambda r, v, s: f(1, v, s)),
    "adam-kernel": ("a root is dropped", "experiments.adam.preconditioner", lambda f: lambda *a: f(*a) ** 2),
    "thm-ib": ("M is not below 0", "checks.information_order.attach", too_large),
    "thm-renyi": ("M is not below 0", "checks.information_order.attach", too_large),
    "premise": ("s is doubled", "checks.matrix_m.read_peft", twice_the_scaling),
    "direction": ("the variance is too large", "checks.alignment.nsd_variance_bound", scaled(1e4)),
    "why-it-matters": ("squares of cosines", "checks.alignment.projected", lambda f: lambda *a: f(*a) ** 2),
}  # fmt: skip
"""Statement -> a mistake in what its claim computes: what it is, where, and how it is made."""


@pytest.mark.slow
@pytest.mark.parametrize("id", STATEMENTS)
def test_a_mistake_in_its_computation_turns_a_check(id, monkeypatch):
    for shared in (attacks, information, wide):
        shared.cache_clear()
    right = {e.name: e.passes for e in CLAIMS[id](0).evidence}
    _, target, mistake = MISTAKES[id]
    owner, name = target if isinstance(target, tuple) else target.rsplit(".", 1)
    owner = importlib.import_module(owner) if isinstance(owner, str) else owner
    monkeypatch.setattr(owner, name, mistake(getattr(owner, name)))
    for shared in (attacks, information, wide):
        shared.cache_clear()
    wrong = {e.name: e.passes for e in CLAIMS[id](0).evidence}
    for shared in (attacks, information, wide):
        shared.cache_clear()
    assert [name for name, passes in right.items() if wrong.get(name, passes) != passes]
