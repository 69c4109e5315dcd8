"""Chapter 17: what the optimizer changes. Claims ``kernel-scale``, ``adam-kernel``."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from evidence.claims import Claim, Evidence, disagreement
from evidence.routes import measure
from experiments.adam import (
    BETAS,
    EPS,
    State,
    decrease,
    first_steps,
    movement,
    predicted_movement,
    scale_rules,
    sign_movement,
    step,
    train,
)
from experiments.data import digits
from experiments.training import gradient_descent
from lorantk import LoRA, kernel_scale, mlp, ntk

from . import autograd, tolerance

Data = tuple[Tensor, Tensor, Tensor]
POWERS = {("α = r", "sgd"): 1, ("α fixed", "sgd"): -1, ("rank-stabilised", "sgd"): 0, ("gaussian, α = r", "sgd"): -1,
          ("α = r", "adamw"): 1, ("α fixed", "adamw"): 0, ("rank-stabilised", "adamw"): 0.5,
          ("gaussian, α = r", "adamw"): 0}  # fmt: skip
"""Power of the rank in the first step by rule and optimizer, as the law has it."""


def setting(seed: int, width: int) -> tuple[nn.Sequential, Data]:
    """A network that knows some digits; inputs and labels to train on, inputs to look at."""
    x, y = digits(96, seed)
    fresh = mlp([64, width, width, 10], "tanh", "standard", seed=seed).double()
    model = gradient_descent(fresh, *digits(200, seed + 1), learning_rate=0.2, steps=20)
    assert isinstance(model, nn.Sequential)
    return model, (x[:48], y[:48], x[48:])


def one_step(state: State, data: Data, rates: Sequence[float]) -> pd.DataFrame:
    """Relative error of the predicted movement of a real step of AdamW from this state, at each learning rate."""
    x, y, test = data
    predicted = predicted_movement(state, x, y, test)
    rows = []
    for eta in rates:
        real = movement(state.model, step(state, x, y, eta), test) / eta
        rows.append(
            {"step": state.t, "learning_rate": eta, "error": ((real - predicted).norm() / predicted.norm()).item()}
        )
    return pd.DataFrame(rows)  # fmt: skip


def order(table: pd.DataFrame) -> float:
    """Power of the learning rate in the error."""
    return tolerance.power(table.learning_rate, table.error)


def torch_step(
    model: nn.Module, x: Tensor, y: Tensor, name: str, eta: float, done: int = 0
) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    """The model after `done` steps at rate 1e-3, after one more at rate eta, and the optimizer before that one."""
    trained = copy.deepcopy(model)
    parameters = [p for p in trained.parameters() if p.requires_grad]
    rule: torch.optim.Optimizer = (
        torch.optim.SGD(parameters, lr=1e-3) if name == "sgd"
        else torch.optim.AdamW(parameters, lr=1e-3, betas=BETAS, eps=EPS, weight_decay=0.0)
    )  # fmt: skip
    for _ in range(done):
        rule.zero_grad()
        nn.functional.cross_entropy(trained(x), y).backward()
        rule.step()
    before, state = copy.deepcopy(trained), copy.deepcopy(rule)
    rule.param_groups[0]["lr"] = eta
    rule.zero_grad()
    nn.functional.cross_entropy(trained(x), y).backward()
    rule.step()
    return before, trained, state


def plain_step_error(model: nn.Module, data: Data, eta: float, done: int) -> float:
    """Relative error of Adam's next step predicted from plain Jacobians and torch's own moments."""
    x, y, test = data
    before, after, rule = torch_step(model, x, y, "adamw", eta, done)
    J, J_test = autograd.jacobian(before, x), autograd.jacobian(before, test)
    outputs = before(x).detach()
    g = J.T @ (torch.softmax(outputs, 1) - nn.functional.one_hot(y, outputs.shape[1])).flatten() / len(x)
    states = [rule.state[p] for p in rule.param_groups[0]["params"]]
    m, v = (torch.cat([s[key].flatten() for s in states]) if done else torch.zeros_like(g)
            for key in ("exp_avg", "exp_avg_sq"))  # fmt: skip
    t, (b1, b2) = done + 1, BETAS
    update = (b1 * m + (1 - b1) * g) / (1 - b1**t) / (((b2 * v + (1 - b2) * g**2) / (1 - b2**t)).sqrt() + EPS)
    real = (after(test) - before(test)).detach().flatten() / eta
    return disagreement(real, -J_test @ update)


def plain_sign_error(model: nn.Module, data: Data, eta: float) -> float:
    """A real first step of AdamW against J' sign(g) from plain gradients, relative."""
    x, y, test = data
    before, after, _ = torch_step(model, x, y, "adamw", eta)
    g = autograd.loss_gradients(before, x, y).mean(0)
    real = (after(test) - before(test)).detach().flatten() / eta
    return disagreement(real, -autograd.jacobian(before, test) @ torch.sign(g))


def sign_error(model: nn.Module, data: Data) -> float:
    """Adam's predicted first step against that of sign descent, relative."""
    x, y, test = data
    state = train("adamw", model, x, y, 1e-3, 0)
    return disagreement(predicted_movement(state, x, y, test), sign_movement(model, x, y, test))


def power_of_s(name: str, models: tuple[nn.Module, nn.Module], data: Data) -> float:
    """log2 of how much more a first step lowers the loss when s doubles."""
    one, two = (decrease(name, model, *data[:2], 1e-6) for model in models)
    return float(np.log2(two / one))


def plain_power_of_s(name: str, models: tuple[nn.Module, nn.Module], data: Data) -> float:
    """log2 of how much further a first step of torch.optim moves the outputs when s doubles."""
    moved = []
    for model in models:
        before, after, _ = torch_step(model, *data[:2], name, 1e-6)
        moved.append((after(data[2]) - before(data[2])).detach().norm().item())
    return float(np.log2(moved[1] / moved[0]))


def adam_kernel(seed: int, width: int, rank: int, rates: Sequence[float]) -> Claim:
    """Steps of AdamW predicted by a preconditioned kernel."""
    network, data = setting(seed, width)
    adapted = LoRA(rank).attach(network, seed)
    tables = {t: measure(one_step, train("adamw", adapted, *data[:2], 1e-3, t - 1), data, rates) for t in (1, 6)}
    few = tuple(part[:8] for part in data)
    doubled = adapted, LoRA(rank, scaling=2.0).attach(network, seed)
    tip = "order in the learning rate of what is not predicted, AdamW's first step"
    off, twice = "moments or preconditioner enter otherwise", "s enters otherwise"
    signs = "ε is not small, or moments are not 0"
    return Claim(
        "adam-kernel",
        [
            Evidence(tip, measure(order, tables[1]), 0.95, 1.05, off, "step"),
            Evidence("the same, sixth step, from its state", measure(order, tables[6]), 0.95, 1.05, off, "step"),
            Evidence("first step, relative error at the smallest rate", measure(lambda t: t.error.min(), tables[1]), 0,
                     1e-3, off, "step"),
            Evidence("sixth step at rate 1e-7 from plain gradients and torch's moments, relative error", measure(
                plain_step_error, adapted, few, 1e-7, 5), 0, 1e-3, off, "step"),
            Evidence("Adam's predicted first step − sign descent, relative", measure(sign_error, adapted, data), 0,
                     1e-6, signs, "signs"),
            Evidence("a real first step at rate 1e-7 − sign descent by plain gradients, relative", measure(
                plain_sign_error, adapted, few, 1e-7), 0, 1e-3, signs, "signs"),
            *(Evidence(f"power of s in the loss's first fall, {label}", measure(power_of_s, name, doubled, data),
                       power - 0.01, power + 0.01, twice, "scaling")
              for name, label, power in (("adamw", "AdamW", 1), ("sgd", "SGD", 2))),
            *(Evidence(f"power of s in the outputs' first movement, {label}", measure(
                plain_power_of_s, name, doubled, data), power - 0.01, power + 0.01, twice, "scaling")
              for name, label, power in (("adamw", "AdamW", 1), ("sgd", "SGD", 2))),
        ],
        tip,
        figure="rules-of-scale",
        tables={"steps": pd.concat([t.value for t in tables.values()], ignore_index=True)},
    )  # fmt: skip


def scales(network: nn.Module, x: Tensor, lora: LoRA, seeds: Sequence[int]) -> Tensor:
    """Trace of K_LoRA over that of K_FF in the adapted layer, for each draw."""
    layers = list(lora.layers or ())
    full = ntk(network, x, layers=layers, output="trace").trace()
    return torch.stack([ntk(lora.attach(network, s), x, output="trace").trace() / full for s in seeds])


def plain_scales(network: nn.Module, x: Tensor, lora: LoRA, seeds: Sequence[int]) -> Tensor:
    """The same by plain gradients."""
    full = autograd.kernel(network, x, lora.layers).trace()
    return torch.stack([autograd.kernel(lora.attach(network, s), x).trace() / full for s in seeds])


def plain_first_steps(network: nn.Module, x: Tensor, y: Tensor, ranks: Sequence[int], alpha: float,
                      seeds: Sequence[int]) -> pd.DataFrame:  # fmt: skip
    """s^2 |G A^T|^2 and s |G A^T|_1 summed over layers, with G the gradient of the loss by each weight."""
    names = [name for name, _ in network.named_parameters()]
    gradients = torch.autograd.grad(nn.functional.cross_entropy(network(x), y), list(network.parameters()))
    G = {name.removesuffix(".weight"): g for name, g in zip(names, gradients, strict=True)}
    rows = []
    for (rule, rank), lora in scale_rules(ranks, alpha).items():
        drawn = [{name: g @ lora.sample(network, s)[name].T for name, g in G.items()} for s in seeds]
        squares = np.mean([sum(v.square().sum().item() for v in d.values()) for d in drawn])
        sums = np.mean([sum(v.abs().sum().item() for v in d.values()) for d in drawn])
        rows += [
            {"rule": rule, "rank": rank, "optimizer": "sgd", "decrease": lora.scaling**2 * squares},
            {"rule": rule, "rank": rank, "optimizer": "adamw", "decrease": lora.scaling * sums},
        ]
    return pd.DataFrame(rows)  # fmt: skip


def kernel_scale_claim(seed: int, width: int, rank: int, alpha: float, draws: int, ranks: Sequence[int]) -> Claim:
    """The mean of LoRA's kernel over A, and first steps of both optimizers by four rules of scale."""
    network, (x, y, others) = setting(seed, width)
    one = LoRA(rank, layers=["2"], scaling=1.5)
    expected, many = kernel_scale(rank, 1 / (3 * width), 1.5), range(seed, seed + 5 * draws)
    ratio, plain = measure(scales, network, x, one, many), measure(plain_scales, network, x[:4], one, many)
    seeds = range(seed, seed + draws)
    steps = measure(first_steps, network, x, y, others, scale_rules(ranks, alpha), seeds, 1e-6)
    by_formula = measure(plain_first_steps, network, x, y, ranks, alpha, seeds)
    real, formula = (measure(lambda t: tolerance.rank_powers(t), table) for table in (steps, by_formula))
    reach = tolerance.student(5 * draws - 1)
    slack = tolerance.slope(ranks, [(2 / (r * draws)) ** 0.5 for r in ranks], 1e-3)
    wrong, power = "variance, rank or s enter otherwise", "the step does not scale as the law has it"
    tip = "mean of LoRA's kernel / full's − s² r σₐ², in standard errors"

    gap = lambda values: max(abs(values[key] - value) for key, value in POWERS.items())  # noqa: E731
    return Claim(
        "kernel-scale",
        [
            Evidence(tip, measure(lambda v: tolerance.in_errors(v, expected), ratio), -reach, reach, wrong, "mean",
                     miss=1e-4),
            Evidence("the same by plain gradients, four images", measure(
                lambda v: tolerance.in_errors(v, expected), plain), -reach, reach,
                     wrong, "mean", miss=1e-4),
            *(Evidence(f"power of the rank, {rule}, {name}", measure(lambda v, k=(rule, name): v[k], real),
                       value - slack, value + slack, power, "steps", miss=1e-3)
              for (rule, name), value in POWERS.items()),
            Evidence("by formula from plain gradients: largest error of a power of the rank", measure(gap, formula), 0,
                     slack, power, "steps", miss=1e-3),
        ],
        tip,
        figure="rules-of-scale",
        tables={"steps": steps.value, "slopes": real.value},
    )  # fmt: skip
