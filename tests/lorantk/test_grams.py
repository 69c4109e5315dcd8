"""Tiles of a symmetric product."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lorantk.grams import LEAF, _tiles


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
