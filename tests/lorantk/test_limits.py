"""The infinite-width kernel against quadrature, high precision, other people's formulas and finite networks."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, gaussian, relative, seeds

from lorantk import LoRA, infinite_width_ntk, lora_ntk_sweep, mlp, ntk
from lorantk.limits import _MOMENTS, BLOCK, _first_layer, _normalised, quadrature_moments

DERIVATIVES = {
    "erf": (torch.erf, lambda u: 2 / math.sqrt(math.pi) * torch.exp(-(u**2))),
    "linear": (lambda u: u, torch.ones_like),
}


@given(st.data(), st.sampled_from(sorted(DERIVATIVES)), st.floats(0.3, 2))
def test_closed_forms_agree_with_quadrature(data, activation, variance):
    one, other = (_normalised(data.draw(batches(4)).renorm(2, 0, 3.0)) for _ in range(2))
    covariance = _first_layer(one, other, variance)
    closed = _MOMENTS[activation](covariance, variance)
    numeric = quadrature_moments(covariance, variance, *DERIVATIVES[activation])
    # norms up to 3 make variances of 2 * 9 / 4 at most, where 320 Gauss-Hermite nodes leave 1e-8 of erf; at 50, 1e-3
    assert relative(closed[0].cross, numeric[0].cross) < 1e-7
    assert relative(closed[1], numeric[1]) < 1e-7


def test_tanh_quadrature_agrees_with_the_trapezoidal_rule():
    covariance = _first_layer(_normalised(gaussian(3, 4, seed=0)), _normalised(gaussian(2, 4, seed=1)), 2.0)
    following, derivative = _MOMENTS["tanh"](covariance, 2.0)
    # for a function analytic in a strip the trapezoidal rule converges exponentially: step 0.1 is exact to round-off
    z = torch.arange(-100, 101, dtype=torch.float64) / 10
    w = torch.exp(-(z**2) / 2) * 0.1 / math.sqrt(2 * math.pi)
    for i in range(3):
        for j in range(2):
            angle = covariance.angle[i, j]
            u = covariance.variance1[i, 0].sqrt() * z[:, None].expand(-1, len(z))
            v = covariance.variance2[0, j].sqrt() * (torch.cos(angle) * z[:, None] + torch.sin(angle) * z)
            assert abs(2 * (w @ (u.tanh() * v.tanh()) @ w) - following.cross[i, j]) < 1e-8
            assert abs(2 * (w @ (1 / (u.cosh() * v.cosh()) ** 2) @ w) - derivative[i, j]) < 1e-8


@given(seeds, st.sampled_from((0.15, 1e-1, 1e-4, 1e-7, 1e-9)), st.integers(2, 4), st.booleans())
def test_relu_kernel_of_nearly_parallel_inputs_matches_fifty_digits(seed, angle, depth, opposite):
    x = gaussian(2, 3, seed=seed)
    x[1] -= (x[1] @ x[0]) / (x[0] @ x[0]) * x[0]
    x = x / x.norm(dim=1, keepdim=True)
    other = (-1 if opposite else 1) * math.cos(angle) * x[0] + math.sin(angle) * x[1]
    kernel = infinite_width_ntk(x[:1], other[None], depth=depth)[0, 0].item()
    with mpmath.workdps(50):
        a, b = ([mpmath.mpf(v) for v in row.tolist()] for row in (x[0], other))

        def dot(u, v):
            return mpmath.fsum(p * q for p, q in zip(u, v, strict=True))

        k11, k22, k12 = (2 * dot(u, v) / 3 for u, v in ((a, a), (b, b), (a, b)))
        theta = k12
        for _ in range(depth - 1):
            t = mpmath.acos(max(-1, min(1, k12 / mpmath.sqrt(k11 * k22))))
            derivative = 1 - t / mpmath.pi
            k12 = mpmath.sqrt(k11 * k22) * (mpmath.sin(t) + (mpmath.pi - t) * mpmath.cos(t)) / mpmath.pi
            theta = theta * derivative + k12
    # relative to the diagonal: 1e-12 leaves three digits for round-off through the layers
    assert abs(kernel - float(theta)) < 1e-12 * depth * 2 / 3


@pytest.mark.parametrize("activation", ["relu", "erf", "tanh", "linear"])
@pytest.mark.parametrize("depth", [1, 2, 5, 10])
def test_awkward_inputs_give_finite_and_right_numbers(activation, depth):
    x = gaussian(5, 4, seed=0)
    x[1], x[2], x[3] = x[0], -x[0], 0
    kernel = infinite_width_ntk(x, depth=depth, activation=activation)
    assert bool(torch.isfinite(kernel).all())
    tolerance = 1e-7 if activation == "tanh" else 1e-12  # quadrature, or a few roundings per layer
    assert relative(kernel, kernel.T) < tolerance
    assert abs(kernel[0, 1] / kernel[0, 0] - 1).item() < tolerance
    assert kernel[3].abs().max() == 0
    odd = activation != "relu"
    assert not odd or abs(kernel[0, 2] / kernel[0, 0] + 1).item() < 1e-7
    alone = infinite_width_ntk(x[:1], depth=depth, activation=activation)
    assert relative(alone, kernel[:1, :1]) < 1e-12
    assert torch.linalg.eigvalsh((kernel + kernel.T) / 2)[0] > -1e-7 * kernel.max()


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_a_kernel_of_several_tiles_is_the_kernel_of_its_parts(activation):
    x = gaussian(BLOCK + 30, 5, seed=0)
    x[BLOCK] = -x[0]
    kernel = infinite_width_ntk(x, depth=3, activation=activation)
    parts = [infinite_width_ntk(x[i : i + 100], x, depth=3, activation=activation) for i in range(0, len(x), 100)]
    assert relative(kernel, torch.cat(parts)) < 1e-13
    assert torch.equal(kernel[BLOCK:, :BLOCK], kernel[:BLOCK, BLOCK:].T)


def test_linear_network_has_its_closed_form():
    x = gaussian(3, 4, seed=0)
    expected = 3 * 1.5**3 * x @ x.T / 4  # each of three layers contributes v^3 x.x'/d
    assert relative(infinite_width_ntk(x, depth=3, activation="linear", weight_variance=1.5), expected) < 1e-13


def test_relu_diagonal_has_its_closed_form():
    x = gaussian(3, 4, seed=0)
    diagonal = infinite_width_ntk(x, depth=6).diagonal()
    assert torch.allclose(
        diagonal, 6 * 2 * x.square().sum(1) / 4, rtol=1e-12
    )  # v = 2 preserves the signal in every layer


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "erf", "tanh"])
def test_wide_networks_approach_the_limit(activation):
    x = gaussian(4, 6, seed=1)
    limit = infinite_width_ntk(x, depth=3, activation=activation)
    kernels = torch.stack(
        [ntk(mlp([6, 512, 512, 1], activation, seed=s).double(), x, output="trace") for s in range(40)]
    )
    # standard error of the mean plus the O(1/width) bias, about twice the squared relative spread
    spread = kernels.std(0)
    assert bool(((kernels.mean(0) - limit).abs() < 5 * spread / 40**0.5 + 4 * spread**2 / limit.max()).all())


def test_mean_limit_of_lora_is_the_mean_over_draws_in_a_wide_network():
    x, lora = gaussian(3, 6, seed=1), LoRA(3, 0.4, 1.5, layers=("0", "4"))
    wide = mlp([6, 2048, 2048, 1]).double()
    draws = lora_ntk_sweep(wide, x, loras=[lora], seeds=range(300), output="trace")[0]
    limit = infinite_width_ntk(x, depth=3, lora=lora)
    assert (
        relative(draws.mean(0), limit) < 4 * (2 / 3 / 300) ** 0.5 + 0.1
    )  # draws: sqrt(2 / r) each; width: 4 / sqrt(2048)


def test_lora_shares_add_up_to_full_fine_tuning():
    x = gaussian(3, 4, seed=0)
    parts = sum(infinite_width_ntk(x, depth=3, lora=LoRA(2, 0.5, layers=[name])) for name in ("0", "2", "4"))
    assert relative(parts, infinite_width_ntk(x, depth=3)) < 1e-13


X = gaussian(2, 3, seed=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": 0}, ValueError, "depth must be at least 1"),
        ({"depth": 2, "activation": "gelu"}, ValueError, "activation must be one of"),
        ({"depth": 2, "weight_variance": -1.0}, ValueError, "weight_variance must be finite and above 0"),
        ({"depth": 2, "x2": X.float()}, TypeError, "x2 has dtype torch.float32"),
        ({"depth": 2, "x2": X[:, :2]}, ValueError, "x2 must have 3 columns"),
        ({"depth": 2, "lora": LoRA(2)}, ValueError, "lora.variance must be a number"),
        ({"depth": 2, "lora": LoRA(2, 1.0, layers=["4"])}, ValueError, "lora.layers must name layers"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        infinite_width_ntk(X, **arguments)
    with pytest.raises(ValueError, match="x1 must be finite"):
        infinite_width_ntk(X / 0, depth=2)
