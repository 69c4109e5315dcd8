"""The empirical neural tangent kernel K(x, x') = J(x) J(x')^T of any module: full fine-tuning or LoRA.

J(x) is the derivative of the C outputs with respect to the *trainable* parameters (those with requires_grad), so
the kernel of an adapted or PEFT model is the kernel of its adapters. Three methods that share no derivative code:

- "jacobian": per-sample Jacobians with torch.func (vmap of jacrev), then a product; memory n C parameters.
- "vector_products": K v = J1 (J2^T v), one vjp and one jvp per column of K; memory n C plus a few parameter vectors.
- "layerwise": Gram matrices of activations times Gram matrices of cotangents; memory n C width.

Where x' is x, only the upper triangle is computed. With `max_memory` the kernel is made of tiles, each from a block of
inputs that fits; with `out` the tiles go to a file, and an interrupted run goes on where it stopped.

Statements ``eq-2``, ``lem-lora-ntk``, ``thm-relation``. Sources: Jacot et al. (2018); Novak et al. (2022).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import jacrev, jvp, vjp, vmap
from tqdm import tqdm

from .batches import Batch, call, check_choice, check_deterministic, check_pair, map_inputs, size, take, tensors
from .factors import LayerFactors, factors_of
from .grams import gram
from .layers import kind, layers_with_adapters
from .sweeps import lora_ntk_sweep
from .tiles import assemble, in_bytes

__all__ = ["lora_ntk_sweep", "ntk"]

logger = logging.getLogger("lorantk")

JACOBIAN_LIMIT = 2**27
"""Largest number of Jacobian entries (1 GiB in float64) that method "auto" is willing to store."""


def ntk(
    model: nn.Module,
    x1: Batch,
    x2: Batch | None = None,
    *,
    layers: str | Sequence[str] | None = None,
    method: str = "auto",
    output: str = "full",
    max_memory: int | str | None = None,
    out: str | Path | None = None,
) -> Tensor:
    """Empirical tangent kernel between two batches, over the trainable parameters of `model`.

    The kernel of LoRA is that of the adapted model: ``ntk(lora.attach(model, seed), x)``, ``ntk(peft_model, x)``.

    Parameters
    ----------
    model : nn.Module
        Maps a batch of n inputs to outputs (n, C), input by input; outputs in an attribute ``logits`` will do.
    x1, x2 : Tensor (n1, ...), (n2, ...), or mappings of such tensors, given to the model by keyword
        Inputs in the model's dtype and on its device; x2 = x1 when None.
    layers : str or sequence of str, optional
        Keep the contribution of these layers and of adapters on them only: names, a regular expression or
        "all-linear", as in `lorantk.layers.adaptable_layers`; a layer keeps its name when it is adapted.
    method : {"auto", "jacobian", "vector_products", "layerwise"}
        "auto" takes "layerwise" where every trainable parameter belongs to a linear, convolutional, embedding or
        normalisation layer, else "jacobian" while the Jacobian is small or `max_memory` bounds it, else
        "vector_products"; it logs its choice to the logger ``lorantk``.
    output : {"full", "trace"}
        All pairs of outputs, or the sum over equal outputs.
    max_memory : int or str, optional
        Bytes, or text such as "4GB", that blocks of factors or Jacobians and one tile of the kernel may take beside
        the model; for "layerwise" and "jacobian".
    out : path ending in .npy, optional
        Write the kernel to this file tile by tile and return it memory-mapped. A run that was interrupted resumes
        from ``<out>.partial``; the file itself appears when it is complete.

    Returns
    -------
    Tensor (n1, C, n2, C) for "full", (n1, n2) for "trace"
        In the model's dtype, on its device (in main memory with `out`), without a graph.

    Raises
    ------
    TypeError, ValueError
        On bad inputs, unknown names, nothing to train, a frozen layer, or a method that does not cover the parameters
        asked for; also if one input alone exceeds `max_memory`.

    Notes
    -----
    Statement ``eq-2``; for an adapted model ``lem-lora-ntk``. In float64 the three methods agree to 1e-10 relative.
    """
    check_choice("method", method, ("auto", "jacobian", "vector_products", "layerwise"))
    check_choice("output", output, ("full", "trace"))
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    check_deterministic(model)
    x2 = check_pair(model, x1, x2)
    parameters = _trainable(model, layers)
    if method == "auto":
        method = _choose(model, parameters, x1, x2, max_memory is not None)
        logger.info("ntk: method %r for %d trainable tensors", method, len(parameters))
    prepare, tile = _METHODS[method](model, parameters, output)
    block1, block2 = size(x1), size(x2)
    if max_memory is not None:
        if method == "vector_products":
            raise ValueError("max_memory is for methods 'layerwise' and 'jacobian'; 'vector_products' makes no blocks")
        block1 = block2 = _block_size(in_bytes(max_memory), prepare, model, x1, output)
    return assemble(
        lambda rows: prepare(take(x1, rows)), lambda rows: prepare(take(x2, rows)), tile,
        (size(x1), size(x2)), (block1, block2), symmetric=x2 is x1, out=None if out is None else Path(out),
        fingerprint=[method, output, *parameters.values(), *model.state_dict().values(), *tensors(x1).values(),
                     *tensors(x2).values()],
    )  # fmt: skip


def _trainable(model: nn.Module, layers: str | Sequence[str] | None) -> dict[str, Tensor]:
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
    return parameters


def _owners(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, nn.Module] | str:
    """The layers that own `parameters`, or the reason why they have no layer factors."""
    modules = dict(model.named_modules())
    owners = {name.rpartition(".")[0]: None for name in parameters}
    foreign = [name for name in parameters if kind(modules[name.rpartition(".")[0]]) is None]
    if foreign:
        return f"{foreign[0]!r} belongs to a {type(modules[foreign[0].rpartition('.')[0]]).__name__}"
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    tied = [names[id(p)] for p in parameters.values() if len(names[id(p)]) > 1]
    if tied:
        return f"{' and '.join(map(repr, tied[0]))} are tied"
    return {name: modules[name] for name in owners}


def _choose(model: nn.Module, parameters: Mapping[str, Tensor], x1: Batch, x2: Batch, bounded: bool) -> str:
    if not isinstance(_owners(model, parameters), str):
        return "layerwise"
    with torch.no_grad():
        outputs = call(model, take(x1, slice(0, 1))).shape[1]
    entries = (size(x1) + size(x2)) * outputs * sum(p.numel() for p in parameters.values())
    return "jacobian" if bounded or entries <= JACOBIAN_LIMIT else "vector_products"


def _block_size(memory: int, prepare: Callable[[Batch], Any], model: nn.Module, x: Batch, output: str) -> int:
    """Inputs a block such that two prepared blocks, the graph that makes one, and a tile fit into `memory` bytes."""
    one = prepare(take(x, slice(0, 1)))
    held = [*one.activations.values(), *one.cotangents.values()] if isinstance(one, LayerFactors) else [*one.values()]
    block = sum(t.numel() * t.element_size() for t in held)
    C = call(model, take(x, slice(0, 1))).shape[1] if output == "full" else 1
    tile = 3 * C * C * held[-1].element_size()
    # 6 block n + tile n^2 <= memory: two blocks held, and up to four times one block while it is made
    count = int(((36 * block**2 + 4 * tile * memory) ** 0.5 - 6 * block) / (2 * tile))
    if count < 1:
        raise ValueError(f"max_memory must be at least {6 * block + tile} bytes, the need of one input; got {memory}")
    return min(count, size(x))


def _jacobian(model: nn.Module, parameters: Mapping[str, Tensor], output: str) -> _Method:
    values = {name: p.detach() for name, p in parameters.items()}

    def prepare(x: Batch) -> dict[str, Tensor]:
        jacobian = map_inputs(lambda one: jacrev(lambda v: call(model, one, v)[0])(values), x)
        return {name: j.detach().flatten(2) for name, j in jacobian.items()}

    def tile(one: dict[str, Tensor], other: dict[str, Tensor]) -> Tensor:
        pattern = "ncp,mdp->ncmd" if output == "full" else "ncp,mcp->nm"
        total = torch.einsum(pattern, *(j[next(iter(values))] for j in (one, other)))
        for name in list(values)[1:]:
            total += torch.einsum(pattern, one[name], other[name])
        return total

    return prepare, tile


def _vector_products(model: nn.Module, parameters: Mapping[str, Tensor], output: str) -> _Method:
    values = {name: p.detach() for name, p in parameters.items()}

    def tile(x1: Batch, x2: Batch) -> Tensor:
        outputs2, pullback, *_ = vjp(lambda v: call(model, x2, v), values)

        def column(cotangent: Tensor) -> Tensor:
            (direction,) = pullback(cotangent)
            return jvp(lambda v: call(model, x1, v), (values,), (direction,))[1]

        n2, C = outputs2.shape
        basis = torch.eye(n2 * C, dtype=outputs2.dtype, device=outputs2.device).reshape(n2 * C, n2, C)
        chunks = tqdm(basis.split(32), "columns", delay=2, leave=False)
        columns = torch.cat([vmap(column)(chunk).detach() for chunk in chunks])
        kernel = columns.reshape(n2, C, size(x1), C).permute(2, 3, 0, 1)
        return kernel.contiguous() if output == "full" else torch.einsum("ncmc->nm", kernel)

    return (lambda x: x), tile


def _layerwise(model: nn.Module, parameters: Mapping[str, Tensor], output: str) -> _Method:
    owners = _owners(model, parameters)
    if isinstance(owners, str):
        raise ValueError(
            "method 'layerwise' needs every trainable parameter to be the untied weight or bias of a linear, "
            f"convolutional (groups=1), embedding or normalisation layer; {owners}. Freeze it, name other layers in "
            "`layers`, or use 'jacobian' or 'vector_products'"
        )
    uses = [(name.rpartition(".")[0], name.rpartition(".")[2]) for name in parameters]

    def tile(one: LayerFactors, other: LayerFactors) -> Tensor:
        return gram(one, other, tqdm(uses, "parameters", delay=2, leave=False), output)

    return (lambda x: factors_of(model, x, owners)), tile


_Method: TypeAlias = tuple[Callable[[Batch], Any], Callable[[Any, Any], Tensor]]
_METHODS: dict[str, Callable[[nn.Module, Mapping[str, Tensor], str], _Method]] = {
    "jacobian": _jacobian,
    "vector_products": _vector_products,
    "layerwise": _layerwise,
}
