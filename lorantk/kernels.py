"""The empirical neural tangent kernel K(x, x') = J(x) D J(x')^T of any module: full fine-tuning or LoRA.

J(x) is the derivative of the C outputs with respect to the *trainable* parameters (those with requires_grad), so
the kernel of an adapted or PEFT model is the kernel of its adapters; D is the identity, or a preconditioner. What a
method gives is compared with the gradient of one input by autograd first. With `max_memory` the kernel is made of
tiles, each from a block of inputs that fits; with `out` the tiles go to a file, and an interrupted run goes on.

Statements ``eq-2``, ``lem-lora-ntk``, ``thm-relation``. Sources: Jacot et al. (2018); Novak et al. (2022).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .batches import (
    Batch,
    call,
    check_alone,
    check_choice,
    check_deterministic,
    check_pair,
    collect,
    is_finite,
    size,
    take,
    undisturbed,
)
from .factors import LayerFactors, NotLayerwise
from .layers import layers_with_adapters
from .methods import METHODS, Method, NoProducts
from .sweeps import lora_ntk_sweep
from .tiles import assemble, in_bytes

__all__ = ["lora_ntk_sweep", "ntk"]

logger = logging.getLogger("lorantk")

JACOBIAN_LIMIT = 2**27
"""Most Jacobian entries (1 GiB in float64) of two blocks, unless one input has more, and of those that "auto" makes."""

Inputs: TypeAlias = "Batch | Iterable[Batch]"
Weights: TypeAlias = "Mapping[str, float | Tensor]"
Selection: TypeAlias = Callable[[Any], Tensor]


def ntk(
    model: nn.Module,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    layers: str | Sequence[str] | None = None,
    weights: Weights | None = None,
    method: str = "auto",
    output: str = "full",
    select: Selection | None = None,
    max_memory: int | str | None = None,
    out: str | Path | None = None,
) -> Tensor:
    """Empirical tangent kernel between two batches, over the trainable parameters of `model`.

    The kernel of LoRA is that of the adapted model: ``ntk(lora.attach(model, seed), x)``, ``ntk(peft_model, x)``.

    Parameters
    ----------
    model : nn.Module
        Maps a batch of n inputs to outputs (n, C), input by input; such outputs in an attribute ``logits`` will do. A
        language model's, of shape (n, T, vocabulary), need `select` or a module around the model.
    x1, x2 : Tensor (n1, ...), (n2, ...), mappings of such tensors given by keyword, or iterables of such batches
        Inputs in the model's dtype and on its device; x2 = x1 when None.
    layers : str or sequence of str, optional
        Keep the contribution of these layers and of adapters on them only: names, a regular expression or
        "all-linear", as in `lorantk.layers.adaptable_layers`; a layer keeps its name when it is adapted.
    weights : mapping of parameter name, or regular expression that matches whole names, to number or Tensor, optional
        D: a non-negative factor, or one for each entry, of these parameters; 1 for the others. So learning rates a
        group (LoRA+) or a diagonal preconditioner (Adam) enter the kernel.
    method : {"auto", "jacobian", "vector_products", "layerwise"}
        "auto" takes "layerwise" where it gives the gradients that autograd gives, else "jacobian" while the Jacobian
        is small or `max_memory` bounds it, else "vector_products" where they go through the model, else "jacobian" in
        blocks; it logs what it took and why to ``lorantk``.
    output : {"full", "trace", "diagonal"}
        All pairs of outputs, the sum over equal outputs, or each input with itself (with the same row of x2) only.
    select : function of what the model returns to a Tensor (n, C), optional
        For outputs that are no such tensor: logits of some tokens, an entry of a tuple or mapping.
    max_memory : int or str, optional
        Bytes, or text such as "4GB", that blocks of factors or Jacobians and one tile of the kernel may take beside
        the model; for "layerwise" and "jacobian".
    out : path ending in .npy, optional
        Write the kernel to this file tile by tile and return it memory-mapped. A run that was interrupted resumes
        from ``<out>.partial``; the file itself appears when it is complete. Not for "diagonal".

    Returns
    -------
    Tensor (n1, C, n2, C) for "full", (n1, n2) for "trace", (n, C, C) for "diagonal"
        In the dtype of the parameters (products are summed in float32 at least), on their device, without a graph.

    Raises
    ------
    TypeError, ValueError
        On bad inputs, unknown names, nothing to train, a frozen layer, a model that is random or mixes inputs, or a
        method that does not give the gradients of this model; also if one input alone exceeds `max_memory`.

    Notes
    -----
    Statement ``eq-2``; for an adapted model ``lem-lora-ntk``. In float64 the three methods agree to 1e-10 relative.
    """
    check_choice("output", output, ("full", "trace", "diagonal"))
    with undisturbed(model):
        problem = Problem(model, x1, x2, layers, weights, method, select)
        if output == "diagonal" and (out is not None or size(problem.x1) != size(problem.x2)):
            raise ValueError("output 'diagonal' is kept in memory (no out) and pairs each row of x1 with one of x2")
        return problem.solve(lambda way: _compute(way, problem, output, max_memory, out), max_memory is not None)


class Selected(nn.Module):
    """A model whose outputs are those that `select` picks."""

    def __init__(self, model: nn.Module, select: Selection) -> None:
        super().__init__()
        self.model, self.select = model, select
        self.train(model.training)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.select(self.model(*args, **kwargs))


class Problem:
    """Checked arguments of a kernel: a model, two batches, the parameters that count and their weights."""

    def __init__(
        self,
        model: nn.Module,
        x1: Inputs,
        x2: Inputs | None,
        layers: str | Sequence[str] | None,
        weights: Weights | None,
        method: str,
        select: Selection | None,
    ) -> None:
        check_choice("method", method, ("auto", *METHODS))
        if select is not None and not callable(select):
            raise TypeError(f"select must be a function of the model's output; got {type(select).__name__}")
        self.method = method
        self.x1 = collect(x1)
        self.x2 = check_pair(model, self.x1, None if x2 is None or x2 is x1 else collect(x2))
        parameters = trainable(model, layers)
        factors = spread(weights, parameters)
        prefix = "" if select is None else "model."
        self.model = model if select is None else Selected(model, select)
        self.parameters = {prefix + name: p for name, p in parameters.items()}
        self.weights = {prefix + name: weight for name, weight in factors.items()}
        check_deterministic(self.model)

    def way(self, method: str) -> Method:
        """A method for this problem."""
        return METHODS[method](self.model, self.parameters, self.weights)

    def solve(self, compute: Callable[[Method], Any], blocks: bool = False) -> Any:
        """`compute` with the method asked for; for "auto" with the first that gives the model's gradients.

        With `blocks` it must be one that works block by block.
        """
        seen = not blocks and self.method in ("auto", "layerwise")  # the check of whole factors sees it in one pass
        if not seen:
            self.check_alone()
        if self.method != "auto":
            return compute(self.way(self.method))
        try:
            way = self.way("layerwise")
            logger.info("ntk: method 'layerwise' for %d trainable tensors", len(self.parameters))
            return compute(way)
        except NotLayerwise as error:
            if seen:
                self.check_alone()
            reason: ValueError = error
        if not blocks and self.entries() > JACOBIAN_LIMIT:
            logger.info("ntk: method 'vector_products' for %d trainable tensors; %s", len(self.parameters), reason)
            try:
                return compute(self.way("vector_products"))
            except NoProducts as error:
                reason = error
        logger.info("ntk: method 'jacobian' for %d trainable tensors; %s", len(self.parameters), reason)
        return compute(self.way("jacobian"))

    def check_alone(self) -> None:
        """Raise ValueError unless the model is deterministic, input by input, on both batches."""
        for x in [self.x1] if self.x2 is self.x1 else [self.x1, self.x2]:
            check_alone(self.model, x)

    def entries(self) -> int:
        """Numbers in the Jacobians of both batches."""
        with torch.no_grad():
            C = call(self.model, take(self.x1, slice(0, 1))).shape[1]
        return (size(self.x1) + size(self.x2)) * C * sum(p.numel() for p in self.parameters.values())


def _compute(
    way: Method, problem: Problem, output: str, max_memory: int | str | None, out: str | Path | None
) -> Tensor:
    """The kernel by one method, block by block."""
    x1, x2 = problem.x1, problem.x2

    def rounded(kernel: Tensor) -> Tensor:
        result = kernel.to(way.dtype)
        if way.dtype == torch.float16 and not bool(torch.isfinite(result).all()):
            raise ValueError("model must have a kernel below 65504 in float16; convert the model to float32")
        return result

    count = max(size(x1), size(x2))
    if max_memory is not None:
        if way.__class__ is METHODS["vector_products"]:
            raise ValueError("max_memory is for methods 'layerwise' and 'jacobian'; 'vector_products' makes no blocks")
        count = _block_size(in_bytes(max_memory), way.checked(take(x1, slice(0, 1))), problem.model, x1, output)
    elif isinstance(way, METHODS["jacobian"]):
        count = max(1, min(count, JACOBIAN_LIMIT * (size(x1) + size(x2)) // (2 * problem.entries())))
    if output == "diagonal":
        parts = []
        for rows in (slice(i, i + count) for i in range(0, size(x1), count)):
            one = way.checked(take(x1, rows))
            parts.append(way.diagonal(one, one if x2 is x1 else way.checked(take(x2, rows))))
        return rounded(torch.cat(parts))
    return assemble(
        lambda rows: way.checked(take(x1, rows)), lambda rows: way.checked(take(x2, rows)),
        lambda one, other: rounded(way.tile(one, other, output)),
        (size(x1), size(x2)), (count, count), symmetric=x2 is x1, out=None if out is None else Path(out),
        depends_on=lambda: [type(way), output, problem.parameters, problem.weights, x2 is x1, x1, x2, problem.model],
    )  # fmt: skip


def trainable(model: nn.Module, layers: str | Sequence[str] | None) -> dict[str, Tensor]:
    """Trainable parameters by name: all of them, or those of the layers asked for."""
    parameters: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if layers is not None:
        chosen = layers_with_adapters(model, layers)
        within = {name: [p for p in parameters if p.startswith(f"{name}." if name else "")] for name in chosen}
        frozen = [name for name, found in within.items() if not found]
        if frozen:
            raise ValueError(f"layers must be trainable; frozen (requires_grad=False): {frozen}")
        parameters = {name: parameters[name] for found in within.values() for name in found}
    if not parameters:
        raise ValueError("model must have a trainable parameter (requires_grad=True) among the layers asked for")
    nonfinite = [name for name, p in parameters.items() if not is_finite(p)]
    if nonfinite:
        raise ValueError(f"model must have finite parameters; NaN or Inf in {nonfinite[0]!r}")
    return parameters


def spread(weights: Weights | None, parameters: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
    """The weight of each parameter that has one, from weights by name or regular expression."""
    found: dict[str, Tensor | float] = {}
    for pattern, weight in (weights or {}).items():
        names = [pattern] if pattern in parameters else [n for n in parameters if re.fullmatch(pattern, n)]
        if not names or any(name in found for name in names):
            fault = "names it twice" if names else "names no trainable parameter"
            raise ValueError(f"weights must name each parameter once at most; {pattern!r} {fault}")
        for name in names:
            found[name] = _checked_weight(pattern, weight, parameters[name])
    return found


def _checked_weight(pattern: str, weight: object, parameter: Tensor) -> Tensor | float:
    if isinstance(weight, Tensor) and weight.ndim > 0:
        if weight.shape != parameter.shape:
            raise ValueError(f"weights[{pattern!r}] must have the parameter's shape {tuple(parameter.shape)}; "
                             f"got {tuple(weight.shape)}")  # fmt: skip
        value: Tensor | float = weight.detach().to(parameter)
        valid = bool((torch.isfinite(weight) & (weight >= 0)).all())
    elif isinstance(weight, (int, float, Tensor)) and not isinstance(weight, bool):
        value = float(weight)
        valid = math.isfinite(value) and value >= 0
    else:
        raise TypeError(f"weights[{pattern!r}] must be a number or a tensor; got {type(weight).__name__}")
    if not valid:
        raise ValueError(f"weights[{pattern!r}] must be finite and at least 0; got {weight}")
    return value


def _block_size(memory: int, one: Any, model: nn.Module, x: Batch, output: str) -> int:
    """Inputs a block such that two prepared blocks, the graph that makes one, and a tile fit into `memory` bytes."""
    held = [*one.activations.values(), *one.cotangents.values()] if isinstance(one, LayerFactors) else [*one.values()]
    input_bytes = sum(t.numel() * t.element_size() for t in held)
    with torch.no_grad():
        C = call(model, take(x, slice(0, 1))).shape[1]
    entry_bytes = held[-1].element_size() * (C * C if output == "full" else 1)
    # need(n) = linear n + quadratic n^2: two blocks held and four while one is made; a tile, its product, its transpose
    linear, quadratic = 6 * input_bytes, 3 * entry_bytes if output != "diagonal" else 0
    if linear + quadratic > memory:
        raise ValueError(f"max_memory must be at least {linear + quadratic} bytes, the need of one input; got {memory}")
    largest = (
        memory / linear
        if quadratic == 0
        else (math.sqrt(linear**2 + 4 * quadratic * memory) - linear) / (2 * quadratic)
    )
    return min(int(largest), size(x))
