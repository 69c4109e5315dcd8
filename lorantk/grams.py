"""Kernels from layer factors: Gram matrices of activations times Gram matrices of cotangents, at matrix-product speed.

For a layer used at one position the share of its weight is (a . a') (g_c . g'_d). With more positions it is either
the sum over pairs of positions or, where widths are small beside positions, the product of the gradients themselves,
made some rows at a time. Where both batches are the same, only tiles on and above the diagonal are multiplied.

Statements ``eq-2``, ``lem-lora-ntk``. Source: Novak et al. (2022) for the contraction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .validation import check_choice

if TYPE_CHECKING:
    from .layers import LayerFactors

CHUNK = 2**24
"""Entries of the largest temporary that a contraction over positions makes: 64 MiB in float32."""

LEAF = 160
"""Rows of the smallest tile of a symmetric product: of n rows, (1 + LEAF / n) / 2 of the multiply-adds are done."""


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
        if not (first.g[0].any() or first.g.any()):  # dead units, or A behind B = 0
            continue
        terms = _bias_terms if parameter == "bias" else _TERMS[one.kinds[name]]
        for term in terms(first, second, output):
            if isinstance(term, _Scatter):
                term.add_to(total)
            elif len(small) < 64 and term.a1 is not None:
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
    """A summand rows1 @ rows2.T, times a1 @ a2.T if given; rows (n C, k), or (n, C k) for the trace, a (n, fan_in)."""

    rows1: Tensor
    rows2: Tensor
    a1: Tensor | None = None
    a2: Tensor | None = None


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
        rows1 = _rows(one.g, output)
        yield _Term(rows1, rows1 if other.g is one.g else _rows(other.g, output), one.a[:, 0], other.a[:, 0])
        return
    pairs = C * C if output == "full" else C
    by_gradient = (n1 * T1 + n2 * T2) * C * fan_in * fan_out + n1 * n2 * pairs * fan_in * fan_out
    by_position = n1 * n2 * T1 * T2 * (fan_in + pairs * (fan_out + 8))  # 8: products by element are slow
    if by_position < by_gradient:
        for t in range(T1):
            for u in range(T2):
                rows1, rows2 = _rows(one.g[:, :, t], output), _rows(other.g[:, :, u], output)
                yield _Term(rows1, rows2, one.a[:, t], other.a[:, u])
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


def _tiles(start: int, stop: int, per_row: int) -> Iterator[tuple[int, int, int, int]]:
    """Bounds (rows, columns) of tiles of whole inputs that cover the upper triangle: squares, halved down to LEAF.

    Square tiles are as large as can be, which matrix products like better than rows of thin ones.
    """
    inputs = (stop - start) // per_row
    if stop - start <= LEAF or inputs == 1:
        yield start, stop, start, stop
        return
    half = start + inputs // 2 * per_row
    yield start, half, half, stop
    yield from _tiles(start, half, per_row)
    yield from _tiles(half, stop, per_row)


def _accumulate(total: Tensor, terms: Sequence[_Term], per_row: int, symmetric: bool) -> None:
    """Add the terms to `total` tile by tile; if symmetric, to the diagonal tiles and those above them only."""
    n1, n2 = total.shape
    if symmetric:
        tiles = list(_tiles(0, n1, per_row))
    else:
        step = max(per_row, LEAF * 4 // per_row * per_row)
        tiles = [(start, min(n1, start + step), 0, n2) for start in range(0, n1, step)]
    largest = max((stop - start) * (right - left) for start, stop, left, right in tiles)
    buffer = total.new_empty(largest)  # one for all tiles: new pages are slow
    for start, stop, left, right in tiles:
        tile = total[start:stop, left:right]
        inputs, others = slice(start // per_row, stop // per_row), slice(left // per_row, right // per_row)
        for rows1, rows2, a1, a2 in terms:
            if a1 is None or a2 is None:
                tile.addmm_(rows1[start:stop], rows2[left:right].T)
            else:
                product = buffer[: tile.numel()].view(tile.shape)
                torch.mm(rows1[start:stop], rows2[left:right].T, out=product)
                weights = a1[inputs] @ a2[others].T
                weights = weights.repeat_interleave(per_row, dim=1) if per_row > 1 else weights
                shape = (-1, per_row, tile.shape[1])
                tile.view(shape).addcmul_(product.view(shape), weights[:, None])


def _mirror(total: Tensor, per_row: int) -> None:
    """Copy the tiles above the diagonal to below it."""
    for start, stop, left, right in _tiles(0, len(total), per_row):
        if left > start:
            total[left:right, start:stop] = total[start:stop, left:right].T
