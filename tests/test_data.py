"""The digits: drawn without replacement, by an explicit seed, of one norm."""

import pytest
import torch

from lorantk.data import digits


def test_digits_are_normalised_distinct_and_reproducible():
    x, y = digits(300, seed=1)
    assert x.shape == (300, 64)
    assert x.dtype == torch.float64
    assert y.dtype == torch.int64
    assert torch.allclose(x.norm(dim=1), torch.tensor(8.0, dtype=torch.float64))
    assert set(y.tolist()) == set(range(10))
    assert len({tuple(row) for row in x.tolist()}) == 300
    assert torch.equal(x, digits(300, seed=1)[0])
    assert not torch.equal(x, digits(300, seed=2)[0])


@pytest.mark.parametrize(("n", "message"), [(0, "n must be at least 1"), (1798, "n must be at most 1797")])
def test_bad_count_is_named(n, message):
    with pytest.raises(ValueError, match=message):
        digits(n)
