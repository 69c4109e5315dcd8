"""Alignment of gradients under LoRA, relative to full fine-tuning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from checks.autograd import loss_gradients
from experiments.alignment import gradient_gram, pair, relative_alignment
from lorantk import LoRA, gradient_alignment, mlp
from lorantk.fisher import loss_gram
from lorantk.models import SelfAttentionBlock


def samples(seed: int = 0) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x[:3], torch.tensor([0, 1, 2])), (x[3:], torch.tensor([1, 0]))


def test_ratios_are_of_the_means_and_errors_of_the_cosines() -> None:
    model = mlp([6, 16, 3], seed=1).double()
    clean, poisoned = samples()
    full = pair(model, clean, poisoned)
    assert full.cosine.shape == (3, 2)
    assert (full.cosine <= 1).all()
    assert torch.equal(full.inner, gradient_alignment(model, clean, poisoned))
    found = relative_alignment(model, full, 2, 0.5, 7)
    inner = gradient_alignment(LoRA(2, "0.5/n").attach(model, 7), clean, poisoned)
    assert found["inner"] == pytest.approx((inner.mean() / full.inner.mean()).item())
    for suffix, rule in (("", "1/n"), ("_equal", 1.0)):
        cosine = gradient_alignment(LoRA(2, rule).attach(model, 7), clean, poisoned, cosine=True)
        assert found[f"error{suffix}"] == pytest.approx((cosine - full.cosine).square().mean().sqrt().item())
        assert found[f"cosine{suffix}"] == pytest.approx((cosine.mean() / full.cosine.mean()).item())
    by_fan_in = LoRA(2, "1/n").attach(model, 7)
    for name, network in {"positive": by_fan_in, "positive_full": model}.items():
        mean = loss_gradients(network, *clean).mean(0)
        assert found[name] == (loss_gradients(network, *poisoned) @ mean > 0).double().mean().item()
    doubled = relative_alignment(model, full, 2, 1.0, 7)
    assert doubled["inner"] == pytest.approx(2 * found["inner"])  # at B = 0 the kernel is linear in the variance
    assert doubled["cosine"] == found["cosine"]


@pytest.mark.parametrize("parametrization", ["ntk", "standard"])
def test_inner_products_behind_A_are_those_of_the_adapted_model(parametrization: str) -> None:
    model, lora = mlp([6, 8, 7, 3], "tanh", parametrization, seed=2).double(), LoRA(3, 0.7)
    clean, poisoned = samples(4)
    x, y = torch.cat([clean[0], poisoned[0]]), torch.cat([clean[1], poisoned[1]])
    found = gradient_gram(pair(model, clean, poisoned), lora.sample(model, 5))
    assert torch.allclose(found, loss_gram(lora.attach(model, 5), x, y), rtol=1e-12)


def test_layers_at_several_positions_are_refused() -> None:
    block: nn.Module = SelfAttentionBlock(4, 5, 2, seed=0).double()
    tokens = torch.ones(2, 3, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="at one position; got several"):
        pair(block, (tokens[:1], torch.tensor([0])), (tokens[1:], torch.tensor([1])))
