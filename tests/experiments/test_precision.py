"""The page on numerical stability: its reference is independent, and its errors are those of the formats."""

import pytest
import torch
from strategies import relative
from torch import nn

from experiments import precision
from lorantk import ntk


def test_the_reference_is_the_kernel():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(3, 3)
    assert relative(precision.reference(model, x), ntk(model.double(), x.double(), method="jacobian")) < 1e-12


@pytest.mark.parametrize(("label", "low", "high"), [("float64", 13, 17), ("float32", 5.5, 8), ("bfloat16", 1.5, 4)])
def test_kernels_have_the_digits_of_their_format(label, low, high):
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    found = precision.errors({"small": (model, torch.randn(3, 8))}, [label])
    assert set(found["method"]) == set(precision.METHODS)
    assert found["digits"].between(low, high).all()


def test_formats_of_adapters_are_left_out_where_nothing_is_frozen():
    found = precision.errors({"small": (nn.Linear(3, 2), torch.randn(2, 3))}, ["bfloat16, adapters float32"])
    assert found.empty


def test_ours_has_more_digits_than_the_definition_near_order_one():
    near = precision.renyi_near_one([1 + 1e-8]).iloc[0]
    assert near["ours, float64"] < 1e-14
    assert near["ours, float32"] < 1e-6
    assert near["definition, float32"] > 0.1
