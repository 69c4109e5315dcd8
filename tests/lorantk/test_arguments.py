"""Every public function refuses bad input with an error that names the argument and the value."""

import math

import pytest
import torch
from strategies import gaussian
from torch import nn

from lorantk import (
    LayerFactors,
    LoRA,
    TangentKernel,
    attach,
    delta_matrix,
    fisher_spectrum,
    fisher_trace,
    flip_labels,
    gradient_alignment,
    infinite_width_ntk,
    insert_trigger,
    is_negative_semidefinite,
    lora_ntk_sweep,
    marchenko_pastur_edges,
    mlp,
    nsd_variance_bound,
    ntk,
    read_peft,
)

NET, X, Y = mlp([3, 4, 2]).double(), gaussian(4, 3, seed=0), torch.tensor([0, 1, 1, 0])
BROKEN = mlp([3, 4, 2]).double()
with torch.no_grad():
    BROKEN[0].weight[0, 0] = math.nan


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ntk(None, X), TypeError, r"model must be a torch\.nn\.Module; got NoneType"),
        (lambda: ntk(NET, X[:, :2]), ValueError, "model must accept the batch .* mat1 and mat2"),
        (lambda: ntk(NET, X.long()), ValueError, "model must accept the batch"),
        (lambda: ntk(NET, X[0]), ValueError, "model must"),
        (lambda: ntk(BROKEN, X), ValueError, r"finite parameters; NaN or Inf in '0\.weight'"),
        (lambda: ntk(NET, X, layers="(["), ValueError, r"layers must be a regular expression; '\(\[' is none"),
        (lambda: ntk(NET, X, max_memory="1.2.3GB"), ValueError, "max_memory must be bytes above 0 .* '1.2.3GB'"),
        (lambda: ntk(NET, X, max_memory=math.nan), TypeError, "max_memory must be bytes or text"),
        (lambda: ntk(NET, X, select="logits"), TypeError, "select must be a function of the model's output; got str"),
        (lambda: ntk(NET, X, out="no/such/folder/k.npy"), ValueError, "out must be a path ending in .npy"),
        (lambda: ntk(NET, X, output="diagonal", out="k.npy"), ValueError, "output 'diagonal' is kept in memory"),
        (lambda: TangentKernel(NET, X, method="magic"), ValueError, "method must be one of"),
        (lambda: TangentKernel(NET, X).to_dask(0), ValueError, "block must be at least 1"),
        (lambda: LayerFactors.from_model(NET, X * math.inf), ValueError, "x must be finite"),
        (lambda: lora_ntk_sweep(NET, X, loras=[], seeds=[0]), ValueError, "loras and seeds must not be empty"),
        (lambda: lora_ntk_sweep(NET, X, loras=[LoRA(2)], seeds=[2**63]), ValueError, r"seed must be below 2\*\*63"),
        (lambda: fisher_spectrum(NET, X, Y[:3]), ValueError, "y must hold 4 class indices"),
        (lambda: fisher_trace(NET, X, Y + 1), ValueError, "class indices from 0 to 1"),
        (lambda: fisher_trace(NET, X, Y.double()), TypeError, "y must be int64"),
        (lambda: gradient_alignment(NET, (X, Y), (X, Y[:2])), ValueError, "y must hold 8 class indices|labels"),
        (lambda: flip_labels(Y, 1.5, 2), ValueError, "rate must be a number from 0 to 1; got 1.5"),
        (lambda: flip_labels(Y, 0.5, 1), ValueError, "classes must be at least 2"),
        (lambda: flip_labels(Y, 0.5, 2, seed=2**64), ValueError, r"seed must be below 2\*\*63"),
        (lambda: flip_labels(Y[:0], 0.5, 2), ValueError, "y must hold at least one"),
        (lambda: insert_trigger(X, Y, 0.5, pixels=[0], value=math.nan, target=1), ValueError, "value must be finite"),
        (lambda: insert_trigger(X, Y, 0.5, pixels=[3], value=1.0, target=1), ValueError, "pixels must name columns"),
        (lambda: LoRA("8"), TypeError, "rank must be an int; got '8'"),
        (lambda: LoRA(True), TypeError, "rank must be an int"),
        (lambda: LoRA(2, "gauss"), ValueError, "variance must be a number, 'k/n' .* 'orthonormal'"),
        (lambda: LoRA(2, "nan/n"), ValueError, "variance must be a number"),
        (lambda: LoRA(2, math.inf), ValueError, "variance must be finite"),
        (lambda: LoRA(2).attach(NET, seed=1.0), TypeError, "seed must be an int"),
        (lambda: LoRA(2, layers="9").attach(NET), ValueError, "layers must name adaptable layers"),
        (lambda: attach(NET, {"0": "A"}), TypeError, r"adapters\['0'\]\.A must be a torch\.Tensor; got str"),
        (lambda: read_peft(NET), TypeError, "model must be"),
        (lambda: mlp([3]), ValueError, "widths"),
        (lambda: mlp([3, 0]), ValueError, "widths"),
        (lambda: mlp([3, 2], seed=2**63), ValueError, r"seed must be below 2\*\*63"),
        (lambda: mlp([3, 2], weight_variance=math.nan), ValueError, "weight_variance must be finite"),
        (lambda: infinite_width_ntk(X, depth=0), ValueError, "depth must be at least 1"),
        (lambda: infinite_width_ntk(X, depth=2, activation="gelu"), ValueError, "activation must be one of"),
        (lambda: infinite_width_ntk(X, depth=2, lora=LoRA(2, 0.1, layers="20")), ValueError, r"got \['20'\]"),
        (
            lambda: infinite_width_ntk(X, depth=2, lora=LoRA(2, "peft")),
            ValueError,
            "must be a number at infinite width",
        ),
        (lambda: delta_matrix(X), ValueError, "A must have rank at most its fan-in 3"),
        (lambda: marchenko_pastur_edges(5, 3, 1.0), ValueError, "rank must be at most width = 3; got 5"),
        (lambda: nsd_variance_bound(0, 3), ValueError, "rank must be at least 1"),
        (lambda: is_negative_semidefinite(X, 0.0), ValueError, "M must be square"),
        (lambda: is_negative_semidefinite(torch.eye(2), -1.0), ValueError, "tol must be finite and at least 0"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


class Random(nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout(x)


def test_a_random_model_is_refused_by_every_function_that_needs_a_kernel():
    model = nn.Sequential(nn.Linear(3, 20), Random(), nn.Linear(20, 2)).double()
    for call in (
        lambda: ntk(model, X),
        lambda: TangentKernel(model, X),
        lambda: LayerFactors.from_model(model, X),
        lambda: lora_ntk_sweep(model, X, loras=[LoRA(2)], seeds=[0]),
        lambda: fisher_spectrum(model, X, Y),
        lambda: fisher_trace(model, X, Y),
        lambda: gradient_alignment(model, (X, Y), (X, Y)),
    ):
        with pytest.raises(ValueError, match="model must be deterministic, input by input"):
            call()
