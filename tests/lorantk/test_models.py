"""Random networks: shapes, the two parametrisations, explicit seeds."""

import pytest
import torch
from strategies import gaussian, relative

from lorantk import mlp, ntk


def test_same_seed_same_network_without_touching_the_global_state():
    before = torch.random.get_rng_state()
    first, again, other = mlp([3, 4, 2], seed=1), mlp([3, 4, 2], seed=1), mlp([3, 4, 2], seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


@pytest.mark.parametrize("activation", ["relu", "erf", "tanh", "linear"])
def test_both_parametrisations_compute_the_same_function(activation):
    x = gaussian(5, 3, seed=0)
    ours, standard = (mlp([3, 6, 2], activation, p, 1.7).double() for p in ("ntk", "standard"))
    assert relative(ours(x), standard(x)) < 1e-6  # weights are stored in float32 once scaled, once not


def test_parametrisations_differ_in_the_kernel_by_the_prefactor_of_each_layer():
    x = gaussian(4, 3, seed=0)
    ours, standard = (mlp([3, 6, 2], "tanh", p, 1.7).double() for p in ("ntk", "standard"))
    for name, fan_in in (("0", 3), ("2", 6)):
        expected = 1.7 / fan_in * ntk(standard, x, layers=[name])
        assert relative(ntk(ours, x, layers=[name]), expected) < 1e-5  # float32 weights


def test_weights_have_the_variance_of_their_parametrisation_and_biases_are_zero():
    for parametrization, expected in (("ntk", 1.0), ("standard", 2.0 / 300)):
        layer = mlp([300, 300], parametrization=parametrization, bias=True)[0]
        assert abs(layer.weight.var().item() / expected - 1) < 4 * (2 / 90_000) ** 0.5
        assert layer.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"widths": [3]}, ValueError, "widths must hold the input and the output"),
        ({"widths": [3, 0]}, ValueError, "widths must be at least 1"),
        ({"widths": [3, 2.0]}, TypeError, "widths must be an int"),
        ({"widths": [3, 2], "activation": "gelu"}, ValueError, "activation must be one of 'relu'"),
        ({"widths": [3, 2], "parametrization": "mup"}, ValueError, "parametrization must be one of"),
        ({"widths": [3, 2], "weight_variance": 0.0}, ValueError, "weight_variance must be finite and above 0"),
        ({"widths": [3, 2], "weight_variance": "2"}, TypeError, "weight_variance must be a real number"),
        ({"widths": [3, 2], "seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        mlp(**arguments)
