"""Tiles of a symmetric product, and products that stand for two."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import gaussian, relative
from torch import nn

from lorantk import mlp, ntk
from lorantk.factors import LayerFactors
from lorantk.grams import LEAF, PIECE, _mirror, _tiles, gram

TOLERANCE = 1e-12  # sums of a few hundred products in float64


@given(st.integers(1, 150), st.integers(1, 12))
def test_tiles_cover_the_upper_triangle_once_and_keep_inputs_whole(inputs, per_row):
    n = inputs * per_row
    covered = torch.zeros(n, n, dtype=torch.int64)
    for start, stop, left, right in _tiles(0, n, per_row):
        assert all(bound % per_row == 0 for bound in (start, stop, left, right))
        assert (start, stop) == (left, right) or stop <= left
        assert stop - start <= max(LEAF, per_row) or left >= stop
        covered[start:stop, left:right] += 1
    assert bool((covered.triu() == torch.ones(n, n, dtype=torch.int64).triu()).all())
    below = covered - covered.triu()
    assert below.sum() <= n * max(LEAF, per_row) / 2


@pytest.mark.parametrize("per_row", [1, 7])
def test_what_is_above_the_diagonal_is_mirrored_piece_by_piece(per_row):
    n = 5 * PIECE // 2 // per_row * per_row
    total = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = total.clone()
    _mirror(total, per_row)
    assert torch.equal(total.triu(LEAF + per_row), before.triu(LEAF + per_row))
    gap = (total - total.T).abs()
    assert not gap.tril(-LEAF - per_row).any()  # tiles on the diagonal are symmetric by themselves


@pytest.mark.parametrize("output", ["full", "trace"])
@pytest.mark.parametrize("name", ["0", "2", "4"])  # the last one's cotangents are known
def test_a_weight_and_its_bias_take_one_product_and_give_the_sum_of_two(name, output):
    model = mlp([4, 6, 5, 3], bias=True, seed=1).double()
    one, other = (LayerFactors.from_model(model, gaussian(n, 4, seed=n)) for n in (7, 4))
    for second in (one, other):
        weight, bias = (gram(one, second, [(name, which)], output) for which in ("weight", "bias"))
        both = gram(one, second, [(name, "weight"), (name, "bias")], output)
        assert relative(both, weight + bias) < TOLERANCE


def test_the_last_layer_is_known_to_be_linear_before_its_product_is_left_out():
    torch.manual_seed(0)
    for last in (nn.LayerNorm(3), nn.Linear(3, 3), nn.Conv1d(3, 3, 1)):
        shape = (3, 1) if isinstance(last, nn.Conv1d) else (3,)
        model = nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, shape), last, nn.Flatten()).double().eval()
        x = gaussian(5, 4, seed=2)
        assert relative(ntk(model, x, method="layerwise"), ntk(model, x, method="jacobian")) < TOLERANCE, last
