"""What one step of an optimizer does to the outputs, to first order: gradient descent, sign descent, Adam.

Statements ``adam-kernel``, ``kernel-scale``. With J the Jacobian of the outputs by the trained parameters and
g = J^T (loss derivatives) the gradient, a step moves the outputs by -learning_rate J u: u = g for gradient descent,
sign(g) for sign descent, and for Adam u = D ((1 - beta1) g + beta1 m) / (1 - beta1^t), D the diagonal preconditioner of
the step. The part of g is the kernel J D J^T. Source: Malladi et al. (2023).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from lorantk import LoRA
from lorantk.batches import check_choice, check_integer, check_real
from lorantk.fisher import loss_cotangents

BETAS, EPS = (0.9, 0.999), 1e-12
"""Adam's constants here: PyTorch's, but eps is small beside every gradient, so that a first step is a sign."""


@dataclass(frozen=True)
class State:
    """A model with Adam's moments m and v (P,) of its trained parameters, before step number t = 1, 2, ..."""

    model: nn.Module
    m: Tensor
    v: Tensor
    t: int


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """dF/dtheta of all outputs by all trained parameters, (n C, P), by reverse-mode autodiff."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    blocks = jacrev(lambda values: functional_call(model, values, (x,)))(trained)
    return torch.cat([block.flatten(2).flatten(0, 1) for block in blocks.values()], dim=1)


def cotangents(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Derivatives of the mean cross-entropy by the outputs, (n C,)."""
    with torch.no_grad():
        return (loss_cotangents(model(x), y, "cross_entropy") / len(x)).flatten()


def optimizer(name: str, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """PyTorch's "sgd" or "adamw" without weight decay, over what the model trains."""
    check_choice("name", name, ("sgd", "adamw"))
    check_real("learning_rate", learning_rate, minimum=0.0, exclusive=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(trained, lr=learning_rate)
    return torch.optim.AdamW(trained, lr=learning_rate, betas=BETAS, eps=EPS, weight_decay=0.0)


def train(name: str, model: nn.Module, x: Tensor, y: Tensor, learning_rate: float, steps: int) -> State:
    """A copy of `model` after full-batch steps on the mean cross-entropy, with the moments its optimizer holds."""
    check_integer("steps", steps, 0)
    cotangents(model, x, y)  # checks the labels
    trained = copy.deepcopy(model)
    rule = optimizer(name, trained, learning_rate)
    for _ in range(steps):
        rule.zero_grad()
        nn.functional.cross_entropy(trained(x), y).backward()
        rule.step()
    parameters = [p for p in trained.parameters() if p.requires_grad]
    m, v = (torch.cat([_moment(rule, p, key).flatten() for p in parameters]) for key in ("exp_avg", "exp_avg_sq"))
    return State(trained, m, v, steps + 1)


def step(state: State, x: Tensor, y: Tensor, learning_rate: float) -> nn.Module:
    """The model after one more step of `torch.optim.AdamW` from this state."""
    model = copy.deepcopy(state.model)
    rule, place = optimizer("adamw", model, learning_rate), 0
    for p in (p for p in model.parameters() if p.requires_grad):
        if state.t > 1:
            part = slice(place, place := place + p.numel())
            rule.state[p] = {"step": torch.tensor(float(state.t - 1)), "exp_avg": state.m[part].view_as(p).clone(),
                             "exp_avg_sq": state.v[part].view_as(p).clone()}  # fmt: skip
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    rule.step()
    return model


def preconditioner(state: State, x: Tensor, y: Tensor) -> Tensor:
    """Diagonal D (P,) of Adam's next step from this state."""
    gradient = jacobian(state.model, x).T @ cotangents(state.model, x, y)
    v_hat = (BETAS[1] * state.v + (1 - BETAS[1]) * gradient**2) / (1 - BETAS[1] ** state.t)
    return 1 / (v_hat.sqrt() + EPS)


def predicted_movement(state: State, x: Tensor, y: Tensor, x_test: Tensor) -> Tensor:
    """Movement (n_test C,) of the outputs on `x_test` in Adam's next step from this state, over the learning rate.

    J' D J^T times the loss derivatives, and what the first moment adds; with D from the second moment and the gradient.
    """
    J, r = jacobian(state.model, x), cotangents(state.model, x, y)
    (beta1, _), t, D, J_test = BETAS, state.t, preconditioner(state, x, y), jacobian(state.model, x_test)
    kernel = (J_test * D) @ J.T
    return -((1 - beta1) * kernel @ r + beta1 * (J_test * D) @ state.m) / (1 - beta1**t)


def sign_movement(model: nn.Module, x: Tensor, y: Tensor, x_test: Tensor) -> Tensor:
    """Movement (n_test C,) of the outputs on `x_test` in a step of sign descent, over the learning rate."""
    return -jacobian(model, x_test) @ torch.sign(jacobian(model, x).T @ cotangents(model, x, y))


def movement(before: nn.Module, after: nn.Module, x: Tensor) -> Tensor:
    """Difference of the outputs (n C,)."""
    with torch.no_grad():
        return (after(x) - before(x)).flatten()


def decrease(name: str, model: nn.Module, x: Tensor, y: Tensor, learning_rate: float) -> float:
    """Decrease of the loss in one real first step of "sgd" or "adamw", over the learning rate."""
    return _fall(model, train(name, model, x, y, learning_rate, 1).model, x, y) / learning_rate


def first_steps(
    model: nn.Module, x: Tensor, y: Tensor, others: Tensor, loras: Mapping[tuple[str, int], LoRA], seeds: Sequence[int],
    learning_rate: float,
) -> pd.DataFrame:  # fmt: skip
    """First steps of both optimizers, averaged over draws of A, for adapters named by a rule of scale and a rank.

    Returns
    -------
    DataFrame
        optimizer, rule, rank, `decrease`, and the norm of the `movement` on `others` over the learning rate
    """
    rows = []
    for (rule, rank), lora in loras.items():
        for name in ("sgd", "adamw"):
            for seed in seeds:
                before = lora.attach(model, seed)
                after = train(name, before, x, y, learning_rate, 1).model
                moved = movement(before, after, others).norm().item()
                rows.append((name, rule, rank, _fall(before, after, x, y) / learning_rate, moved / learning_rate))
    steps = pd.DataFrame(rows, columns=["optimizer", "rule", "rank", "decrease", "movement"])
    return steps.groupby(["optimizer", "rule", "rank"], sort=False, as_index=False).mean()


def scale_rules(ranks: Sequence[int], alpha: float) -> dict[tuple[str, int], LoRA]:
    """Adapters at each rank by four rules of scale: alpha = r, alpha fixed, rank-stabilised, and PEFT's "gaussian"."""
    rules = {}
    for r in ranks:
        rules["α = r", r] = LoRA(r)
        rules["α fixed", r] = LoRA(r, scaling=alpha / r)
        rules["rank-stabilised", r] = LoRA(r, scaling=alpha / r**0.5)
        rules["gaussian, α = r", r] = LoRA(r, 1 / r**2)
    return rules


def influences(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Entry (i, j), g_j . sign(g_i): how far a sign step on i lowers the loss of j, over the learning rate."""
    J = jacobian(model, x).unflatten(0, (len(x), -1))
    gradients = torch.einsum("ncp,nc->np", J, cotangents(model, x, y).view(len(x), -1) * len(x))
    return torch.sign(gradients) @ gradients.T


def _fall(before: nn.Module, after: nn.Module, x: Tensor, y: Tensor) -> float:
    """By how much the loss is lower in `after`."""
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(model(x), y).item() for model in (before, after)]
    return losses[0] - losses[1]


def _moment(rule: torch.optim.Optimizer, p: Tensor, key: str) -> Tensor:
    moment = rule.state[p].get(key) if p in rule.state else None
    return torch.zeros_like(p) if moment is None else moment.detach().clone()
