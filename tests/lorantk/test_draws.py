"""Which draw A came from: every draw is named, trained or not, and what is no draw is not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorantk.draws import draw_of

DRAWS = ("uniform", "gaussian", "orthonormal")


def drawn(name, rank, n, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    if name == "uniform":
        A = (2 * torch.rand(rank, n, generator=generator) - 1) / math.sqrt(n)
    elif name == "gaussian":
        A = torch.randn(rank, n, generator=generator) / rank
    else:
        A = torch.linalg.qr(torch.randn(n, rank, generator=generator))[0].T
    return A.to(dtype)


@pytest.mark.parametrize("name", DRAWS)
@given(
    seed=st.integers(0, 2**20), rank=st.sampled_from([2, 4, 8, 64]), n=st.sampled_from([256, 320, 768]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_an_untrained_a_has_its_draw_and_has_not_moved(name, seed, rank, n, dtype):
    found = draw_of(drawn(name, rank, n, seed, dtype))
    assert found.name == name
    assert found.directions_moved == 0
    assert found.moved <= (found.detectable if name != "orthonormal" else 0.01)
    if name == "uniform":
        assert found.outside == 0


@pytest.mark.parametrize("name", DRAWS)
@given(seed=st.integers(0, 2**20), size=st.floats(0.3, 3.0))
def test_movement_in_two_directions_is_measured_and_the_draw_still_named(name, seed, size):
    A = drawn(name, 8, 512, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    step = torch.randn(8, 2, generator=generator) @ torch.randn(2, 512, generator=generator)
    found = draw_of(A + step * (size * A.norm() / step.norm()))
    assert found.name == name
    assert found.directions_moved <= 4  # Weyl: two directions push two singular values up and two down at most
    if name != "orthonormal":
        assert found.moved == pytest.approx(size, abs=0.15 + found.detectable)


def test_where_two_draws_share_their_variance_the_entries_tell_them_apart():
    rank, n = 48, 768  # 1/r^2 = 1/(3n)
    for name in ("uniform", "gaussian"):
        found = draw_of(drawn(name, rank, n, 0))
        assert (found.name, found.doubt) == (name, 1.0)
        assert found.kurtosis == pytest.approx(
            {"uniform": 1.8, "gaussian": 3.0}[name], abs=4 * math.sqrt(24 / (rank * n))
        )


def test_no_draw_is_claimed_for_other_matrices():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(256, 256, generator=generator) / 16
    _, values, right = torch.linalg.svd(W)
    assert draw_of(values[:8, None].sqrt() * right[:8]).name == "moved"  # PiSSA
    assert draw_of(0.02 * torch.randn(8, 256, generator=generator)).name == "moved"
    assert draw_of(3 * drawn("uniform", 8, 256, 0)).name == "moved"
    assert draw_of(torch.zeros(8, 256)).name == "zero"


def test_the_doubt_bounds_how_often_another_draw_looks_so():
    """Gaussian draws whose singular values reach into a uniform draw's interval: never more often than the bound."""
    found = draw_of(drawn("uniform", 4, 64, 0))  # sigma .072 against .25
    assert 0 < found.doubt < 1e-3
    values = torch.linalg.svdvals(drawn("uniform", 4, 64, 0))
    hits = sum(torch.linalg.svdvals(drawn("gaussian", 4, 64, seed))[-1] <= values[-1] for seed in range(2000))
    assert hits <= 2000 * found.doubt + 4 * math.sqrt(2000 * found.doubt) + 1


def test_an_embedding_is_drawn_in_b():
    generator = torch.Generator().manual_seed(0)
    assert draw_of(torch.randn(8, 100, generator=generator), embedding=True).name == "normal"
