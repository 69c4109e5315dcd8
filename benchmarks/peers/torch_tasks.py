"""What other PyTorch libraries for curvature are timed at, on the network and data of benchmarks/tasks.py."""

import itertools

import numpy as np
import torch
from curvlinops import EFLinearOperator
from nngeometry import GramMatrix
from nngeometry.layercollection import LayerCollection
from scipy.sparse.linalg import eigsh
from torch import nn

VERSIONS = ("curvlinops-for-pytorch", "nngeometry", "torch")


def problem(widths, n):
    """Network, inputs and labels of the Fisher benchmark."""
    generator, modules = np.random.default_rng(2), []
    for fan_in, fan_out in itertools.pairwise(widths):
        layer = nn.Linear(fan_in, fan_out, bias=False)
        weight = torch.from_numpy(generator.standard_normal((fan_out, fan_in)).astype("float32"))
        layer.weight.data = weight * (2 / fan_in) ** 0.5
        modules += [layer, nn.ReLU()]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((n, widths[0])).astype("float32"))
    return nn.Sequential(*modules[:-1]), x, torch.from_numpy(np.random.default_rng(1).integers(widths[-1], size=n))


def lanczos(widths, n, top):
    """Largest eigenvalues by Lanczos on curvlinops' empirical Fisher, to the tolerance of float32."""
    model, x, y = problem(widths, n)
    start = np.random.default_rng(5).standard_normal(sum(p.numel() for p in model.parameters())).astype("float32")

    def run():
        parameters = list(model.parameters())
        fisher = EFLinearOperator(model, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False)
        return eigsh(fisher.to_scipy(), k=top, v0=start, tol=1e-5, return_eigenvectors=False)[::-1].copy()

    return run


def gram_matrix(widths, n, top):
    """Largest eigenvalues by nngeometry's Gram matrix of loss gradients; all the nonzero ones are computed."""
    model, x, y = problem(widths, n)
    layers = LayerCollection.from_model(model)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=n)

    def loss(x, y):
        return nn.functional.cross_entropy(model(x), y, reduction="none")[:, None]

    def run():
        gram = GramMatrix(model, loader, function=loss, layer_collection=layers).to_torch()
        return torch.linalg.eigvalsh(gram.reshape(n, n) / n).flip(0)[:top].detach()

    return run
