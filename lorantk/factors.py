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

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.normalization import GroupNorm, LayerNorm

from .batches import (
    Batch,
    call,
    check_agree,
    check_alone,
    check_batch,
    check_deterministic,
    collect,
    ends,
    size,
    substituted,
    take,
    tolerance,
    undisturbed,
)
from .layers import adaptable_layers, is_rowwise, kind, prefactor

logger = logging.getLogger("lorantk")

ROWS = 1024
"""Inputs times outputs that one backward pass takes at once, where there are more than one output."""

Hook: TypeAlias = "Callable[..., Tensor | None]"


@dataclass(frozen=True)
class LayerFactors:
    """Activations a and cotangents g of the layers of one model on one batch.

    Attributes
    ----------
    outputs : Tensor (n, C)
        The model's outputs F.
    activations : dict of Tensor (n, T, fan_in)
        Input of each layer times its prefactor, over T positions; patches for a convolution, (n, T, groups, fan_in)
        for one in groups; normalised inputs for a normalisation layer. For an embedding, int64 indices (n, T), -1
        minus the index where ``padding_idx`` cuts the gradient.
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
        modules = adaptable_layers(model, layers)
        with undisturbed(model):
            x = collect(x)
            check_deterministic(model)
            factors = factors_of(model, x, modules)
            never = [name for name in modules if name not in factors.kinds]
            if never:
                raise ValueError(f"layers must be called by the model's forward pass; never called: {never}")
            uses = {f"{name}.weight" if name else "weight": (name, "weight") for name in modules}
            factors.check(model, x, uses)
        return factors

    def take(self, rows: slice | list[int]) -> LayerFactors:
        """The factors of the inputs in `rows`."""
        activations = {name: a[rows] for name, a in self.activations.items()}
        cotangents = {name: g[rows] for name, g in self.cotangents.items()}
        return replace(self, outputs=self.outputs[rows], activations=activations, cotangents=cotangents)

    def check(self, model: nn.Module, x: Batch, uses: Mapping[str, tuple[str, str]]) -> None:
        """Compare outputs and gradients with those of the first and the last input without the others, by autograd.

        Two inputs that are the whole batch are asked alone too. This one pass sees that the model is deterministic,
        that it maps input by input, and that each layer is called on the inputs of the batch and uses its weight as
        its class does.

        Parameters
        ----------
        model : nn.Module
            The model that the factors are of.
        x : Tensor (n, ...) or mapping of Tensor
            The batch that they are of.
        uses : mapping of parameter name to (layer name, "weight" or "bias")

        Raises
        ------
        ValueError
            Where the outputs differ.
        NotLayerwise
            Where gradients differ: masks, hooks, subclasses or other uses of a weight that the layer's class does not
            show.
        """
        modules = {name: model.get_submodule(name) for name in self.kinds}

        def note(name: str) -> Hook:
            def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor) -> None:
                _check_first_axis(name, len(rows), _first(args, kwargs), y)

            return hook

        rows = ends(len(self.outputs))
        state = torch.get_rng_state()
        with hooked({name: note(name) for name in modules}, modules):
            outputs, cotangent, wanted = gradient(model, take(x, rows), uses)
        if len(self.outputs) == len(rows) == 2 or not torch.equal(state, torch.get_rng_state()):
            check_alone(model, x)  # one pass does not show what two inputs share, and may miss what is random
        try:
            check_agree("gives an input other outputs alone than in a batch", outputs, self.outputs[rows])
        except ValueError:
            check_alone(model, x)  # says better what it is, where it can
            raise
        few = self.take(rows)

        def made(parameter: str, directions: Tensor | None) -> Tensor:
            (name, which), grad = uses[parameter], wanted[parameter]
            if name not in self.kinds:  # never called
                return torch.zeros_like(grad if directions is None else along(grad, directions))
            v = cotangent.to(grad.dtype)
            if directions is not None and self.kinds[name] == "scale":  # of several axes
                return along(few.pull(modules[name], name, which, v).reshape(grad.shape), directions)
            return few.pull(modules[name], name, which, v, directions)

        def rowwise(parameter: str, grad: Tensor) -> Tensor:
            name, which = uses[parameter]
            columns = self.kinds.get(name) == "linear" and not is_rowwise(modules[name])
            turned = which == "weight" and (columns or self.kinds.get(name) == "transposed")
            return grad.transpose(0, 1) if turned else grad

        turned = {parameter: rowwise(parameter, grad) for parameter, grad in wanted.items()}
        try:
            found = list(disagreements(made, turned))
        except RuntimeError as error:
            raise NotLayerwise(f"model must use its layers as their classes do; {error}") from error
        for parameter, gap, norm in found:
            name, which = uses[parameter]
            raise NotLayerwise(
                f"{parameter!r} is not used as the {which} of a {type(model.get_submodule(name)).__name__} alone: "
                f"its gradient from layer factors differs from autograd's by {gap:.1e}, its norm being {norm:.1e}"
            )

    def pull(self, layer: nn.Module, name: str, which: str, v: Tensor, directions: Tensor | None = None) -> Tensor:
        """Gradient of sum_i v_i . F(x_i) by the weight or bias of a layer, for v (n, C).

        Parameters
        ----------
        layer : nn.Module
        name : str
        which : {"weight", "bias"}
        v : Tensor (n, C)
        directions : Tensor (p, k), optional
            Multiply the gradient, a matrix of k columns, by these, without making it.

        Returns
        -------
        Tensor (fan_out, fan_in) for a weight, (tokens, fan_out) for an embedding's, (fan_out,) for a bias or a scale
        """
        a = self.activations[name].flatten(0, 1)
        g = torch.einsum("nc,ncto->nto", v, self.cotangents[name].to(v.dtype)).flatten(0, 1)
        if which == "bias":
            return g.sum(0)
        if isinstance(layer, nn.Embedding):
            kept = a >= 0
            g = g if directions is None else g @ directions.T
            return g.new_zeros(layer.num_embeddings, g.shape[1]).index_add_(0, a[kept], g[kept])
        a = a.to(v.dtype)
        if self.kinds[name] == "scale":
            return (g * a).sum(0)
        a = a if directions is None else a @ directions.T
        if self.kinds[name] == "grouped":
            return torch.einsum("tkf,tki->kfi", g.unflatten(1, (a.shape[1], -1)), a).flatten(0, 1)
        return g.T @ a

    def project(self, matrices: dict[str, Tensor]) -> LayerFactors:
        """Factors of B in W + B A at B = 0: activations A a in place of a, for the layers in `matrices`."""
        activations = {}
        for name, A in matrices.items():
            a = self.activations[name]
            activations[name] = (
                A.T[torch.where(a < 0, -1 - a, a)] if self.kinds[name] == "embedding" else a.to(A.dtype) @ A.T
            )
        cotangents = {name: self.cotangents[name] for name in matrices}
        return LayerFactors(self.outputs, activations, cotangents, dict.fromkeys(matrices, "linear"))


class NotLayerwise(ValueError):
    """The factors of a model's layers do not give its gradients; another method may."""


def gradient(model: nn.Module, x: Batch, parameters: Iterable[str]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Outputs F (n, C) of some inputs, cotangents v (n, C), and the gradient of sum_i v_i . F(x_i) by autograd alone.

    Frozen parameters are differentiated too, and left frozen. v is drawn with a fixed seed.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    tensors = {name: named[name] for name in parameters}
    frozen = [p for p in tensors.values() if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        with torch.enable_grad():
            outputs = call(model, x)
        cotangent = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
        found: tuple[Tensor | None, ...] = (None,) * len(tensors)
        if outputs.requires_grad:
            found = torch.autograd.grad((outputs * cotangent).sum(), list(tensors.values()), allow_unused=True)
    finally:
        for p in frozen:
            p.requires_grad_(False)
    pairs = zip(tensors.items(), found, strict=True)
    return outputs.detach(), cotangent, {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


def along(gradient: Tensor, directions: Tensor) -> Tensor:
    """A gradient, as a matrix of k columns, times directions (p, k): (rows, p)."""
    return nn.functional.linear(directions.to(gradient.dtype), gradient.flatten(1)).T


def disagreements(
    made: Callable[[str, Tensor | None], Tensor], wanted: Mapping[str, Tensor]
) -> Iterator[tuple[str, float, float]]:
    """Parameters whose gradient is not autograd's beyond round-off, with the norms of the difference and of autograd's.

    Matrices are compared along two random directions, which miss a difference with probability 0 and need no second
    matrix: ``made(name, directions)`` is (rows, 2) then. What is below a hundredth of the largest gradient, such as one
    that is 0 but for round-off, is measured by that.
    """
    generator, drawn, pairs = torch.Generator().manual_seed(0), {}, {}
    for name, grad in wanted.items():
        directions = None
        if grad.ndim > 1:
            grad = grad.flatten(1)
            key = (grad.shape[1], grad.dtype)
            if key not in drawn:
                drawn[key] = (torch.randn(2, key[0], generator=generator) / 2**0.5).to(grad)
            directions = drawn[key]
            grad = along(grad, directions)
        pairs[name] = made(name, directions).reshape(grad.shape), grad
    norms = {name: ((one - two).norm().item(), two.norm().item()) for name, (one, two) in pairs.items()}
    largest = max((norm for _, norm in norms.values()), default=0.0)
    for name, (gap, norm) in norms.items():
        slack = tolerance(wanted[name].dtype)
        slack = slack if slack < 0.01 else slack**0.5  # in half precision small gradients have one digit
        if not gap <= slack * (norm + largest / 100):
            yield name, gap, norm


# Making the factors of n inputs. A layer that is called several times, or at several positions, has them along T.
#
#   step          what it makes, a layer                                      shape
#   _forward      inputs as activations, one tensor a call                    (n, T, fan_in), indices (n, T)
#                 the place of the layer's output in the graph, where         (n, ..., fan_out)
#                 autograd gives dF/dy, whether or not the weight is frozen
#   _backward     dF_c/dy, for some outputs c at once                         (n, C, ..., fan_out)
#   _positions    the same, with positions on one axis                        (n, C, T, fan_out)


def factors_of(model: nn.Module, x: Batch, modules: dict[str, nn.Module]) -> LayerFactors:
    """`LayerFactors.from_model` for chosen modules and a checked batch, without layers that are never called."""
    try:
        outputs, inputs, places = _forward(model, x, modules)
    except RuntimeError as error:  # a layer whose inputs have other shapes than its class says
        check_alone(model, x)  # whose error is the better one where the model itself refuses the batch
        raise NotLayerwise(f"model must use its layers as their classes do; {error}") from error
    called = {name: module for name, module in modules.items() if places[name]}
    gradients = iter(_backward(outputs, [place for name in called for place in places[name]]))
    cotangents = {
        name: _join([_positions(module, next(gradients)) for _ in places[name]], 2) for name, module in called.items()
    }
    activations = {name: _join(inputs[name], 1) for name in called}
    return LayerFactors(outputs.detach(), activations, cotangents, {name: str(kind(m)) for name, m in called.items()})


class _Place(NamedTuple):
    """Where the output of a layer's call stands in the graph (None if no gradient passes), and a tensor like it."""

    edge: GradientEdge | None
    like: Tensor


def _forward(
    model: nn.Module, x: Batch, modules: dict[str, nn.Module]
) -> tuple[Tensor, dict[str, list[Tensor]], dict[str, list[_Place]]]:
    """Outputs, and for each call of each layer its input as activations and the place of its output."""
    n = size(x)
    inputs: dict[str, list[Tensor]] = {name: [] for name in modules}
    places: dict[str, list[_Place]] = {name: [] for name in modules}

    def record(name: str, module: nn.Module) -> Hook:
        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor) -> Tensor:
            a = _first(args, kwargs).detach()
            _check_first_axis(name, n, a, y)
            if len(y) != n:  # position embeddings are looked up once for the whole batch
                y = y.expand(n, *y.shape[1:]).clone()
            if not y.requires_grad:  # all is frozen up to here
                y = y + y.new_zeros((), requires_grad=True)
            inputs[name].append(_features(module, a.expand(n, *a.shape[1:])))
            places[name].append(_Place(get_gradient_edge(y) if y.requires_grad else None, y.new_empty(0, *y.shape[1:])))
            return y

        return hook

    with torch.enable_grad(), hooked({name: record(name, module) for name, module in modules.items()}, modules):
        return call(model, x), inputs, places


def _backward(outputs: Tensor, places: list[_Place]) -> list[Tensor]:
    """dF_c/dy at each place, as (n, C, ...); 0 where an output does not depend on a call of a layer.

    With few inputs several outputs go through one pass, as ROWS says: products of few rows are slow.
    """
    n, C = outputs.shape
    edges = [place.edge for place in places if place.edge is not None]
    step = max(1, min(C, ROWS // n))
    stacked: list[Tensor] = []
    for start in range(0, C, step):
        basis = outputs.new_zeros(min(step, C - start), n, C)
        basis.diagonal(start, 0, 2).fill_(1.0)
        pulled = iter(_pulled(outputs, edges, basis, start + step >= C))
        found = [None if place.edge is None else next(pulled) for place in places]
        if step == C:  # nothing to stack; for one output nothing to copy either
            return [_zeros(place, n, C) if g is None else g.transpose(0, 1).contiguous()
                    for place, g in zip(places, found, strict=True)]  # fmt: skip
        stacked = stacked or [_zeros(place, n, C) for place in places]
        for cotangent, g in zip(stacked, found, strict=True):
            if g is not None:
                cotangent[:, start : start + len(basis)] = g.transpose(0, 1)
    return stacked


def _zeros(place: _Place, n: int, C: int) -> Tensor:
    return place.like.new_zeros(n, C, *place.like.shape[1:])


def _pulled(outputs: Tensor, edges: list[GradientEdge], basis: Tensor, last: bool) -> Sequence[Tensor | None]:
    """Gradients of k weighted sums of the outputs, (k, n, ...), for weights (k, n, C)."""
    if not edges or not outputs.requires_grad:
        return [None] * len(edges)
    pull: Callable[..., Sequence[Tensor | None]] = partial(torch.autograd.grad, outputs, edges, allow_unused=True)
    if len(basis) > 1:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                return pull(basis, retain_graph=True, is_grads_batched=True)
        except RuntimeError as error:  # custom functions that look at values, and the like
            logger.info("factors: one output at a time, since vmap says %.200s", error)
    single = [pull(weights, retain_graph=not last or i + 1 < len(basis)) for i, weights in enumerate(basis)]
    if len(single) == 1:
        return [None if g is None else g[None] for g in single[0]]
    return [None if column[0] is None else torch.stack(list(column)) for column in zip(*single, strict=True)]


def _first(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
    """The input of a layer, given by position or by keyword."""
    return args[0] if args else next(iter(kwargs.values()))


class hooked:
    """Context in which forward hooks are set, and after which they are gone."""

    def __init__(self, hooks: dict[str, Hook], modules: dict[str, nn.Module]) -> None:
        self.handles = [modules[name].register_forward_hook(hook, with_kwargs=True) for name, hook in hooks.items()]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def _features(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's input as activations (n, T, fan_in), (n, T, groups, fan_in), or as indices (n, T) for an embedding."""
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
        patches = nn.functional.unfold(image, flat[0], dilation=flat[1], stride=flat[2]).mT
        return patches if layer.groups == 1 else patches.unflatten(2, (layer.groups, -1))
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return _transposed_patches(layer, x)
    if kind(layer) == "scale":
        return _positions(layer, _normalised(layer, x)[:, None])[:, 0]
    a = x.reshape(n, -1, x.shape[-1])
    return a if prefactor(layer) == 1.0 else prefactor(layer) * a


def _transposed_patches(layer: nn.ConvTranspose1d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """What each output of a transposed convolution sees: patches of the input with zeros between its pixels."""

    def pair(values: Any, missing: int) -> tuple[int, int]:
        low, high = [missing] * (2 - len(values)) + list(values)  # a signal is an image of height 1
        return low, high

    kernel, dilation, stride = pair(layer.kernel_size, 1), pair(layer.dilation, 1), pair(layer.stride, 1)
    padding, more = pair(layer.padding, 0), pair(layer.output_padding, 0)
    image = x if x.ndim == 4 else x[:, :, None]
    height, width = ((pixels - 1) * s + 1 for pixels, s in zip(image.shape[2:], stride, strict=True))
    spread = image.new_zeros(*image.shape[:2], height, width)
    spread[:, :, :: stride[0], :: stride[1]] = image
    low, left = (d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True))
    spread = nn.functional.pad(spread, (left, left + more[1], low, low + more[0]))
    patches = nn.functional.unfold(spread, kernel, dilation=dilation).unflatten(1, (-1, *kernel))
    return patches.flip(2, 3).flatten(1, 3).mT


def _normalised(layer: nn.Module, x: Tensor) -> Tensor:
    """What a normalisation multiplies its weight by: its output with weight 1 and bias 0, less that with weight 0.

    So an RMSNorm that stores its weight as an offset from 1 is one too; PyTorch's own norms give 0 with weight 0.
    """
    outputs: list[Tensor] = []
    for value in (1.0, 0.0):
        values = {key: torch.full_like(p, value if key == "weight" else 0.0) for key, p in layer.named_parameters()}
        with torch.no_grad(), substituted(layer, values):
            outputs.append(layer.forward(x))
        if isinstance(layer, (LayerNorm, GroupNorm, _NormBase)):
            return outputs[0]
    return outputs[0] - outputs[1]


def _positions(layer: nn.Module, g: Tensor) -> Tensor:
    """Cotangents (n, C, ...) of a layer's output as (n, C, T, fan_out)."""
    n, C = g.shape[:2]
    if isinstance(layer, (_ConvNd, GroupNorm, _NormBase)):  # channels come before positions
        return g.reshape(n, C, g.shape[2], -1).mT
    width = next(layer.parameters()).numel() if kind(layer) == "scale" else g.shape[-1]
    return g.reshape(n, C, -1, width)


def _join(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=dim)


def _check_first_axis(name: str, n: int, a: Tensor, y: Tensor) -> None:
    """Raise NotLayerwise unless a layer's input and output have the batch, or 1, along their first axis."""
    if not {len(a), len(y)} <= {1, n}:
        raise NotLayerwise(
            "model must keep the inputs along the first axis of every layer's input; for "
            f"{n} input{'s' * (n > 1)} layer {name!r} is called on {len(a)} rows and gives {len(y)}"
        )
