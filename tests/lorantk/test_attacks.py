"""Poisoned data and the alignment of gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, gaussian, loras, networks, relative, seeds

from lorantk import LoRA, flip_labels, gradient_alignment, insert_trigger, mlp

Y = torch.arange(10).repeat(2000)


def test_labels_flip_at_their_rate_and_to_every_other_class():
    flipped = flip_labels(Y, 0.3, 10, seed=1)
    changed = flipped != Y
    assert abs(changed.double().mean().item() - 0.3) < 4 * (0.21 / len(Y)) ** 0.5  # four standard errors
    counts = torch.bincount((flipped - Y)[changed] % 10, minlength=10)[1:]
    assert (counts / counts.sum() - 1 / 9).abs().max() < 4 * (8 / 81 / counts.sum()) ** 0.5
    assert torch.equal(flipped, flip_labels(Y, 0.3, 10, seed=1))
    assert torch.equal(flip_labels(Y, 0.0, 10), Y)
    assert bool((flip_labels(Y, 1.0, 10) != Y).all())


def test_a_trigger_marks_the_input_and_sets_the_label():
    x, y = gaussian(500, 4, seed=0), torch.zeros(500, dtype=torch.int64)
    marked, labels = insert_trigger(x, y, 0.4, pixels=[1, 3], value=9.0, target=2, seed=3)
    chosen = labels == 2
    assert abs(chosen.double().mean().item() - 0.4) < 4 * (0.24 / 500) ** 0.5
    assert bool((marked[chosen][:, [1, 3]] == 9).all())
    assert torch.equal(marked[chosen][:, [0, 2]], x[chosen][:, [0, 2]])
    assert torch.equal(marked[~chosen], x[~chosen])
    assert not bool((x == 9).any())


@given(st.data(), networks(fewest_outputs=2), seeds, st.booleans())
def test_alignment_is_the_inner_product_of_gradients(data, model, seed, cosine):
    x1, x2 = (data.draw(batches(model[0].in_features)) for _ in range(2))
    y1, y2 = (torch.zeros(len(x), dtype=torch.int64) for x in (x1, x2))
    lora = data.draw(st.one_of(st.none(), loras(model)))
    tuned = model if lora is None else lora.attach(model, seed)
    parameters = [p for p in tuned.parameters() if p.requires_grad]

    def gradients(x):
        rows = [
            torch.autograd.grad(torch.nn.functional.cross_entropy(tuned(row[None]), y1[:1]), parameters) for row in x
        ]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])

    G1, G2 = gradients(x1), gradients(x2)
    expected = (G1 @ G2.T).abs()
    size = G1.norm(dim=1)[:, None] * G2.norm(dim=1)
    if cosine:
        expected = expected / size.where(size > 0, 1.0)
    alignment = gradient_alignment(tuned, (x1, y1), (x2, y2), cosine=cosine)
    assert alignment.shape == (len(x1), len(x2))
    assert relative(alignment, expected) < 1e-8
    assert not cosine or alignment.max() < 1 + 1e-9


X, SHORT = gaussian(3, 4, seed=0), torch.tensor([0, 1, 0])
NET = mlp([4, 2]).double()


def trigger(**changes):
    return insert_trigger(**({"x": X, "y": SHORT, "rate": 0.5, "pixels": [0], "value": 1.0, "target": 0} | changes))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: flip_labels(SHORT, 1.5, 2), ValueError, "rate must be a number from 0 to 1"),
        (lambda: flip_labels(SHORT, 0.5, 1), ValueError, "classes must be at least 2"),
        (lambda: flip_labels(SHORT + 1, 0.5, 2), ValueError, "y must hold class indices"),
        (lambda: flip_labels(SHORT.double(), 0.5, 2), TypeError, "y must be int64"),
        (
            lambda: trigger(pixels=[4]),
            ValueError,
            "pixels must name columns",
        ),
        (lambda: trigger(pixels=[]), ValueError, "pixels must name columns"),
        (
            lambda: trigger(y=SHORT[:2]),
            ValueError,
            "y must hold one label",
        ),
        (
            lambda: trigger(target=-1),
            ValueError,
            "target must be at least 0",
        ),
        (
            lambda: gradient_alignment(NET, (X, SHORT), (X[:, :2], SHORT)),
            ValueError,
            "poisoned inputs must match clean inputs",
        ),
        (lambda: gradient_alignment(NET, (X, SHORT), (X.float(), SHORT)), TypeError, "poisoned inputs has dtype"),
        (lambda: gradient_alignment(NET, (X, SHORT), (X, SHORT + 2)), ValueError, "class indices from 0 to 1"),
        (lambda: gradient_alignment(LoRA(5).attach(NET), (X, SHORT), (X, SHORT)), ValueError, "rank must be at most"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
