"""Steps of torch.optim against their kernels, and the scale of LoRA's kernel."""

import math

import pytest
import torch
from strategies import gaussian

from experiments.adam import decrease, influences, movement, predicted_movement, sign_movement, step, train
from experiments.data import digits
from lorantk import LoRA, kernel_scale, mlp, ntk

x, y = digits(40)
NETWORK = mlp([64, 24, 24, 10], "tanh", parametrization="standard").double()
LAYERS = ["0", "2", "4"]


def _error(state, learning_rate):
    real = movement(state.model, step(state, x[:20], y[:20], learning_rate), x[20:]) / learning_rate
    predicted = predicted_movement(state, x[:20], y[:20], x[20:])
    return ((real - predicted).norm() / predicted.norm()).item()


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_the_next_step_of_adamw_is_predicted_to_first_order(steps):
    state = train("adamw", LoRA(4).attach(NETWORK, 1), x[:20], y[:20], 1e-3, steps)
    errors = [_error(state, rate) for rate in (1e-4, 1e-5)]
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)  # the remainder is of second order


def test_a_first_step_is_a_sign_step():
    state = train("adamw", LoRA(4).attach(NETWORK, 1), x, y, 1e-3, 0)
    both = (f for f in (predicted_movement(state, x, y, x), sign_movement(state.model, x, y, x)))
    first, second = both
    assert (first - second).norm() < 1e-6 * second.norm()


@pytest.mark.parametrize(("name", "power"), [("sgd", 2), ("adamw", 1)])
def test_the_scaling_enters_twice_or_once(name, power):
    falls = [decrease(name, LoRA(4, scaling=s).attach(NETWORK, 1), x, y, 1e-6) for s in (1.0, 2.0)]
    assert math.log2(falls[1] / falls[0]) == pytest.approx(power, abs=1e-3)


def test_the_mean_kernel_over_draws_has_the_scale_of_the_law():
    lora = LoRA(3, "0.7/n", scaling=1.5, layers=["2"])
    full = ntk(NETWORK, x, layers=["2"], output="trace").trace()
    ratios = torch.stack([ntk(lora.attach(NETWORK, s), x, output="trace").trace() / full for s in range(200)])
    error = ratios.std() / len(ratios) ** 0.5
    assert abs(ratios.mean() - kernel_scale(3, 0.7 / 24, 1.5)) < 5 * error  # five standard errors: 6e-7


def test_influences_of_a_sign_step_are_inner_products_with_signs():
    model = mlp([3, 2], parametrization="standard").double()
    inputs, labels = gaussian(2, 3, seed=0), torch.tensor([0, 1])
    loss = torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none")
    g, h = (torch.autograd.grad(v, model[0].weight, retain_graph=True)[0] for v in loss)
    assert influences(model, inputs, labels)[0, 1].item() == pytest.approx((torch.sign(g) * h).sum().item())
