"""Layer factors against derivatives by autograd."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, gaussian, networks, relative
from torch import nn

from lorantk import LayerFactors, mlp


@given(st.data(), networks())
def test_outer_products_of_factors_are_the_gradients(data, model):
    x = data.draw(batches(model[0].in_features))
    factors = LayerFactors.from_model(model, x)
    assert torch.equal(factors.outputs, model(x).detach())
    for name, a in factors.activations.items():
        weight = model.get_submodule(name).weight
        for i in range(len(x)):
            for c in range(factors.outputs.shape[1]):
                (gradient,) = torch.autograd.grad(model(x[i : i + 1])[0, c], weight)
                assert relative(torch.outer(factors.cotangents[name][i, c, 0], a[i, 0]), gradient) < 1e-12


def test_frozen_models_have_factors_too():
    model, x = mlp([3, 4, 2]).double(), gaussian(2, 3, seed=0)
    before = LayerFactors.from_model(model, x)
    after = LayerFactors.from_model(model.requires_grad_(False), x)
    assert torch.equal(before.cotangents["0"], after.cotangents["0"])


def test_hooks_are_gone_afterwards_even_on_failure():
    model = mlp([3, 4, 2]).double()
    with pytest.raises(ValueError, match="model must accept the batch"):
        LayerFactors.from_model(model, gaussian(2, 5, seed=0))
    LayerFactors.from_model(model, gaussian(2, 3, seed=0))
    assert all(not module._forward_hooks for module in model.modules())


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.used(x)


def test_a_layer_that_is_never_called_is_named():
    with pytest.raises(ValueError, match=r"never called: \['idle'\]"):
        LayerFactors.from_model(Unused().double(), gaussian(2, 3, seed=0))
