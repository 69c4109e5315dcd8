"""Activations and cotangents of every layer of a model, from one forward and one backward pass per output.

A linear layer y = p W a + b (p the NTK prefactor, 1 elsewhere) has the gradient dF_c/dW = p g_c a^T with the
cotangent g_c = dF_c/dy. So the layer's share of the tangent kernel is a Gram matrix of activations times a Gram
matrix of cotangents, and no Jacobian is ever stored. Where the weight is used at several positions t (tokens of a
sequence, pixels of an image, repeated calls), gradients add up: dF_c/dW = p sum_t g_ct a_t^T, and the share is
sum_{t,u} (a_t . a'_u) (g_ct . g'_du). A convolution is such a layer whose activations are patches; an embedding is
one whose activations are one-hot, hence stored as indices.

Statements ``eq-2``, ``lem-lora-ntk``. Source: Jacot et al. (2018), appendix; Novak et al. (2022) for the contraction.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.modules.normalization import LayerNorm

from .batches import Batch, call, check_batch, check_deterministic, size, take
from .grams import gram


def kind(layer: nn.Module) -> str | None:
    """How a layer uses its weight: "linear", "convolution", "embedding", "scale" (normalisation) or None (unknown)."""
    if isinstance(layer, NonDynamicallyQuantizableLinear):  # inside nn.MultiheadAttention, which bypasses it
        return None
    pytorch_utils = sys.modules.get("transformers.pytorch_utils")  # no model has a Conv1D before it is imported
    if isinstance(layer, nn.Linear) or (pytorch_utils and isinstance(layer, pytorch_utils.Conv1D)):
        return "linear"
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return "convolution" if layer.groups == 1 else None
    if isinstance(layer, nn.Embedding):
        return "embedding" if layer.max_norm is None and not layer.scale_grad_by_freq else None
    return "scale" if isinstance(layer, (LayerNorm, nn.modules.batchnorm._BatchNorm)) else None


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
        chosen = [name for name in able if re.fullmatch(layers, name)]
    else:
        ends = {wanted: [n for n in able if n == wanted or n.endswith(f".{wanted}")] for wanted in layers}
        unknown = [wanted for wanted, found in ends.items() if not found]
        if unknown:
            given = [
                f"{n!r} ({type(modules[n]).__name__})" if n in modules else f"{n!r} (no such layer)" for n in unknown
            ]
            raise ValueError(f"layers must name adaptable layers among {_listed(able)}; got {', '.join(given)}")
        chosen = [name for name in able if any(name in found for found in ends.values())]
    if not chosen:
        raise ValueError(f"layers must name adaptable layers among {_listed(able)}; {layers!r} names none")
    return {name: modules[name] for name in chosen}


@dataclass(frozen=True)
class LayerFactors:
    """Activations a and cotangents g of the layers of one model on one batch.

    Attributes
    ----------
    outputs : Tensor (n, C)
        The model's outputs F.
    activations : dict of Tensor (n, T, fan_in)
        Input of each layer times its prefactor, over T positions; patches for a convolution; normalised inputs for a
        normalisation layer. For an embedding, int64 indices (n, T), -1 minus the index where ``padding_idx`` cuts the
        gradient.
    cotangents : dict of Tensor (n, C, T, fan_out)
        dF_c / dy at each position.
    kinds : dict of str
        `kind` of each layer.

    Notes
    -----
    Statement ``lem-lora-ntk``: every rank, variance, seed and layer subset is a cheap Gram matrix of these factors.
    """

    outputs: Tensor
    activations: dict[str, Tensor]
    cotangents: dict[str, Tensor]
    kinds: dict[str, str]

    @classmethod
    def from_model(cls, model: nn.Module, x: Batch, layers: str | Sequence[str] | None = None) -> LayerFactors:
        """Run `model` on `x` once forward and once backward per output, for the layers that `layers` picks.

        Parameters
        ----------
        model : nn.Module
        x : Tensor (n, ...) or mapping of Tensor
        layers : str or sequence of str, optional
            As in `adaptable_layers`.

        Raises
        ------
        TypeError, ValueError
            On a bad batch, outputs that are not (n, C), an unknown layer, a layer that the model never calls, or one
            that it calls on something else than the batch.
        """
        check_batch("x", x, model)
        check_deterministic(model)
        return factors_of(model, x, adaptable_layers(model, layers))

    def take(self, rows: slice) -> LayerFactors:
        """The factors of the inputs in `rows`."""
        activations = {name: a[rows] for name, a in self.activations.items()}
        cotangents = {name: g[rows] for name, g in self.cotangents.items()}
        return replace(self, outputs=self.outputs[rows], activations=activations, cotangents=cotangents)

    def weight_gram(self, other: LayerFactors, name: str, output: str = "full") -> Tensor:
        """Share of the weight of layer `name` in the kernel.

        Returns
        -------
        Tensor (n1, C, n2, C), or (n1, n2) summed over outputs for ``output="trace"``
        """
        return gram(self, other, [(name, "weight")], output)

    def bias_gram(self, other: LayerFactors, name: str, output: str = "full") -> Tensor:
        """Share of the bias of layer `name`: as `weight_gram` with the constant activation 1."""
        return gram(self, other, [(name, "bias")], output)

    def adapter_grams(self, other: LayerFactors, name: str, matrices: Sequence[Tensor], output: str = "full") -> Tensor:
        """Share of B in W + B A at B = 0, for each A (rank, fan_in) in `matrices`; scaling belongs into A.

        Returns
        -------
        Tensor (len(matrices), n1, C, n2, C), or (len(matrices), n1, n2) for ``output="trace"``
        """
        shares = []
        for A in matrices:
            first = self.project({name: A})
            shares.append(gram(first, first if other is self else other.project({name: A}), [(name, "weight")], output))
        return torch.stack(shares)

    def project(self, matrices: dict[str, Tensor]) -> LayerFactors:
        """Factors of B in W + B A at B = 0: activations A a in place of a, for the layers in `matrices`."""
        activations = {}
        for name, A in matrices.items():
            a = self.activations[name]
            activations[name] = A.T[torch.where(a < 0, -1 - a, a)] if self.kinds[name] == "embedding" else a @ A.T
        cotangents = {name: self.cotangents[name] for name in matrices}
        return LayerFactors(self.outputs, activations, cotangents, dict.fromkeys(matrices, "linear"))


def factors_of(model: nn.Module, x: Batch, modules: dict[str, nn.Module]) -> LayerFactors:
    """`LayerFactors.from_model` for modules already chosen and a batch already checked."""
    _check_first_axis(model, x, modules)
    n = size(x)
    inputs: dict[str, list[Tensor]] = {name: [] for name in modules}
    probes: dict[str, list[Tensor]] = {name: [] for name in modules}

    def record(name: str, module: nn.Module) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            y = y.expand(n, *y.shape[1:])  # position embeddings are looked up once for the whole batch
            probe = torch.zeros_like(y, requires_grad=True)  # dF/dprobe is dF/dy, whether or not W is frozen
            inputs[name].append(_features(module, args[0].detach().expand(n, *args[0].shape[1:])))
            probes[name].append(probe)
            return y + probe

        return hook

    with torch.enable_grad(), hooked({name: record(name, module) for name, module in modules.items()}, modules):
        outputs = call(model, x)
    never = [name for name in modules if not probes[name]]
    if never:
        raise ValueError(f"layers must be called by the model's forward pass; never called: {never}")

    flat = [probe for name in modules for probe in probes[name]]
    C = outputs.shape[1]
    stacked = [probe.new_empty(n, C, *probe.shape[1:]) for probe in flat]
    for c in range(C):
        grads = torch.autograd.grad(outputs[:, c].sum(), flat, retain_graph=c + 1 < C, allow_unused=True)
        for cotangent, g in zip(stacked, grads, strict=True):
            cotangent[:, c] = 0 if g is None else g  # None: this output does not depend on this call of the layer
    per_probe = iter(stacked)
    cotangents = {
        name: _join([_positions(module, next(per_probe)) for _ in probes[name]], 2) for name, module in modules.items()
    }
    activations = {name: _join(found, 1) for name, found in inputs.items()}
    return LayerFactors(outputs.detach(), activations, cotangents, {name: str(kind(m)) for name, m in modules.items()})


class hooked:
    """Context in which forward hooks are set, and after which they are gone."""

    def __init__(self, hooks: dict[str, Callable[..., Tensor | None]], modules: dict[str, nn.Module]) -> None:
        self.handles = [modules[name].register_forward_hook(hook) for name, hook in hooks.items()]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def _features(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's input as activations (n, T, fan_in), or as indices (n, T) for an embedding."""
    n = len(x)
    if isinstance(layer, nn.Embedding):
        indices = x.reshape(n, -1)
        return (
            indices if layer.padding_idx is None else torch.where(indices == layer.padding_idx, -1 - indices, indices)
        )
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        image = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        flat = [(1,) * (2 - len(v)) + tuple(v) for v in (layer.kernel_size, layer.dilation, layer.stride)]
        image = image if image.ndim == 4 else image[:, :, None]  # a signal is an image of height 1
        return nn.functional.unfold(image, flat[0], dilation=flat[1], stride=flat[2]).mT
    if isinstance(layer, LayerNorm):
        return nn.functional.layer_norm(x, layer.normalized_shape, eps=layer.eps).reshape(n, -1, layer.weight.numel())
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        normalised = nn.functional.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)
        return normalised.reshape(n, x.shape[1], -1).mT
    return prefactor(layer) * x.reshape(n, -1, x.shape[-1])


def _positions(layer: nn.Module, g: Tensor) -> Tensor:
    """Cotangents (n, C, ...) of a layer's output as (n, C, T, fan_out)."""
    n, C = g.shape[:2]
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.modules.batchnorm._BatchNorm)):
        return g.reshape(n, C, g.shape[2], -1).mT
    width = layer.weight.numel() if isinstance(layer, LayerNorm) else g.shape[-1]
    return g.reshape(n, C, -1, width)


def _join(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=dim)


def _check_first_axis(model: nn.Module, x: Batch, modules: dict[str, nn.Module]) -> None:
    """Raise ValueError if some layer's input does not have the batch, or 1, along its first axis."""
    seen: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _, args, y: seen.update({name: max(seen.get(name, 1), len(args[0]), len(y))})

    with torch.no_grad(), hooked({name: note(name) for name in modules}, modules):
        call(model, take(x, slice(0, 1)))
    wrong = {name: length for name, length in seen.items() if length != 1}
    if wrong:
        raise ValueError(
            "model must keep the inputs along the first axis of every layer's input; for one input, layers "
            f"{_listed(wrong)} are called on several rows. Use method 'jacobian' or 'vector_products'"
        )


def _is_head(model: nn.Module, name: str) -> bool:
    """Whether PEFT's "all-linear" leaves this layer of a transformers model out: its output layer or classifier."""
    output_embeddings = getattr(model, "get_output_embeddings", lambda: None)()
    is_output = output_embeddings is not None and model.get_submodule(name) is output_embeddings
    return is_output or (hasattr(model, "get_output_embeddings") and name.split(".")[0] in ("classifier", "score"))


def _listed(names: Iterable[str]) -> str:
    """The names, or the first eight of them."""
    names = list(names)
    return str(names) if len(names) <= 8 else f"{str(names[:8])[:-1]}, ... {len(names) - 8} more]"
