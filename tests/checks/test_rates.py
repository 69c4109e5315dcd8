"""Learning rates of A and B: against an optimizer that has two of them."""

import pytest
import torch

from checks.rates import with_ratio
from experiments.training import gradient_descent
from lorantk import LoRA, attach, mlp, ntk


@pytest.mark.parametrize("ratio", [1.0, 16.0, None])
def test_one_rate_on_a_scaled_adapter_trains_as_two_rates_do(ratio):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1])
    model = mlp([6, 8, 3], parametrization="standard", seed=1).double()
    A = LoRA(2).sample(model, 3)
    ours = gradient_descent(with_ratio(model, A, ratio), x, y, learning_rate=0.3, steps=4)
    theirs = attach(model, A)
    rates = {"0.down.weight": 0.3 / (ratio or 6 / 2), "2.down.weight": 0.3 / (ratio or 8 / 2)}
    trained = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD([{"params": [p], "lr": rates.get(name, 0.3)} for name, p in trained.items()])
    for _ in range(4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
    kernel = ntk(theirs, x, output="trace", weights={name: rates.get(name, 0.3) / 0.3 for name in trained})
    torch.testing.assert_close(ntk(ours, x, output="trace"), kernel, rtol=1e-9, atol=1e-9)
