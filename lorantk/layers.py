"""Which layers a model has, and how each uses its weight.

A layer is "linear", "convolution" (a linear layer whose activations are patches), "transposed" (one whose patches are
those of the input with zeros between its pixels), "grouped" (a convolution in groups of channels), "embedding" (a
linear layer whose activations are one-hot) or "scale" (the weight of a normalisation, a product by element). The kind
is read from the class; whether the layer keeps to it is checked where it is used.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.modules.normalization import GroupNorm, LayerNorm


def kind(layer: nn.Module) -> str | None:
    """How a layer uses its weight: "linear", "convolution", "transposed", "grouped", "embedding", "scale" or None."""
    if isinstance(layer, NonDynamicallyQuantizableLinear):  # inside nn.MultiheadAttention, which bypasses it
        return None
    pytorch_utils = sys.modules.get("transformers.pytorch_utils")  # no model has a Conv1D before it is imported
    if isinstance(layer, nn.Linear) or (pytorch_utils and isinstance(layer, pytorch_utils.Conv1D)):
        return "linear"
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return "convolution" if layer.groups == 1 else "grouped"
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return "transposed" if layer.groups == 1 else None
    if isinstance(layer, nn.Embedding):
        return "embedding" if layer.max_norm is None and not layer.scale_grad_by_freq else None
    norm = isinstance(layer, (LayerNorm, GroupNorm, _NormBase)) or type(layer).__name__.endswith("RMSNorm")
    return "scale" if norm else None  # transformers has an RMSNorm a model, known by its name only


def fans(layer: nn.Module) -> tuple[int, int]:
    """(fan_in, fan_out) of a layer's weight as a matrix: patch size for a convolution, vocabulary for an embedding."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return layer.weight[0].numel(), layer.out_channels
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer.weight, Tensor)  # transformers' Conv1D stores its weight transposed
    return layer.weight.shape[0], layer.weight.shape[1]


def is_rowwise(layer: nn.Module) -> bool:
    """Whether the weight holds one row an output; transformers' Conv1D holds one column."""
    return isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))


def prefactor(layer: nn.Module) -> float:
    """The factor p in y = p W a: sqrt(weight_variance / fan_in) for `NTKLinear`, 1 for other layers."""
    return float(getattr(layer, "prefactor", 1.0))


def adaptable_layers(model: nn.Module, layers: str | Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Layers of `model` that an adapter can sit on, by name and in order.

    Parameters
    ----------
    model : nn.Module
    layers : str or sequence of str, optional
        None: every ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` and transformers' ``Conv1D``, but no ``nn.Embedding``.
        A sequence: these names, or the layers whose name ends in one of them after a dot, as in PEFT.
        ``"all-linear"``: as in PEFT, every linear layer but a transformers model's output layer or classifier.
        Any other string: a regular expression that matches the whole name.

    Raises
    ------
    TypeError
        If `model` is not a module.
    ValueError
        If no layer is left, or a name is unknown or names a layer that cannot be adapted.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    modules = dict(model.named_modules())
    return {name: modules[name] for name in _named(model, modules, layers)}


def layers_with_adapters(model: nn.Module, layers: str | Sequence[str]) -> dict[str, nn.Module]:
    """`adaptable_layers` of a model that may carry adapters: an adapted layer is a layer too, adapters included.

    So ``layers=["0"]`` means the same before and after `lorantk.lora.attach` and ``peft.get_peft_model``.

    Raises
    ------
    TypeError, ValueError
        As `adaptable_layers`.
    """
    modules = dict(model.named_modules())
    named = _named(model, {name: base_layer(module) for name, module in modules.items()}, layers)
    adapted = tuple(f"{name}." for name in named if hasattr(modules[name], "get_base_layer"))
    return {name: modules[name] for name in named if not name.startswith(adapted)}


def base_layer(module: nn.Module) -> nn.Module:
    """The layer below an adapter of `lorantk.lora.attach` or of PEFT; any other module itself."""
    get: Any = getattr(module, "get_base_layer", None)
    base: nn.Module = module if get is None else get()
    return base


def _named(model: nn.Module, modules: Mapping[str, nn.Module], layers: str | Sequence[str] | None) -> list[str]:
    """The names among `modules` that `layers` means, in order: see `adaptable_layers`."""
    kinds = {name: kind(module) for name, module in modules.items()}
    able = [name for name in modules if kinds[name] in ("linear", "convolution", "embedding")]
    products = [name for name in able if kinds[name] != "embedding"]
    if not able:
        raise ValueError(
            "model has no layer to adapt or to read factors from: no nn.Linear, nn.Conv1d, nn.Conv2d (with groups=1), "
            "nn.Embedding or transformers Conv1D"
        )
    if layers is None:
        chosen = products
    elif layers == "all-linear":
        chosen = [name for name in products if kinds[name] == "linear" and not _is_head(model, name)]
    elif isinstance(layers, str):
        try:
            chosen = [name for name in able if re.fullmatch(layers, name)]
        except re.error as error:
            raise ValueError(f"layers must be a regular expression; {layers!r} is none: {error}") from error
    else:
        ends = {wanted: [n for n in able if n == wanted or n.endswith(f".{wanted}")] for wanted in layers}
        unknown = [wanted for wanted, found in ends.items() if not found]
        if unknown:
            given = [
                f"{n!r} ({type(modules[n]).__name__})" if n in modules else f"{n!r} (no such layer)" for n in unknown
            ]
            raise ValueError(f"layers must name adaptable layers among {listed(able)}; got {', '.join(given)}")
        chosen = [name for name in able if any(name in found for found in ends.values())]
    if not chosen:
        raise ValueError(f"layers must name adaptable layers among {listed(able)}; {layers!r} names none")
    return chosen


def _is_head(model: nn.Module, name: str) -> bool:
    """Whether PEFT's "all-linear" leaves this layer of a transformers model out: its output layer or classifier."""
    output_embeddings = getattr(model, "get_output_embeddings", lambda: None)()
    is_output = output_embeddings is not None and model.get_submodule(name) is output_embeddings
    return is_output or (hasattr(model, "get_output_embeddings") and name.split(".")[0] in ("classifier", "score"))


def listed(names: Iterable[str]) -> str:
    """The names, or the first eight of them."""
    names = list(names)
    return str(names) if len(names) <= 8 else f"{str(names[:8])[:-1]}, ... {len(names) - 8} more]"
