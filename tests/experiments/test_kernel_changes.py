"""What changes a kernel: against the kernels of models themselves."""

from __future__ import annotations

import pytest
import torch

from experiments.kernel_changes import causes_of_drift, change_by_adapters, part_of_layers
from lorantk import Adapter, LayerFactors, LoRA, attach, mlp, ntk
from lorantk.models import SelfAttentionBlock

A, B = ["0.down", "2.down"], ["0.up", "2.up"]


def test_the_change_by_adapters_is_the_difference_of_two_kernels() -> None:
    block = SelfAttentionBlock(4, 6, 2, 0).double()
    tokens = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = LoRA(2, 0.7, layers=["query", "up"]).sample(block, 3)
    adapted = attach(block, {name: Adapter(matrix, None, 1.5) for name, matrix in drawn.items()})
    expected = ntk(adapted, tokens, method="jacobian") - ntk(block, tokens, layers=["query", "up"], method="jacobian")
    found = change_by_adapters(LayerFactors.from_model(block, tokens), drawn, 1.5)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_causes_are_told_apart() -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before = LoRA(2, 0.5).attach(mlp([5, 8, 1], seed=0).double(), 1)
    same = causes_of_drift(before, before, x, A=A, B=B)
    assert same == {"share_of_A": 0.0, "features_moved": 0.0, "drift_by_features": 0.0, "drift_by_cotangents": 0.0}
    after = LoRA(2, 0.5).attach(mlp([5, 8, 1], seed=0).double(), 1)
    with torch.no_grad():  # twice the A of the last layer: its features double, and no cotangent moves while B = 0
        after.get_parameter("2.down.weight").mul_(2)
    moved = causes_of_drift(before, after, x, A=A, B=B)
    assert moved["features_moved"] == pytest.approx(1)
    assert moved["drift_by_cotangents"] == pytest.approx(0, abs=1e-12)
    whole = [ntk(model, x, layers=B, output="trace") for model in (before, after)]
    assert moved["drift_by_features"] == pytest.approx(((whole[1] - whole[0]).norm() / whole[0].norm()).item())


def test_the_share_of_A_is_that_of_its_layers_in_the_kernel() -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model = LoRA(2, 0.5).attach(mlp([5, 8, 3], seed=0).double(), 1)
    with torch.no_grad():
        model.get_parameter("0.up.weight").fill_(0.3)
    own, whole = (ntk(model, x, layers=layers, method="jacobian", output="trace") for layers in (A, None))
    share = causes_of_drift(model, model, x, A=A, B=B)["share_of_A"]
    assert share == pytest.approx((own.norm() / whole.norm()).item())
    factors = LayerFactors.from_model(model, x)
    torch.testing.assert_close(part_of_layers(factors, factors, A), own, rtol=1e-9, atol=1e-9)
