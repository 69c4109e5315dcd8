"""Alignment of gradients under LoRA, relative to full fine-tuning."""

from __future__ import annotations

import pytest
import torch

from experiments.alignment import full_alignment, relative_alignment
from lorantk import LoRA, gradient_alignment, mlp


def test_ratios_are_of_the_means_and_errors_of_the_cosines() -> None:
    model = mlp([6, 16, 3], seed=1).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    clean, poisoned = (x[:3], torch.tensor([0, 1, 2])), (x[3:], torch.tensor([1, 0]))
    full = full_alignment(model, clean, poisoned)
    assert full["cosine"].shape == (3, 2)
    assert (full["cosine"] <= 1).all()
    found = relative_alignment(model, clean, poisoned, full, 2, 0.5, 7)
    inner = gradient_alignment(LoRA(2, "0.5/n").attach(model, 7), clean, poisoned)
    cosine = gradient_alignment(LoRA(2, "1/n").attach(model, 7), clean, poisoned, cosine=True)
    assert found["inner"] == pytest.approx((inner.mean() / full["inner"].mean()).item())
    assert found["error"] == pytest.approx((cosine - full["cosine"]).square().mean().sqrt().item())
    doubled = relative_alignment(model, clean, poisoned, full, 2, 1.0, 7)
    assert doubled["inner"] == pytest.approx(2 * found["inner"])  # at B = 0 the kernel is linear in the variance
    assert doubled["cosine"] == found["cosine"]
