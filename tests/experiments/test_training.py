"""Gradient descent: it is what it says, and the kernel predicts its first step."""

import pytest
import torch
from strategies import gaussian, relative

from experiments.training import gradient_descent
from lorantk import LoRA, mlp, ntk
from lorantk.fisher import loss_cotangents

X, Y = gaussian(6, 3, seed=0), torch.tensor([0, 1, 0, 1, 1, 0])
NET = mlp([3, 5, 2], "tanh").double()


def test_zero_steps_change_nothing_and_the_model_is_left_alone():
    before = NET[0].weight.clone()
    assert torch.equal(gradient_descent(NET, X, Y, learning_rate=0.1, steps=0)(X), NET(X))
    gradient_descent(NET, X, Y, learning_rate=0.1, steps=3)
    assert torch.equal(before, NET[0].weight)


def test_one_step_is_the_gradient_of_the_mean_loss():
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(NET(X), Y), NET[0].weight)
    trained = gradient_descent(NET, X, Y, learning_rate=0.3)
    assert relative(trained[0].weight, NET[0].weight - 0.3 * gradient) < 1e-14


@pytest.mark.parametrize("model", [NET, LoRA(2, 0.5).attach(NET, 0)])
def test_the_kernel_predicts_one_step_to_second_order(model):
    F = model(X).detach()
    predicted = -torch.einsum("icjd,jd->ic", ntk(model, X), loss_cotangents(F, Y)) / len(X)
    missed = [
        (gradient_descent(model, X, Y, learning_rate=h)(X) - F - h * predicted).norm().item() for h in (1e-3, 2e-3)
    ]
    assert missed[1] / missed[0] == pytest.approx(4, rel=0.02)  # the third-order term is of relative size 1e-3


def test_runs_are_reproducible():
    first, again = (gradient_descent(NET, X, Y, learning_rate=0.5, steps=20)(X) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be finite and above 0"),
        ({"learning_rate": 0.1, "steps": -1}, ValueError, "steps must be at least 0"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        gradient_descent(NET, X, Y, **arguments)


def test_divergence_is_reported():
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        gradient_descent(
            mlp([3, 5, 2], "linear").double(), X, gaussian(6, 2, seed=1), "squared_error", learning_rate=1e3, steps=50
        )


def test_something_must_be_trainable():
    with pytest.raises(ValueError, match="model must have a trainable parameter"):
        gradient_descent(mlp([3, 2]).double().requires_grad_(False), X, Y, learning_rate=0.1)
