"""Fisher information through the kernel against the dense matrix of per-sample gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, gaussian, loras, networks, relative, seeds

from lorantk import LoRA, fisher_spectrum, fisher_trace, mlp, ntk
from lorantk.fisher import loss_cotangents, loss_gradients, loss_gram, true_fisher_spectrum

LOSSES = {
    "cross_entropy": torch.nn.functional.cross_entropy,
    "squared_error": lambda f, y: 0.5 * (f - y).square().sum(),
}


def labels(loss, n, C, seed):
    if loss == "squared_error":
        return gaussian(n, C, seed=seed)
    return torch.randint(C, (n,), generator=torch.Generator().manual_seed(seed))


def per_sample_gradients(model, x, y, loss):
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = [torch.autograd.grad(LOSSES[loss](model(x[i : i + 1]), y[i : i + 1]), parameters) for i in range(len(x))]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


@given(st.data(), networks(fewest_outputs=2), st.sampled_from(sorted(LOSSES)), seeds)
def test_trace_and_spectrum_are_those_of_the_dense_matrix(data, model, loss, seed):
    x = data.draw(batches(model[0].in_features))
    y = labels(loss, len(x), model[-1].out_features, seed)
    lora = data.draw(st.one_of(st.none(), loras(model)))
    tuned = model if lora is None else lora.attach(model, seed)
    G = per_sample_gradients(tuned, x, y, loss)
    dense = G.T @ G / len(x)
    trace = fisher_trace(tuned, x, y, loss)
    assert trace.item() == pytest.approx(dense.trace().item(), rel=1e-10)
    spectrum = fisher_spectrum(tuned, x, y, loss)
    expected = torch.linalg.eigvalsh(dense).flip(0)[: len(spectrum)]
    assert len(spectrum) > 0 or dense.abs().max() == 0  # a dead ReLU network has no Fisher information
    assert len(spectrum) == 0 or relative(spectrum, expected) < 1e-10
    assert bool((spectrum.diff() <= 0).all())
    assert relative(loss_gradients(tuned, x, y, loss), G) < 1e-10
    assert relative(loss_gram(tuned, x, y, loss), G @ G.T) < 1e-10


@given(seeds)
def test_loss_cotangents_are_derivatives_of_the_loss(seed):
    outputs = gaussian(4, 3, seed=seed).requires_grad_()
    for loss, function in LOSSES.items():
        y = labels(loss, 4, 3, seed)
        total = function(outputs, y, reduction="sum") if loss == "cross_entropy" else function(outputs, y)
        (expected,) = torch.autograd.grad(total, outputs)
        assert relative(loss_cotangents(outputs.detach(), y, loss), expected) < 1e-13


@given(st.data(), networks(fewest_outputs=2), seeds)
def test_true_fisher_is_the_average_over_all_labels_weighted_by_the_model(data, model, seed):
    x = data.draw(batches(model[0].in_features))
    lora = data.draw(st.one_of(st.none(), loras(model)))
    C = model[-1].out_features
    tuned = model if lora is None else lora.attach(model, seed)
    probabilities = torch.softmax(tuned(x).detach(), dim=1)
    dense = sum(
        (G * probabilities[:, c : c + 1]).T @ G / len(x)
        for c in range(C)
        for G in [per_sample_gradients(tuned, x, torch.full((len(x),), c), "cross_entropy")]
    )
    spectrum = true_fisher_spectrum(tuned, x)
    assert spectrum.sum().item() == pytest.approx(dense.trace().item(), rel=1e-9, abs=1e-12)
    expected = torch.linalg.eigvalsh(dense).flip(0)[: len(spectrum)]
    assert len(spectrum) == 0 or relative(spectrum[: len(expected)], expected) < 1e-9


def test_true_fisher_of_squared_error_is_the_kernel_itself():
    model, x = mlp([3, 4, 2]).double(), gaussian(3, 3, seed=0)
    kernel = torch.linalg.eigvalsh(ntk(model, x).reshape(6, 6) / 3).flip(0)
    spectrum = true_fisher_spectrum(model, x, "squared_error")
    assert relative(spectrum, kernel[: len(spectrum)]) < 1e-12


NET, X = mlp([3, 4, 2]).double(), gaussian(2, 3, seed=0)


@pytest.mark.parametrize("function", [fisher_spectrum, fisher_trace, loss_gradients])
@pytest.mark.parametrize(
    ("y", "loss", "error", "message"),
    [
        (torch.tensor([0, 2]), "cross_entropy", ValueError, "class indices from 0 to 1"),
        (torch.tensor([0]), "cross_entropy", ValueError, "y must hold 2 class indices"),
        (torch.tensor([0, 1], dtype=torch.int32), "cross_entropy", TypeError, "y must be int64"),
        (torch.tensor([0, 1]), "hinge", ValueError, "loss must be one of"),
        (gaussian(2, 3, seed=0), "squared_error", ValueError, "y must have shape \\(2, 2\\)"),
        (gaussian(2, 2, seed=0).float(), "squared_error", TypeError, "y has dtype torch.float32"),
    ],
)
def test_bad_labels_are_named(function, y, loss, error, message):
    with pytest.raises(error, match=message):
        function(NET, X, y, loss)


def test_one_output_has_no_cross_entropy():
    with pytest.raises(ValueError, match="two outputs or more"):
        fisher_trace(LoRA(1).attach(mlp([3, 1]).double()), X, torch.tensor([0, 0]))


class Named(torch.nn.Module):
    """A model whose tensors carry names that this package uses too."""

    def __init__(self):
        super().__init__()
        self.inner = mlp([3, 4, 2])

    def forward(self, inputs, cotangents):
        return self.inner(inputs) * cotangents


def test_every_tensor_of_a_batch_reaches_the_model():
    model, y = Named().double(), torch.tensor([0, 1])
    x = {"inputs": X, "cotangents": gaussian(2, 2, seed=3)}
    G = loss_gradients(model, x, y)
    assert relative(loss_gram(model, x, y), G @ G.T) < 1e-10


def test_layers_add_up_to_the_whole_fisher_gram():
    y = torch.tensor([0, 1])
    for model in (NET, LoRA(2).attach(NET)):
        parts = sum(loss_gram(model, X, y, layers=[name]) for name in ("0", "2"))
        assert relative(parts, loss_gram(model, X, y)) < 1e-10
        assert relative(loss_gram(model, X, y, method="jacobian"), parts) < 1e-10
