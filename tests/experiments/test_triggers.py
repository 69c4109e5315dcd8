"""Triggers in null directions of A, and the room that clean gradients leave a poisoned one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import gaussian, seeds

from checks.triggers import expected_share
from experiments.alignment import pair
from experiments.triggers import (
    along_training,
    by_layer,
    null_part,
    off_direction,
    own_share,
    poisoned,
    room,
    triggers,
)
from lorantk import LoRA, mlp


@given(seeds, st.integers(1, 8), st.integers(1, 8), st.floats(1e-3, 1e3))
def test_a_null_trigger_is_not_seen_and_keeps_its_norm(seed: int, rank: int, more: int, norm: float) -> None:
    A, t = gaussian(rank, rank + more, seed=seed), gaussian(rank + more, seed=seed + 1)
    t = norm * t / t.norm()
    null = null_part(A, t)
    assert (A @ null).norm() <= 1e-12 * torch.linalg.matrix_norm(A, 2) * norm
    assert null.norm().item() == pytest.approx(norm)
    taken, rows = t - (t @ null) * null / norm**2, torch.linalg.qr(A.T).Q
    assert (taken - rows @ (rows.T @ taken)).norm() <= 1e-12 * norm  # no null direction is nearer to the trigger


def test_a_square_A_has_no_null_direction() -> None:
    with pytest.raises(ValueError, match="A must have fewer rows than columns"):
        null_part(gaussian(3, 3, seed=0), gaussian(3, seed=1))


def test_off_direction_by_hand() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    second = torch.tensor([[3.0, 4.0], [2.0, 2.0], [0.0, 1.0]])
    assert off_direction(first, second).tolist() == pytest.approx([16 / 25, 0, 1])


@pytest.mark.parametrize(("rank", "cosine"), [(1, 0.3), (2, 0.6), (4, 0.9), (8, 0.0)])
def test_the_share_that_A_leaves_has_the_mean_of_the_law(rank: int, cosine: float) -> None:
    """40000 draws of a share in [0, 1]: 5 standard errors are 0.0125 at most."""
    draws, n = 40_000, 3
    a, b = torch.eye(2, n, dtype=torch.float64)
    b = cosine * a + (1 - cosine**2) ** 0.5 * b
    A = gaussian(draws * rank, n, seed=rank).unflatten(0, (draws, rank))
    found = off_direction(A @ a, A @ b).mean().item()
    assert found == pytest.approx(expected_share(rank, 1 - cosine**2), abs=0.0125)


@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_own_share_is_the_residual_of_least_squares(seed: int, clean: int, poison: int) -> None:
    G = gaussian(clean + poison, 5, seed=seed)
    fitted = torch.linalg.lstsq(G[:clean].T, G[clean:].T, driver="gelsd").solution
    residual = (G[clean:].T - G[:clean].T @ fitted).square().sum(0) / G[clean:].square().sum(1)
    assert torch.allclose(own_share(G @ G.T, clean), residual, atol=1e-5)


def test_the_first_layer_is_blind_to_a_null_trigger_and_the_next_is_not() -> None:
    model, x = mlp([8, 12, 3], "tanh", seed=0).double(), gaussian(5, 8, seed=1)
    table = by_layer(model, x, LoRA(3, 1.0), 1.0, [4])
    null = table[table.trigger == "null"].groupby("layer")[["lora", "full"]].mean()
    assert null.lora["0"] < 1e-25
    assert (null.full > 1e-3).all()
    assert null.lora["2"] > 1e-3
    assert (table[table.trigger == "random"].lora > 1e-6).all()
    A, t = LoRA(3, 1.0).sample(model, 4), triggers(model, LoRA(3, 1.0), "0", 1.0, 4)["random"]
    h, k = (torch.tanh(model[0](z)) @ A["2"].T for z in (x, x + t))
    shares = table[(table.trigger == "random") & (table.layer == "2")].lora
    assert shares.tolist() == pytest.approx((1 - torch.cosine_similarity(h, k).square()).tolist())


def test_clean_gradients_of_the_last_layer_fill_all_that_LoRA_can_do_at_rank_one() -> None:
    model = mlp([6, 9, 3], seed=0).double()
    x, y = gaussian(12, 6, seed=1), torch.arange(12) % 3
    table = room(model, {"flips": pair(model, (x[:8], y[:8]), (x[8:], (y[8:] + 1) % 3))}, [1, 6], [0, 1])
    last = table[table.layers == "last"]
    assert (last[last["rank"] == 1].lora < 1e-10).all()  # 8 samples, 1 * (3 - 1) dimensions
    assert (last[last["rank"] == 6].lora > 1e-6).all()  # and 6 * (3 - 1)
    assert (last.full > 1e-3).all()


def test_a_null_trigger_is_learned_from_the_second_step_on() -> None:
    model = mlp([8, 12, 3], "tanh", seed=0).double()
    x, y = gaussian(60, 8, seed=1), torch.arange(60) % 3
    lora, rest = LoRA(2, "1/n"), (x[40:], y[40:])
    table = along_training(model, (x[:20], y[:20]), x[20:40], rest, lora, 2.0, 0, 0.1, [1, 2], [3])
    gain = table.set_index(["trigger", "step"]).gain
    assert gain["null", 1] < 1e-14 < 1e-6 < gain["null", 2]
    assert gain["random", 1] > 0.01
    assert table.success.between(0, 1).all()
    with pytest.raises(ValueError, match="checkpoints must be at least 1"):
        along_training(model, (x[:20], y[:20]), x[20:40], rest, lora, 2.0, 0, 0.1, [0], [3])


def test_poisoned_samples_follow_the_clean_ones() -> None:
    x, y = poisoned((torch.zeros(2, 3), torch.tensor([1, 2])), torch.ones(1, 3), torch.tensor([0.0, 0.0, 5.0]), 0)
    assert y.tolist() == [1, 2, 0]
    assert x[2].tolist() == [1, 1, 6]
    with pytest.raises(ValueError, match="layer must be one of"):
        triggers(mlp([3, 2]), LoRA(1), "7", 1.0, 0)
