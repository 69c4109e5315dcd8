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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.modules.normalization import LayerNorm

from .batches import Batch, call, check_batch, size, take
from .validation import check_choice

CHUNK = 2**24
"""Entries of the largest temporary that a contraction over positions makes: 64 MiB in float32."""

BLOCKS = 8
"""Row blocks of a symmetric product: of the multiply-adds of the full one, (1 + 1/BLOCKS) / 2 are done."""


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


def check_deterministic(model: nn.Module) -> None:
    """Raise ValueError if `model` holds dropout or batch norm in training mode: it has no kernel per input then."""
    for name, module in model.named_modules():
        rate = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", 0.0)
        random = isinstance(rate, (int, float)) and rate > 0
        coupled = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if module.training and (random or coupled):
            raise ValueError(f"model must be deterministic, input by input: {name!r} is a {type(module).__name__} "
                             "in training mode; call model.eval() first")  # fmt: skip


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
    stacked = [probe.new_zeros(n, C, *probe.shape[1:]) for probe in flat]
    for c in range(C):
        grads = torch.autograd.grad(outputs[:, c].sum(), flat, retain_graph=c + 1 < C, allow_unused=True)
        for cotangent, g in zip(stacked, grads, strict=True):
            if g is not None:  # an output that does not depend on this call of the layer
                cotangent[:, c] = g
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


def gram(one: LayerFactors, other: LayerFactors, uses: Iterable[tuple[str, str]], output: str) -> Tensor:
    """Kernel of some parameters: sum over (layer, "weight" or "bias") in `uses` of the products of their gradients.

    Where `other` is `one`, only the upper triangle is multiplied.

    Returns
    -------
    Tensor (n1, C, n2, C), or (n1, n2) summed over outputs for ``output="trace"``
    """
    check_choice("output", output, ("full", "trace"))
    n1, C = one.outputs.shape[:2]
    n2 = len(other.outputs)
    per_row = C if output == "full" else 1
    total = one.outputs.new_zeros(n1 * per_row, n2 * per_row)
    symmetric = other is one
    small: list[_Term] = []
    for name, parameter in uses:
        first, second = _side(one, name), _side(other, name)
        if not first.g.any():  # dead units, or A behind B = 0
            continue
        terms = _bias_terms if parameter == "bias" else _TERMS[one.kinds[name]]
        for term in terms(first, second, output):
            if isinstance(term, _Scatter):
                term.add_to(total)
            elif len(small) < 64 and term.weights is not None:
                small.append(term)  # kept for one pass over the tiles of `total`
            else:
                _accumulate(total, [term], per_row, symmetric)
    if small:
        _accumulate(total, small, per_row, symmetric)
    if symmetric:
        _mirror(total, per_row)
    return total.view(n1, C, n2, C) if output == "full" else total


class _Side(NamedTuple):
    """One layer's activations (n, T, fan_in) or indices (n, T), and cotangents (n, C, T, fan_out)."""

    a: Tensor
    g: Tensor


class _Term(NamedTuple):
    """A summand weights * (rows1 @ rows2.T), rows (n C, k), or (n, C k) for the trace, weights (n1, n2)."""

    rows1: Tensor
    rows2: Tensor
    weights: Tensor | None = None


def _side(factors: LayerFactors, name: str) -> _Side:
    return _Side(factors.activations[name], factors.cotangents[name])


def _rows(gradients: Tensor, output: str) -> Tensor:
    """Gradients (n, C, ...) as rows: one per input and output, or one per input for the trace."""
    return gradients.flatten(2).flatten(0, 1) if output == "full" else gradients.flatten(1)


def _linear_terms(one: _Side, other: _Side, output: str) -> Iterator[_Term]:
    """With one position, (a . a') * (g . g'); with more, the gradient sum_t g_t a_t^T itself, some rows at a time.

    Where positions are few beside the widths, the sum over pairs of positions is cheaper than the gradients.
    """
    (n1, C, T1, fan_out), n2, T2, fan_in = one.g.shape, len(other.g), other.g.shape[2], one.a.shape[2]
    if T1 == T2 == 1:
        weights = one.a[:, 0] @ other.a[:, 0].T
        rows1 = _rows(one.g, output)
        yield _Term(rows1, rows1 if other.g is one.g else _rows(other.g, output), weights)
        return
    pairs = C * C if output == "full" else C
    by_gradient = (n1 * T1 + n2 * T2) * C * fan_in * fan_out + n1 * n2 * pairs * fan_in * fan_out
    by_position = n1 * n2 * T1 * T2 * (fan_in + pairs * (fan_out + 8))  # 8: products by element are slow
    if by_position < by_gradient:
        for t in range(T1):
            for u in range(T2):
                weights = one.a[:, t] @ other.a[:, u].T
                yield _Term(_rows(one.g[:, :, t], output), _rows(other.g[:, :, u], output), weights)
        return
    step = max(1, CHUNK // (max(n1, n2) * C * fan_in))
    for start in range(0, fan_out, step):
        rows1 = _rows(torch.einsum("nctf,nti->ncfi", one.g[..., start : start + step], one.a), output)
        if other.g is one.g:
            yield _Term(rows1, rows1)
        else:
            yield _Term(
                rows1, _rows(torch.einsum("nctf,nti->ncfi", other.g[..., start : start + step], other.a), output)
            )


def _bias_terms(one: _Side, other: _Side, output: str) -> Iterator[_Term]:
    rows1 = _rows(one.g.sum(2), output)
    yield _Term(rows1, rows1 if other.g is one.g else _rows(other.g.sum(2), output))


def _scale_terms(one: _Side, other: _Side, output: str) -> Iterator[_Term]:
    """y = w * a + b by element: the gradient by w is sum_t g_t * a_t."""
    rows1 = _rows((one.g * one.a[:, None]).sum(2), output)
    yield _Term(rows1, rows1 if other.g is one.g else _rows((other.g * other.a[:, None]).sum(2), output))


class _Scatter(NamedTuple):
    """A summand of the kernel between some rows and columns only."""

    rows: Tensor
    columns: Tensor
    values: Tensor

    def add_to(self, total: Tensor) -> None:
        total[self.rows[:, None], self.columns] += self.values


def _embedding_terms(one: _Side, other: _Side, output: str) -> Iterator[_Scatter]:
    """One-hot activations: only inputs that share a token interact, so the sum runs over tokens that both hold."""
    first, second = _by_token(one), _by_token(other)
    C = one.g.shape[1]
    for token in first.keys() & second.keys():
        (inputs1, g1), (inputs2, g2) = first[token], second[token]
        values = _rows(g1, output) @ _rows(g2, output).T
        if output == "full":
            inputs1, inputs2 = (
                (i[:, None] * C + torch.arange(C, device=i.device)).flatten() for i in (inputs1, inputs2)
            )
        yield _Scatter(inputs1, inputs2, values)


def _by_token(side: _Side) -> dict[int, tuple[Tensor, Tensor]]:
    """For each token: the inputs (k,) that hold it, and the sums (k, C, fan_out) of their cotangents over it."""
    n, T = side.a.shape
    keys = side.a * n + torch.arange(n, device=side.a.device)[:, None]  # one key for each token and input
    unique, inverse = torch.unique(keys, return_inverse=True)
    g = side.g.transpose(1, 2).reshape(n * T, *side.g.shape[1::2])
    sums = g.new_zeros(len(unique), *g.shape[1:]).index_add_(0, inverse.flatten(), g)
    tokens, counts = torch.unique_consecutive(unique // n, return_counts=True)
    bounds = counts.tolist()
    pieces = zip(tokens.tolist(), (unique % n).split(bounds), sums.split(bounds), strict=True)
    return {token: (inputs, total) for token, inputs, total in pieces if token >= 0}


_TERMS: dict[str, Callable[[_Side, _Side, str], Iterator[_Term | _Scatter]]] = {
    "linear": _linear_terms,
    "convolution": _linear_terms,
    "scale": _scale_terms,
    "embedding": _embedding_terms,
}


def _row_blocks(count: int, per_row: int) -> list[tuple[int, int]]:
    """Bounds of at most BLOCKS blocks of whole inputs, of 16 rows or more each."""
    inputs = count // per_row
    step = max(-(-inputs // BLOCKS), -(-16 // per_row))
    return [(start * per_row, min(inputs, start + step) * per_row) for start in range(0, inputs, step)]


def _accumulate(total: Tensor, terms: Sequence[_Term], per_row: int, symmetric: bool) -> None:
    """Add the terms to `total`, row block by row block; if symmetric, right of the diagonal blocks only."""
    expanded = [None if t.weights is None else t.weights.repeat_interleave(per_row, dim=1) for t in terms]
    bounds = _row_blocks(len(total), per_row)
    buffer = total.new_empty((bounds[0][1] - bounds[0][0]) * total.shape[1])  # one for all tiles: new pages are slow
    for start, stop in bounds:
        first = start if symmetric else 0
        tile = total[start:stop, first:]
        for term, weights in zip(terms, expanded, strict=True):
            if weights is None:
                tile.addmm_(term.rows1[start:stop], term.rows2[first:].T)
            else:
                product = buffer[: tile.numel()].view(tile.shape)
                torch.mm(term.rows1[start:stop], term.rows2[first:].T, out=product)
                scale = weights[start // per_row : stop // per_row, None, first:]
                shape = (-1, per_row, tile.shape[1])
                tile.view(shape).addcmul_(product.view(shape), scale)


def _mirror(total: Tensor, per_row: int) -> None:
    """Copy what lies right of the diagonal blocks to below them."""
    for start, stop in _row_blocks(len(total), per_row):
        total[stop:, start:stop] = total[start:stop, stop:].T


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
