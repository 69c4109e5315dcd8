"""Fully connected networks in the two parametrisations that tangent-kernel papers use.

NTK parametrisation (Jacot et al., 2018): y = sqrt(weight_variance / fan_in) W a + b with W ~ N(0, 1).
Standard parametrisation: y = W a + b with W ~ N(0, weight_variance / fan_in). Both compute the same random
function; they differ in the gradient, hence in the kernel. Biases start at zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .batches import check_choice, check_integer, check_real, check_seed


class NTKLinear(nn.Linear):
    """Linear map with the NTK prefactor: y = prefactor * W a + b, prefactor = sqrt(weight_variance / fan_in)."""

    def __init__(self, fan_in: int, fan_out: int, weight_variance: float, bias: bool) -> None:
        super().__init__(fan_in, fan_out, bias=bias)
        self.prefactor = math.sqrt(weight_variance / fan_in)

    def forward(self, a: Tensor) -> Tensor:
        return nn.functional.linear(self.prefactor * a, self.weight, self.bias)


class Erf(nn.Module):
    """The error function as an activation: its kernel is Williams' arc-sine kernel."""

    def forward(self, y: Tensor) -> Tensor:
        return torch.erf(y)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "erf": Erf,
    "tanh": nn.Tanh,
    "linear": nn.Identity,
}


def mlp(
    widths: Sequence[int],
    activation: str = "relu",
    parametrization: str = "ntk",
    weight_variance: float = 2.0,
    bias: bool = False,
    seed: int = 0,
) -> nn.Sequential:
    """Random fully connected network, linear layers named "0", "2", "4", ... with activations between them.

    Parameters
    ----------
    widths : sequence of int
        Input dimension, hidden widths, number of outputs: ``len(widths) - 1`` linear layers.
    activation : {"relu", "erf", "tanh", "linear"}
        Applied after every linear layer but the last.
    parametrization : {"ntk", "standard"}
        Where the factor sqrt(weight_variance / fan_in) sits: in the layer or in the initial weights.
    weight_variance : float
        Variance of the weights times fan-in (dimensionless, above 0); 2 keeps ReLU signals at scale 1.
    bias : bool
        Adds a bias to each layer, 0 at the start.
    seed : int
        Seed of an explicit generator; the draw does not touch the global random state.

    Returns
    -------
    nn.Sequential
        Parameters in ``torch.get_default_dtype()``; use ``.double()`` for statements about equality.

    Raises
    ------
    TypeError, ValueError
        On widths that are not positive integers, fewer than two of them, an unknown name, or a bad variance.

    Notes
    -----
    Statements ``eq-8``, ``ntk-limit``. Source: Jacot, Gabriel and Hongler (2018), section 2.
    """
    if len(widths) < 2:
        raise ValueError(f"widths must hold the input and the output dimension at least; got {list(widths)}")
    for width in widths:
        check_integer("widths", width, 1)
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("parametrization", parametrization, ("ntk", "standard"))
    check_real("weight_variance", weight_variance, minimum=0.0, exclusive=True)
    check_seed(seed)

    generator = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        if modules:
            modules.append(ACTIVATIONS[activation]())
        standard_normal = torch.randn(fan_out, fan_in, generator=generator, dtype=torch.float64)
        with torch.device("meta"):  # torch's own initialisation would draw from the global random state
            layer = (
                NTKLinear(fan_in, fan_out, weight_variance, bias)
                if parametrization == "ntk"
                else nn.Linear(fan_in, fan_out, bias=bias)
            )
        layer = layer.to_empty(device=torch.get_default_device())
        scale = 1.0 if parametrization == "ntk" else math.sqrt(weight_variance / fan_in)
        with torch.no_grad():
            layer.weight.copy_(standard_normal.mul_(scale))
            if bias:
                layer.bias.zero_()
        modules.append(layer)
    return nn.Sequential(*modules)


class SelfAttentionBlock(nn.Module):
    """One attention head with a residual feed-forward layer and a pooled classifier: (n, T, width) to (n, outputs).

    The projections are the linear layers "query", "key", "value", "up", "down" and "head", all in standard
    parametrisation without bias, W ~ N(0, 1/fan_in), each applied at every one of the T positions but "head".

    Parameters
    ----------
    width : int
        Dimension of a token.
    hidden : int
        Of the feed-forward layer.
    outputs : int
    seed : int
        Seed of an explicit generator.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    up: nn.Linear
    down: nn.Linear
    head: nn.Linear

    def __init__(self, width: int, hidden: int, outputs: int, seed: int = 0) -> None:
        super().__init__()
        shapes = {"query": (width, width), "key": (width, width), "value": (width, width),
                  "up": (width, hidden), "down": (hidden, width), "head": (width, outputs)}  # fmt: skip
        for index, (name, sizes) in enumerate(shapes.items()):
            self.add_module(name, mlp(sizes, parametrization="standard", weight_variance=1.0, seed=seed + index)[0])
        self.scale = width**-0.5

    def forward(self, tokens: Tensor) -> Tensor:
        weights = torch.softmax(self.scale * self.query(tokens) @ self.key(tokens).mT, dim=-1)
        mixed = tokens + weights @ self.value(tokens)
        return self.head((mixed + self.down(torch.relu(self.up(mixed)))).mean(dim=1))
