"""The empirical neural tangent kernel K(x, x') = J(x) J(x')^T of any module: full fine-tuning or LoRA.

J(x) is the derivative of the C outputs with respect to the *trainable* parameters (those with requires_grad), so
the kernel of an adapted or PEFT model is the kernel of its adapters. Three methods that share no derivative code:

- "jacobian": per-sample Jacobians with torch.func (vmap of jacrev), then a product; memory n C parameters.
- "vector_products": K v = J1 (J2^T v), one vjp and one jvp per column of K; memory n C plus a few parameter vectors.
- "layerwise": Gram matrices of activations times Gram matrices of cotangents; memory n C width.

Statements ``eq-2``, ``lem-lora-ntk``, ``thm-relation``. Sources: Jacot et al. (2018); Novak et al. (2022).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from .layers import (
    LayerFactors,
    check_deterministic,
    check_inputs,
    check_output_name,
    check_outputs,
    linear_layers,
)
from .lora import Adapter, LoRA, adapted
from .validation import check_choice

logger = logging.getLogger("lorantk")

JACOBIAN_LIMIT = 2**27
"""Largest number of Jacobian entries (1 GiB in float64) that method "auto" is willing to store."""


def ntk(
    model: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    lora: LoRA | None = None,
    seed: int = 0,
    adapters: Mapping[str, Tensor | Adapter] | None = None,
    layers: Sequence[str] | None = None,
    method: str = "auto",
    output: str = "full",
) -> Tensor:
    """Empirical tangent kernel between two batches, over the trainable parameters of `model` or over its adapters.

    Parameters
    ----------
    model : nn.Module
        Maps a batch (n, ...) to outputs (n, C), input by input.
    x1, x2 : Tensor (n1, ...), (n2, ...)
        Inputs in the model's dtype and on its device; x2 = x1 when None.
    lora : LoRA, optional
        Kernel of adapters drawn with `seed`, at their start (B = 0), instead of the model's own parameters. Beside
        `adapters` given as plain A, it supplies the scaling only.
    adapters : mapping of layer name to A (rank, fan_in), or to `Adapter`, optional
        Kernel of these very adapters; a plain A means B = 0.
    layers : sequence of str, optional
        Keep the contribution of these linear layers (or of the adapters on them) only.
    method : {"auto", "jacobian", "vector_products", "layerwise"}
        "auto" takes "layerwise" where every trainable parameter belongs to a linear layer, else "jacobian" while
        the Jacobian is small, else "vector_products"; it logs its choice to the logger ``lorantk``.
    output : {"full", "trace"}
        All pairs of outputs, or the sum over equal outputs.

    Returns
    -------
    Tensor (n1, C, n2, C) for "full", (n1, n2) for "trace"
        In the model's dtype, on its device, without a graph.

    Raises
    ------
    TypeError, ValueError
        On bad inputs, unknown names, nothing to train, or a method that does not cover the parameters asked for.

    Notes
    -----
    Statement ``eq-2``; with `lora`, ``lem-lora-ntk``. In float64 the three methods agree to 1e-10 relative.
    """
    check_choice("method", method, ("auto", "jacobian", "vector_products", "layerwise"))
    check_output_name(output)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    check_deterministic(model)
    x2 = check_inputs(model, x1, x2)
    if lora is not None or adapters is not None:
        model, layers = adapted(model, lora=lora, seed=seed, adapters=adapters, layers=layers), None
    parameters = _trainable(model, layers)
    if method == "auto":
        method = _choose(model, parameters, x1, x2)
        logger.info("ntk: method %r for %d trainable tensors", method, len(parameters))
    if method == "layerwise":
        return _layerwise(model, parameters, x1, x2, output)
    compute = _by_jacobian if method == "jacobian" else _by_vector_products
    kernel = compute(model, parameters, x1, x2)
    return kernel if output == "full" else torch.einsum("ncmc->nm", kernel)


def lora_ntk_sweep(
    model: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    loras: Iterable[LoRA],
    seeds: Iterable[int],
    output: str = "full",
) -> Tensor:
    """Kernels of many adapter draws, at B = 0, from one set of layer factors.

    Parameters
    ----------
    model, x1, x2, output
        As in `ntk`.
    loras : iterable of LoRA
    seeds : iterable of int

    Returns
    -------
    Tensor (len(loras), len(seeds), n1, C, n2, C), or (len(loras), len(seeds), n1, n2) for "trace"
        Entry [i, j] equals ``ntk(model, x1, x2, lora=loras[i], seed=seeds[j], output=output)``.

    Raises
    ------
    TypeError, ValueError
        As `ntk`; also if `loras` or `seeds` is empty.

    Notes
    -----
    Statement ``lem-lora-ntk``: K = sum_l s^2 (A a . A a') (g . g'), so only A changes between draws.
    """
    check_output_name(output)
    loras, seeds = list(loras), list(seeds)
    if not loras or not seeds:
        raise ValueError(f"loras and seeds must not be empty; got {len(loras)} and {len(seeds)}")
    x2 = check_inputs(model, x1, x2)
    draws = [
        {name: lora.scaling * A for name, A in lora.sample(model, seed).items()} for lora in loras for seed in seeds
    ]
    names = list(dict.fromkeys(name for draw in draws for name in draw))
    factors1 = LayerFactors.from_model(model, x1, names)
    factors2 = factors1 if x2 is x1 else LayerFactors.from_model(model, x2, names)
    n1, n2, C = len(x1), len(x2), factors1.outputs.shape[1]
    kernels = factors1.outputs.new_zeros(len(draws), *((n1, C, n2, C) if output == "full" else (n1, n2)))
    for name in names:
        users = [i for i, draw in enumerate(draws) if name in draw]
        kernels[users] += factors1.adapter_grams(factors2, name, [draws[i][name] for i in users], output)
    return kernels.unflatten(0, (len(loras), len(seeds)))


def _trainable(model: nn.Module, layers: Sequence[str] | None) -> dict[str, Tensor]:
    """Trainable parameters by name: all of them, or those of the named linear layers."""
    parameters: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if layers is not None:
        owners = linear_layers(model, layers)
        parameters = {name: p for name, p in parameters.items() if name.rpartition(".")[0] in owners}
    if not parameters:
        raise ValueError("model must have a trainable parameter (requires_grad=True) among the layers asked for")
    return parameters


def _layers_of(model: nn.Module, parameters: Mapping[str, Tensor]) -> list[str] | None:
    """Names of the linear layers that own all `parameters`, or None where some belong elsewhere or are tied."""
    try:
        linear = linear_layers(model)
    except ValueError:
        return None
    owners = {name.rpartition(".")[0] for name in parameters}
    uses = [name for name, p in model.named_parameters(remove_duplicate=False) for q in parameters.values() if p is q]
    if not owners <= linear.keys() or len(uses) != len(parameters):
        return None
    return [name for name in linear if name in owners]


def _choose(model: nn.Module, parameters: Mapping[str, Tensor], x1: Tensor, x2: Tensor) -> str:
    if _layers_of(model, parameters) is not None:
        return "layerwise"
    with torch.no_grad():
        outputs = check_outputs(model(x1[:1]), 1).shape[1]
    entries = (len(x1) + len(x2)) * outputs * sum(p.numel() for p in parameters.values())
    return "jacobian" if entries <= JACOBIAN_LIMIT else "vector_products"


def _by_jacobian(model: nn.Module, parameters: dict[str, Tensor], x1: Tensor, x2: Tensor) -> Tensor:
    values = {name: p.detach() for name, p in parameters.items()}

    def single(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return check_outputs(functional_call(model, values, (x[None],)), 1)[0]

    per_sample = vmap(jacrev(single), in_dims=(None, 0))
    jacobian1 = per_sample(values, x1)
    jacobian2 = jacobian1 if x2 is x1 else per_sample(values, x2)
    grams = (torch.einsum("ncp,mdp->ncmd", jacobian1[k].flatten(2), jacobian2[k].flatten(2)) for k in values)
    return _sum(grams).detach()


def _by_vector_products(model: nn.Module, parameters: dict[str, Tensor], x1: Tensor, x2: Tensor) -> Tensor:
    values = {name: p.detach() for name, p in parameters.items()}
    outputs2, pullback, *_ = vjp(lambda v: check_outputs(functional_call(model, v, (x2,)), len(x2)), values)

    def column(cotangent: Tensor) -> Tensor:
        (direction,) = pullback(cotangent)
        return jvp(lambda v: functional_call(model, v, (x1,)), (values,), (direction,))[1]

    n2, C = outputs2.shape
    basis = torch.eye(n2 * C, dtype=outputs2.dtype, device=outputs2.device).reshape(n2 * C, n2, C)
    columns = vmap(column, chunk_size=32)(basis)
    return columns.reshape(n2, C, len(x1), C).permute(2, 3, 0, 1).contiguous().detach()


def _layerwise(model: nn.Module, parameters: dict[str, Tensor], x1: Tensor, x2: Tensor, output: str) -> Tensor:
    names = _layers_of(model, parameters)
    if names is None:
        raise ValueError(
            "method 'layerwise' needs every trainable parameter to be the untied weight or bias of an nn.Linear; "
            "freeze the others, name linear layers in `layers`, or use 'jacobian' or 'vector_products'"
        )
    factors1 = LayerFactors.from_model(model, x1, names)
    factors2 = factors1 if x2 is x1 else LayerFactors.from_model(model, x2, names)

    def grams() -> Iterable[Tensor]:
        for name in names:
            if f"{name}.weight".lstrip(".") in parameters:
                yield factors1.weight_gram(factors2, name, output=output)
            if f"{name}.bias".lstrip(".") in parameters:
                yield factors1.bias_gram(factors2, name, output=output)

    return _sum(grams())


def _sum(terms: Iterable[Tensor]) -> Tensor:
    """Sum of the tensors, in place on the first: two of them are in memory at most."""
    iterator = iter(terms)
    total = next(iterator).clone()
    for term in iterator:
        total += term
    return total
