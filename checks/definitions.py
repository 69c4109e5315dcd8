"""Chapter 1: what LoRA and the tangent kernel are. Claims ``eq-1``, ``eq-2``."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from evidence.claims import Claim, Evidence, disagreement
from evidence.routes import measure
from experiments.data import digits
from experiments.training import gradient_descent
from lorantk import Adapter, LoRA, attach, mlp, ntk, read_peft
from lorantk.fisher import loss_cotangents

from . import autograd, tolerance


class Wrapped(NamedTuple):
    """A network, the same wrapped by PEFT with random A and B, its adapters as we read them, and attached by us."""

    base: nn.Sequential
    peft: nn.Module
    adapters: dict[str, Adapter]
    ours: nn.Module


def wrapped(seed: int, width: int, rank: int) -> Wrapped:
    """A network of three layers with PEFT's adapters in all of them, alpha = 1.5 r."""
    base = mlp([64, width, width, 10], "tanh", "standard", seed=seed).double()
    config = LoraConfig(r=rank, lora_alpha=1.5 * rank, target_modules=["0", "2", "4"])  # type: ignore[arg-type]
    model = get_peft_model(copy.deepcopy(base), config).double()
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    adapters = read_peft(model)
    return Wrapped(base, model, adapters, attach(base, adapters))


def trained_gradients(model: nn.Module, x: Tensor) -> Tensor:
    """Gradient of the sum of squared outputs by what the model trains, as one vector."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(model(x).square().sum(), trained)])


def output_error(models: Wrapped, x: Tensor) -> float:
    """Outputs, ours against PEFT's."""
    return disagreement(models.ours(x), models.peft(x))


def gradient_error(models: Wrapped, x: Tensor) -> float:
    """Gradients by A and B, ours against PEFT's."""
    return disagreement(trained_gradients(models.ours, x), trained_gradients(models.peft, x))


def updates(models: Wrapped, layer: str = "2") -> tuple[Tensor, Tensor]:
    """The update of one weight: s B A, and what PEFT folds in."""
    adapter, merged = models.adapters[layer], copy.deepcopy(models.peft).merge_and_unload()  # type: ignore[operator]
    assert adapter.B is not None
    ours = adapter.scaling * adapter.B @ adapter.A
    return ours.detach(), (
        merged.get_parameter(f"{layer}.weight") - models.base.get_parameter(f"{layer}.weight")
    ).detach()


def printed_formula_error(models: Wrapped, x: Tensor) -> float:
    """Outputs with W + s B A written out layer by layer, against PEFT's."""
    a = x
    for name, module in models.base.named_children():
        if name in models.adapters:
            A, B, s = models.adapters[name]
            assert B is not None
            a = a @ (module.get_parameter("weight") + s * B @ A).T
        else:
            a = module(a)
    return disagreement(a, models.peft(x))


def eq_1(seed: int, width: int, rank: int, n: int) -> Claim:
    """LoRA, ours against PEFT."""
    models, x = wrapped(seed, width, rank), digits(n, seed)[0]
    both = measure(updates, models)
    values = [torch.linalg.svdvals(update)[: 2 * rank] for update in both.value]
    tip, round_off = "gradient, ours against PEFT", 1e-12  # a few hundred additions of round-off 1e-16 each
    wrong = "s, A or B enter otherwise"
    return Claim(
        "eq-1",
        [
            Evidence("output, ours against PEFT", measure(output_error, models, x), 0, round_off, wrong),
            Evidence(tip, measure(gradient_error, models, x), 0, round_off, wrong),
            Evidence("output of W + sBA written out, against PEFT", measure(printed_formula_error, models, x), 0,
                     round_off, wrong),
            Evidence("update that PEFT merges, against sBA", measure(lambda u: disagreement(*u), both), 0,
                     round_off, wrong),
        ],
        tip,
        figure="update-rank",
        definition=True,
        tables={"singular values": values, "scaling": {k: a.scaling for k, a in models.adapters.items()}},
    )  # fmt: skip


def missed(model: nn.Module, x: Tensor, y: Tensor, rates: np.ndarray) -> pd.DataFrame:
    """What a step of gradient descent changes, and what of it the kernel does not predict, at each learning rate."""
    before = model(x).detach()
    predicted = -torch.einsum("icjd,jd->ic", ntk(model, x), loss_cotangents(before, y)) / len(x)
    rows = []
    for rate in rates:
        change = gradient_descent(model, x, y, learning_rate=rate)(x).detach() - before
        rows.append(
            {
                "learning_rate": rate,
                "change": (change.norm() / before.norm()).item(),
                "not_predicted": ((change - rate * predicted).norm() / before.norm()).item(),
            }
        )
    return pd.DataFrame(rows)  # fmt: skip


def order(steps: pd.DataFrame) -> float:
    """Power of the learning rate in what is not predicted, up to 0.01."""
    small = steps[steps.learning_rate <= 1e-2]
    return tolerance.power(small.learning_rate, small.not_predicted)


def plain_miss(model: nn.Module, x: Tensor, y: Tensor, rate: float) -> float:
    """Share of a real step of torch.optim.SGD that a plain kernel does not predict."""
    before, stepped = model(x).detach(), copy.deepcopy(model)
    d = torch.softmax(before, 1) - nn.functional.one_hot(y, before.shape[1])
    predicted = -(autograd.kernel(model, x) @ d.flatten() / len(x)).view_as(before)
    optimizer = torch.optim.SGD([p for p in stepped.parameters() if p.requires_grad], lr=rate)
    nn.functional.cross_entropy(stepped(x), y).backward()
    optimizer.step()
    change = (stepped(x).detach() - before) / rate
    return ((change - predicted).norm() / change.norm()).item()


def methods(model: nn.Module, x: Tensor) -> float:
    """Largest disagreement of two methods of `ntk` with plain gradients."""
    wanted = autograd.kernel(model, x)
    found = [ntk(model, x, method=m).flatten(2).flatten(0, 1) for m in ("vector_products", "layerwise")]
    return max(disagreement(kernel, wanted) for kernel in found)


def eq_2(seed: int, width: int, rank: int, n: int) -> Claim:
    """The tangent kernel predicts a small step of full fine-tuning and of LoRA."""
    x, y = digits(n, seed)
    network = mlp([64, width, width, 10], "tanh", seed=seed).double()
    arms = {"full": network, "lora": LoRA(rank, variance=1 / rank).attach(network, seed)}
    rates = np.logspace(-4, -1, 10)
    steps = {arm: measure(missed, model, x, y, rates) for arm, model in arms.items()}
    factor, few = "the kernel is off by a factor, or belongs to other parameters", (x[:6], y[:6])
    names = {"full": "full fine-tuning", "lora": "LoRA"}
    return Claim(
        "eq-2",
        [
            *(Evidence(f"order of the miss, {names[arm]}", measure(order, table), 1.95, 2.05, factor)
              for arm, table in steps.items()),
            Evidence("share not predicted at rate 1e-4, larger", measure(
                lambda a, b: max((t.not_predicted / t.change)[0] for t in (a, b)), *steps.values()), 0, 1e-2, factor),
            Evidence("share of a step of SGD at rate 1e-6 that a plain kernel misses, LoRA", measure(
                plain_miss, arms["lora"], *few, 1e-6), 0, 1e-3, factor),
            Evidence("disagreement of three methods", measure(methods, arms["lora"], few[0]), 0, 1e-10, factor),
        ],
        "order of the miss, LoRA",
        figure="one-step",
        definition=True,
        tables={"steps": pd.concat([t.value.assign(arm=arm) for arm, t in steps.items()], ignore_index=True)[
            ["arm", "learning_rate", "change", "not_predicted"]]},
    )  # fmt: skip
