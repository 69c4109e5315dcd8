"""The measured order against a route without kernels, its law, and by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import gaussian, seeds

from checks.data_order import sentences as recorded_sentences
from experiments.order import by_layer, gradient_ratio, kernel_ratios, plane
from lorantk import LoRA, mlp, order_interval


def test_ratios_by_hand():
    full, lora = torch.diag(torch.tensor([1.0, 4.0, 0.0]).double()), torch.diag(torch.tensor([2.0, 2.0, 0.0]).double())
    assert kernel_ratios(lora, full).tolist() == pytest.approx([0.5, 2.0])
    with pytest.raises(ValueError, match="lora must vanish where full does"):
        kernel_ratios(torch.eye(3).double(), full)


@settings(max_examples=20)
@given(seeds, st.integers(1, 6), st.integers(1, 5), st.sampled_from(("0", "2", "4")))
def test_kernels_and_gradients_give_one_ratio_below_that_of_the_span_and_of_A(seed, n, rank, layer):
    model = mlp([6, 7, 6, 3], "tanh", parametrization="standard", seed=seed).double()
    x, lora = gaussian(n, 6, seed=seed), LoRA(rank, "1/n", layers=[layer])
    row = by_layer(model, x, {layer: lora}, [seed]).iloc[0]
    by_gradients = gradient_ratio(model, x, layer, lora.sample(model, seed)[layer]) ** -0.5
    assert row.measured == pytest.approx(by_gradients, rel=1e-4)  # an eigenvalue at 1e-10 is known to 1e-5
    assert row.measured >= row.by_span * (1 - 1e-4) >= row.by_matrix * (1 - 2e-4)
    assert row.dimension <= min(n, 6)


def test_the_order_ends_where_rank_and_dimension_reach_the_fan_in():
    table = plane(64, [2, 16, 40], [2, 16, 40], 0.99 / 64, range(3))
    # (sqrt(16) + sqrt(16))^2 = 64: on the line; beside it every draw is on the side of the law
    inside, beyond = table[table.high < 0.75], table[table.high > 1.5]
    assert len(inside)
    assert len(beyond)
    assert (inside.share == 1).all()
    assert (beyond.share == 0).all()


@given(seeds, st.integers(1, 12), st.integers(1, 12))
def test_one_layer_stays_inside_the_interval_of_the_law(seed, rank, d):
    model, x = mlp([12, 1], parametrization="standard").double(), gaussian(d, 12, seed=seed)
    A = LoRA(rank, 1.0, layers=["0"]).sample(model, seed)["0"]
    singular = torch.linalg.svdvals(A @ torch.linalg.qr(x.T).Q)
    low, high = (edge**0.5 for edge in order_interval(rank, d, 1.0))
    assert singular[0] <= high + 6  # exceeded by 6 with probability exp(-18) at most
    assert rank <= d or singular[-1] >= low - 6
    assert gradient_ratio(model, x, "0", A) == pytest.approx(singular[0].item() ** 2, rel=1e-6)


def test_what_the_pages_say_of_sentences_is_so() -> None:
    """Chapter 15: the order holds at s = 2 in every layer; on 32 no point lies below the rule of the data."""
    table = recorded_sentences()
    assert table.groupby("encoder").layer.nunique().to_dict() == {"MiniLM": 37, "MPNet": 73}
    assert (table.measured >= 2).all()
    most = table[table.sentences == 32]
    assert (most.measured > most.by_dimension).all()
    inside = most.groupby(["encoder", "layer"]).by_dimension.first() >= 2
    assert inside.mean() == pytest.approx(0.25, abs=0.02)  # "in a quarter of them"
    below = table[table.measured < table.by_dimension]
    assert set(below.encoder) == {"MiniLM"}
    assert (below.measured > 0.985 * below.by_dimension).all()
