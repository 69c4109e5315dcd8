"""Kernels from layer factors: Gram matrices of activations times Gram matrices of cotangents, at matrix-product speed.

For a layer used at one position the share of its weight is (a . a') (g_c . g'_d). With more positions it is either
the sum over pairs of positions or, where widths are small beside positions, the product of the gradients themselves,
made some rows at a time. Where both batches are the same, only tiles on and above the diagonal are multiplied.

Statements ``eq-2``, ``lem-lora-ntk``. Source: Novak et al. (2022) for the contraction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .batches import check_choice, uncast

if TYPE_CHECKING:
    from .factors import LayerFactors

CHUNK, SMALL = 2**24, 2**22
"""Entries of the largest temporary that a contraction over positions makes (64 MiB in float32), and of a quick one."""

LEAF, PIECE = 160, 512
"""Rows of the smallest tile of a symmetric product: of n rows, (1 + LEAF / n) / 2 of the multiply-adds are done; and
rows of the pieces that are transposed at once."""


@uncast()
def gram(
    one: LayerFactors, other: LayerFactors, uses: Iterable[tuple[str, str]] | None = None, output: str = "full"
) -> Tensor:
    """Kernel of some parameters: sum over (layer, "weight" or "bias") in `uses` of the products of their gradients.

    Parameters
    ----------
    one, other : LayerFactors
        Of n1 and n2 inputs of one model. Where `other` is `one`, only the upper triangle is multiplied.
    uses : iterable of (layer name, "weight" or "bias"), optional
        None for the weight of every layer.
    output : {"full", "trace"}

    Returns
    -------
    Tensor (n1, C, n2, C), or (n1, n2) summed over outputs for ``output="trace"``

    Notes
    -----
    Statements ``eq-2``, ``lem-lora-ntk``: of ``factors.project({name: A})`` it is the kernel of B behind A at B = 0.
    """
    check_choice("output", output, ("full", "trace"))
    n1, C = one.outputs.shape[:2]
    n2 = len(other.outputs)
    per_input = C if output == "full" else 1
    total = one.outputs.new_zeros(n1 * per_input, n2 * per_input, dtype=accumulator(one.outputs.dtype))
    symmetric = other is one
    scratch = _Scratch(total)
    waiting: list[_Term] = []  # terms held for one pass over the tiles of `total`
    uses = [(name, "weight") for name in one.kinds] if uses is None else list(uses)
    with_bias = {  # W a + b is one weight on (a, 1), which saves a product of cotangents
        name for name, parameter in uses
        if parameter == "bias" and (name, "weight") in uses and at_one_position(one, other, name)
    }  # fmt: skip
    products = [(name, parameter) for name, parameter in uses if parameter == "weight" or name not in with_bias]
    for name, parameter in tqdm(products, "parameters", delay=2, leave=False):
        first = _side(one, name, with_bias)
        second = first if symmetric else _side(other, name, with_bias)
        if not (first.g[0].any() or first.g.any()):  # dead units, or A behind B = 0
            continue
        if output == "full" and parameter == "weight" and one.kinds[name] == "linear" and _is_last(first, second):
            diagonal = total.view(n1, C, n2, C).diagonal(0, 1, 3)
            diagonal += (first.a[:, 0] @ second.a[:, 0].T)[:, :, None]
            continue
        terms = _bias_terms if parameter == "bias" else _TERMS[one.kinds[name]]
        for term in terms(first, second, output, scratch):
            if isinstance(term, _Scatter):
                term.add_to(total)
            elif len(waiting) < 64 and term.a1 is not None:
                waiting.append(term)
            else:
                _accumulate(total, [term], per_input, symmetric, scratch)
    if waiting:
        _accumulate(total, waiting, per_input, symmetric, scratch)
    if symmetric:
        _mirror(total, per_input)
    return total.view(n1, C, n2, C) if output == "full" else total


@uncast()
def diagonal_gram(one: LayerFactors, other: LayerFactors, uses: Iterable[tuple[str, str]]) -> Tensor:
    """Kernel of each input with the same input of `other`: sum_tu (a_t . a'_u) (g_ct . g'_du), in time O(n).

    Parameters
    ----------
    one, other : LayerFactors
        Of n inputs each.
    uses : iterable of (layer name, "weight" or "bias")

    Returns
    -------
    Tensor (n, C, C)
    """
    n, C = one.outputs.shape
    total = one.outputs.new_zeros(n, C, C, dtype=accumulator(one.outputs.dtype))
    for name, parameter in uses:
        first, second = _side(one, name), _side(other, name)
        if parameter == "bias":
            total += first.g.sum(2) @ second.g.sum(2).mT
        elif one.kinds[name] == "grouped":
            total += _grouped_gradients(first) @ _grouped_gradients(second).mT
        elif one.kinds[name] == "scale":
            total += (first.g * first.a[:, None]).sum(2) @ (second.g * second.a[:, None]).sum(2).mT
        else:
            if one.kinds[name] == "embedding":
                products = ((first.a[:, :, None] == second.a[:, None]) & (first.a >= 0)[:, :, None]).to(total.dtype)
            else:
                products = first.a @ second.a.mT
            total += first.g.flatten(2) @ torch.einsum("ntu,nduo->ndto", products, second.g).flatten(2).mT
    return total


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that products are summed in: float32 for half precision."""
    return torch.promote_types(dtype, torch.float32)


class _Side(NamedTuple):
    """One layer's activations (n, T, fan_in) or indices (n, T), and cotangents (n, C, T, fan_out)."""

    a: Tensor
    g: Tensor


class _Scratch:
    """Memory that the products of one kernel use again and again: new pages are slow."""

    def __init__(self, like: Tensor) -> None:
        self.held = dict.fromkeys(("one", "other", "tile"), like.new_empty(0))

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape, which the next one of this name overwrites."""
        count = math.prod(shape)
        if len(self.held[name]) < count:
            self.held[name] = self.held[name].new_empty(count)
        return self.held[name][:count].view(shape)


class _Term(NamedTuple):
    """A summand rows1 @ rows2.T, times a1 @ a2.T if given; rows (n C, k), or (n, C k) for the trace, a (n, fan_in)."""

    rows1: Tensor
    rows2: Tensor
    a1: Tensor | None = None
    a2: Tensor | None = None


def _side(factors: LayerFactors, name: str, with_bias: Collection[str] = ()) -> _Side:
    a, g = factors.activations[name], factors.cotangents[name]
    dtype = accumulator(factors.outputs.dtype)
    a = a.to(dtype) if a.is_floating_point() else a
    return _Side(nn.functional.pad(a, (0, 1), value=1.0) if name in with_bias else a, g.to(dtype))


def at_one_position(one: LayerFactors, other: LayerFactors, name: str) -> bool:
    """Whether a layer is a linear map of one vector an input: its weight's share is (a . a') (g . g')."""
    linear = _TERMS[one.kinds[name]] is _linear_terms
    return linear and one.cotangents[name].shape[2] == other.cotangents[name].shape[2] == 1


def _is_last(one: _Side, other: _Side) -> bool:
    """Whether the outputs of a linear layer are the model's: then g_c . g'_d is 1 for c = d, else 0."""

    def identities(g: Tensor) -> bool:
        n, C, T, fan_out = g.shape
        return T == 1 and fan_out == C and torch.equal(g[:, :, 0], torch.eye(C).to(g).expand(n, C, C))

    return identities(one.g) and (other.g is one.g or identities(other.g))


def _rows(gradients: Tensor, output: str) -> Tensor:
    """Gradients (n, C, ...) as rows: one per input and output, or one per input for the trace."""
    return gradients.flatten(2).flatten(0, 1) if output == "full" else gradients.flatten(1)


# A linear layer, y_t = W a_t at positions t, has the gradient sum_t g_t a_t^T by W. Shapes, n inputs, C outputs:
#
#   a   activations    (n, T, fan_in)           rows   (n C, k), or (n, C k) for the trace
#   g   cotangents     (n, C, T, fan_out)       total  (n1 C, n2 C), or (n1, n2)
#
#   one position          (a . a') (g . g')                            n1 n2 (fan_in + C^2 fan_out) multiply-adds
#   pairs of positions    sum_tu (a_t . a'_u) (g_t . g'_u)             T1 T2 times as many
#   gradients             (sum_t g_t a_t^T) . (sum_u g'_u a'_u^T)      n1 n2 C^2 fan_in fan_out, and making them


def _linear_terms(one: _Side, other: _Side, output: str, scratch: _Scratch) -> Iterator[_Term]:
    """The cheapest of the three ways in the table above."""
    T1, T2 = one.g.shape[2], other.g.shape[2]
    if T1 == T2 == 1 or _pairs_are_cheaper(one, other, output):
        yield from _position_terms(one, other, output)
    else:
        yield from _gradient_terms(one, other, output, scratch)


def _pairs_are_cheaper(one: _Side, other: _Side, output: str) -> bool:
    """Compare multiply-adds; a product by element, memory-bound, counts as eight."""
    (n1, C, T1, fan_out), n2, T2, fan_in = one.g.shape, len(other.g), other.g.shape[2], one.a.shape[2]
    products = C * C if output == "full" else C
    by_gradient = (n1 * T1 + n2 * T2) * C * fan_in * fan_out + n1 * n2 * products * fan_in * fan_out
    by_position = n1 * n2 * T1 * T2 * (fan_in + products * (fan_out + 8))
    return by_position < by_gradient


def _position_terms(one: _Side, other: _Side, output: str) -> Iterator[_Term]:
    """(a_t . a'_u) (g_t . g'_u) for each pair of positions."""
    for t in range(one.g.shape[2]):
        rows = _rows(one.g[:, :, t], output)
        for u in range(other.g.shape[2]):
            same = other.g is one.g and t == u
            yield _Term(rows, rows if same else _rows(other.g[:, :, u], output), one.a[:, t], other.a[:, u])


def _gradient_terms(one: _Side, other: _Side, output: str, scratch: _Scratch) -> Iterator[_Term]:
    """The gradients themselves, for some rows of W at once; each term is used up before the next one is made."""
    C, fan_out, fan_in = one.g.shape[1], one.g.shape[3], one.a.shape[2]
    row = max(len(one.g), len(other.g)) * C * fan_in
    step = max(1, min(CHUNK // row, max(16, SMALL // row)))
    for part in (slice(start, min(start + step, fan_out)) for start in range(0, fan_out, step)):
        rows = _gradient_rows(one, part, output, scratch, "one")
        yield _Term(rows, rows if other.g is one.g else _gradient_rows(other, part, output, scratch, "other"))


def _gradient_rows(side: _Side, part: slice, output: str, scratch: _Scratch, name: str) -> Tensor:
    """sum_t g_t a_t^T for some rows of W, flattened."""
    g = side.g[..., part].mT
    n, C, rows = g.shape[:3]
    gradients = scratch.take(name, n, C * rows, side.a.shape[2])
    torch.bmm(g.reshape(n, C * rows, -1), side.a, out=gradients)
    return _rows(gradients.view(n, C, rows, -1), output)


def _bias_terms(one: _Side, other: _Side, output: str, scratch: _Scratch) -> Iterator[_Term]:
    rows1 = _rows(one.g.sum(2), output)
    yield _Term(rows1, rows1 if other.g is one.g else _rows(other.g.sum(2), output))


def _scale_terms(one: _Side, other: _Side, output: str, scratch: _Scratch) -> Iterator[_Term]:
    """y = w * a + b by element: the gradient by w is sum_t g_t * a_t."""
    rows1 = _rows((one.g * one.a[:, None]).sum(2), output)
    yield _Term(rows1, rows1 if other.g is one.g else _rows((other.g * other.a[:, None]).sum(2), output))


def _grouped_terms(one: _Side, other: _Side, output: str, scratch: _Scratch) -> Iterator[_Term]:
    """A convolution in groups of channels has few weights: its gradients are made as they are."""
    rows1 = _rows(_grouped_gradients(one), output)
    yield _Term(rows1, rows1 if other.g is one.g else _rows(_grouped_gradients(other), output))


def _grouped_gradients(side: _Side) -> Tensor:
    """sum_t g_tk a_tk^T for each group k, flattened: (n, C, groups x fan_out x fan_in), fans of one group."""
    g = side.g.unflatten(3, (side.a.shape[2], -1))
    return torch.einsum("nctkf,ntki->nckfi", g, side.a).flatten(2)


class _Scatter(NamedTuple):
    """A summand of the kernel between some rows and columns only."""

    rows: Tensor
    columns: Tensor
    values: Tensor

    def add_to(self, total: Tensor) -> None:
        total[self.rows[:, None], self.columns] += self.values


def _embedding_terms(one: _Side, other: _Side, output: str, scratch: _Scratch) -> Iterator[_Scatter]:
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


_TERMS: dict[str, Callable[[_Side, _Side, str, _Scratch], Iterator[_Term | _Scatter]]] = {
    "linear": _linear_terms,
    "convolution": _linear_terms,
    "transposed": _linear_terms,
    "grouped": _grouped_terms,
    "scale": _scale_terms,
    "embedding": _embedding_terms,
}


def _tiles(start: int, stop: int, per_input: int) -> Iterator[tuple[int, int, int, int]]:
    """Bounds (rows, columns) of tiles of whole inputs that cover the upper triangle: squares, halved down to LEAF.

    Square tiles are as large as can be, which matrix products like better than rows of thin ones.
    """
    inputs = (stop - start) // per_input
    if stop - start <= LEAF or inputs == 1:
        yield start, stop, start, stop
        return
    half = start + inputs // 2 * per_input
    yield start, half, half, stop
    yield from _tiles(start, half, per_input)
    yield from _tiles(half, stop, per_input)


def _accumulate(total: Tensor, terms: Sequence[_Term], per_input: int, symmetric: bool, scratch: _Scratch) -> None:
    """Add the terms to `total` tile by tile; if symmetric, to the diagonal tiles and those above them only."""
    tiles = list(_tiles(0, len(total), per_input) if symmetric else _bands(total, per_input))
    for start, stop, left, right in tiles:
        tile = total[start:stop, left:right]
        for rows1, rows2, a1, a2 in terms:
            rows1, rows2 = rows1[start:stop], rows2[left:right]
            if a1 is None or a2 is None:
                tile.addmm_(rows1, rows2.T)
                continue
            cotangents = torch.mm(rows1, rows2.T, out=scratch.take("tile", *tile.shape))
            a1, a2 = a1[start // per_input : stop // per_input], a2[left // per_input : right // per_input]
            _add_scaled(tile, cotangents, a1 @ a2.T, per_input)


def _add_scaled(tile: Tensor, cotangents: Tensor, activations: Tensor, per_input: int) -> None:
    """tile += cotangents * activations, where each entry of `activations` scales per_input x per_input entries."""
    if per_input > 1:
        activations = activations.repeat_interleave(per_input, dim=1)
    by_input = (-1, per_input, tile.shape[1])
    tile.view(by_input).addcmul_(cotangents.view(by_input), activations[:, None])


def _bands(total: Tensor, per_input: int) -> Iterator[tuple[int, int, int, int]]:
    """Bounds of tiles that cover all of `total`: about 4 LEAF rows each, whole inputs, all columns."""
    step = max(per_input, LEAF * 4 // per_input * per_input)
    for start in range(0, len(total), step):
        yield start, min(len(total), start + step), 0, total.shape[1]


def _mirror(total: Tensor, per_input: int) -> None:
    """Copy the tiles above the diagonal to below it, in pieces, since a large matrix is slow to read by columns."""
    for start, stop, left, right in _tiles(0, len(total), per_input):
        if left > start:
            for rows in range(start, stop, PIECE):
                for columns in range(left, right, PIECE):
                    piece = total[rows : min(rows + PIECE, stop), columns : min(columns + PIECE, right)]
                    total[columns : columns + piece.shape[1], rows : rows + piece.shape[0]] = (
                        piece.contiguous().T.contiguous()
                    )
