"""Starts of adapters against PEFT's own, and what they leave of the network."""

import copy

import pytest
import torch
from torch import nn

from experiments.starts import DRAWS, FROM_WEIGHT, on_digits, start, starts
from lorantk import attach, mlp


@pytest.fixture(scope="module")
def model():
    return mlp([12, 16, 10, 3], parametrization="standard", seed=0).double()


@pytest.fixture(scope="module")
def x():
    return torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scaling", [1.0, 2.0])
@pytest.mark.parametrize("name", [*DRAWS, *FROM_WEIGHT])
def test_the_network_computes_what_it_did(model, x, name, scaling):
    before = copy.deepcopy(model.state_dict())
    base, adapter = start(name, model, "2", 4, scaling, seed=0)
    torch.testing.assert_close(attach(base, {"2": adapter})(x), model(x), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "init"), [("PiSSA", "pissa"), ("OLoRA", "olora")])
def test_starts_from_the_weight_are_those_of_peft(model, name, init):
    from peft import LoraConfig, get_peft_model

    network = nn.Sequential(nn.Linear(16, 10, bias=False))
    network[0].weight.data = model.get_parameter("2.weight").detach().float()
    base, adapter = start(name, model, "2", 4, 2.0, seed=0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=init)
    theirs = get_peft_model(copy.deepcopy(network), config).get_base_model()[0]
    product = adapter.B @ adapter.A
    torch.testing.assert_close(
        theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight, product.float(), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(theirs.base_layer.weight, base.get_parameter("2.weight").float(), rtol=1e-4, atol=1e-5)
    singular = torch.linalg.svdvals(theirs.lora_A["default"].weight)
    torch.testing.assert_close(singular, torch.linalg.svdvals(adapter.A).float(), rtol=1e-4, atol=1e-5)


def test_the_table_bounds_the_order_by_the_certificate(model, x):
    table = starts(model, x, "2", 4, 1.0, seeds=range(3)).set_index("start")
    assert list(table.index) == [*DRAWS, *FROM_WEIGHT]
    assert (table.ratio <= table.certificate * (1 + 1e-9)).all()
    assert (table.scale <= table.ratio * (1 + 1e-9)).all()
    assert table.certificate["orthonormal rows"] == pytest.approx(1.0)
    assert (table.certificate[list(FROM_WEIGHT)] > table.premise[list(FROM_WEIGHT)]).all()
    assert table.premise["gaussian, 1/r²"] > table.premise["uniform, 1/(3n)"]


def test_on_digits_a_larger_scaling_has_a_larger_ratio_and_defaults_keep_the_order():
    table = on_digits(rank=4, seeds=range(2), inputs=8).set_index("start")
    assert (table["ratio at s = 2"] > table["ratio at s = 1"]).all()
    assert table["ratio at s = 1"]["uniform, 1/(3n)"] < 1
