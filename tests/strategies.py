"""Random networks, adapters and inputs for the tests of identities, with the awkward inputs among them."""

import torch
from hypothesis import strategies as st

from lorantk import LoRA, mlp
from lorantk.models import ACTIVATIONS

seeds = st.integers(0, 10_000)


def gaussian(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def networks(draw, fewest_outputs=1):
    """A float64 `mlp` of random depth and widths whose biases, if any, are random too."""
    widths = [*draw(st.lists(st.integers(2, 9), min_size=2, max_size=4)), draw(st.integers(fewest_outputs, 3))]
    seed = draw(seeds)
    parametrization = draw(st.sampled_from(("ntk", "standard")))
    bias = draw(st.booleans())
    model = mlp(
        widths, draw(st.sampled_from(sorted(ACTIVATIONS))), parametrization, draw(st.floats(0.5, 3)), bias, seed
    ).double()
    for index, parameter in enumerate(model.parameters()):
        if parameter.ndim == 1:
            parameter.data = gaussian(len(parameter), seed=seed + index)
    return model


@st.composite
def batches(draw, dimension, count=None):
    """Inputs (n, dimension) with, at random, a duplicate, a zero, an antiparallel or a collinear row."""
    n = draw(st.integers(1, 5)) if count is None else count
    x = gaussian(n, dimension, seed=draw(seeds))
    kind = draw(st.sampled_from(("plain", "duplicate", "zero", "antiparallel", "collinear")))
    if kind == "zero":
        x[-1] = 0
    elif n > 1 and kind != "plain":
        x[-1] = {"duplicate": 1.0, "antiparallel": -1.0, "collinear": 2.5}[kind] * x[0]
    return x


@st.composite
def loras(draw, model, layers=None):
    """Adapters that fit every linear layer of an `mlp`."""
    smallest = min(layer.in_features for layer in model if hasattr(layer, "in_features"))
    variance = draw(st.one_of(st.floats(0.01, 2), st.sampled_from(("peft", "0.5/n"))))
    return LoRA(draw(st.integers(1, smallest)), variance, draw(st.floats(0.25, 3)), layers)


def relative(a, b):
    """Largest difference relative to the larger tensor; 0 for two zero tensors."""
    scale = max(a.abs().max().item(), b.abs().max().item())
    return 0.0 if scale == 0 else (a - b).abs().max().item() / scale
