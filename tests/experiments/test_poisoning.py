"""An attack by count changes exactly that many labels, and a larger dose holds the smaller one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.poisoning import flipped, victims

seeds = st.integers(0, 2**32)
labels = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(torch.tensor)


@given(labels, seeds, st.data())
def test_flips_change_exactly_as_many_labels_as_asked(y: torch.Tensor, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(y)))
    after = flipped(y, 5, count, seed)
    assert int((after != y).sum()) == count
    assert after.min() >= 0
    assert after.max() <= 4


@given(labels, seeds, st.data())
def test_victims_are_counted_nested_and_never_of_the_target(y: torch.Tensor, seed: int, data: st.DataObject) -> None:
    target = data.draw(st.integers(0, 4))
    most = int((y != target).sum())
    more = data.draw(st.integers(0, most))
    fewer = data.draw(st.integers(0, more))
    large, small = victims(y, more, seed, target), victims(y, fewer, seed, target)
    assert int(large.sum()) == more
    assert int(small.sum()) == fewer
    assert bool((large | ~small).all())
    assert not bool((large & (y == target)).any())
    with pytest.raises(ValueError, match=f"count must be at most {most}, .*; got {most + 1}"):
        victims(y, most + 1, seed, target)


def test_flips_are_uniform_over_the_other_classes() -> None:
    y = torch.zeros(40_000, dtype=torch.int64)
    counts = torch.bincount(flipped(y, 5, len(y), seed=1), minlength=5)
    assert counts[0] == 0
    assert bool(((counts[1:] - 10_000).abs() < 4 * 7500**0.5).all())  # four standard deviations of a binomial


def test_a_count_is_an_integer() -> None:
    with pytest.raises(TypeError, match="count must be an int"):
        victims(torch.zeros(3, dtype=torch.int64), 1.5, seed=0)  # type: ignore[arg-type]
