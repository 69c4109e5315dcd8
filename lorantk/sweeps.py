"""Kernels of many adapter draws from one set of layer factors: one more kernel costs a product by element.

Statement ``lem-lora-ntk``: K = sum_l s^2 (A a . A a') (g . g') at B = 0, so the Gram matrices of cotangents are shared
by all draws, and draws that differ by a common factor share all but a multiplication.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .batches import Batch, check_choice, check_pair, collect, size, uncast
from .factors import LayerFactors
from .grams import at_one_position, gram
from .layers import adaptable_layers, fans
from .lora import LoRA

TILE = 2**17
"""Entries of a kernel that are made at once: 512 KiB in float32, still in the cache while its multiples are written."""


def lora_ntk_sweep(
    model: nn.Module,
    x1: Batch,
    x2: Batch | None = None,
    *,
    loras: Iterable[LoRA],
    seeds: Iterable[int],
    output: str = "full",
    nested: bool = False,
) -> Tensor:
    """Kernels of many adapter draws, at B = 0, from one set of layer factors.

    Parameters
    ----------
    model, x1, x2, output
        As in `lorantk.kernels.ntk`.
    loras : iterable of LoRA
    seeds : iterable of int
    nested : bool
        Cut the A of every rank from one draw: its first rows at the largest rank among `loras`.

    Returns
    -------
    Tensor (len(loras), len(seeds), n1, C, n2, C), or (len(loras), len(seeds), n1, n2) for "trace"
        Entry [i, j] equals ``ntk(loras[i].attach(model, seeds[j]), x1, x2, output=output)``, or with `nested` the
        kernel of the adapters cut from the common draw.

    Raises
    ------
    TypeError, ValueError
        As `ntk`; also if `loras` or `seeds` is empty.

    Notes
    -----
    Statement ``lem-lora-ntk``: K = sum_l s^2 (A a . A a') (g . g'), so only A changes between draws, and draws that
    differ by a common factor share one product.
    """
    check_choice("output", output, ("full", "trace"))
    loras, seeds = list(loras), list(seeds)
    if not loras or not seeds:
        raise ValueError(f"loras and seeds must not be empty; got {len(loras)} and {len(seeds)}")
    x1, x2 = collect(x1), collect(x2) if x2 is not x1 else None
    x2 = check_pair(model, x1, x2)
    names = list(dict.fromkeys(name for lora in loras for name in adaptable_layers(model, lora.layers)))
    drawn = [n for lora in loras if lora.variance == "peft" for n in adaptable_layers(model, lora.layers)]
    if any(isinstance(model.get_submodule(name), nn.Embedding) for name in drawn):
        raise ValueError("loras must start at B = 0; variance 'peft' draws B of an embedding: attach it and call ntk")
    one = LayerFactors.from_model(model, x1, names)
    other = one if x2 is x1 else LayerFactors.from_model(model, x2, names)
    n1, n2, C = size(x1), size(x2), one.outputs.shape[1]
    shape = (n1, C, n2, C) if output == "full" else (n1, n2)
    kernels = next(model.get_submodule(names[0]).parameters()).new_empty(len(loras), len(seeds), *shape).detach()
    cotangents = {
        name: gram(one, other, [(name, "bias")], output) for name in names if at_one_position(one, other, name)
    }
    rank = max(lora.rank for lora in loras) if nested else None
    groups = _multiples(model, loras)
    for j, seed in enumerate(tqdm(seeds, "seeds", delay=2, leave=False)):
        for group in groups:
            lora = loras[next(iter(group))]
            draw = lora.sample(model, seed) if rank is None else lora.sample_nested(model, seed, rank)
            matrices = {name: lora.scaling * A for name, A in draw.items()}
            products, rest = _products(one, other, matrices, cotangents, output)
            _write([(kernels[i, j], factor) for i, factor in group.items()], products, rest)
    return kernels


def _multiples(model: nn.Module, loras: Sequence[LoRA]) -> list[dict[int, float]]:
    """Indices into `loras`, grouped where kernels differ by a factor: {index: factor relative to the group's first}."""
    groups: dict[object, dict[int, float]] = {}
    for i, lora in enumerate(loras):
        widths = {name: fans(layer)[0] for name, layer in adaptable_layers(model, lora.layers).items()}
        strengths = {name: lora.scaling**2 * lora.entry_variance(width) for name, width in widths.items()}
        strongest = max(strengths.values()) or 1.0  # a variance of 0 makes a group of its own
        relative = tuple((name, strength / strongest) for name, strength in strengths.items())
        groups.setdefault((lora.rank, lora.law, relative), {})[i] = strongest
    return [{i: strength / next(iter(group.values())) for i, strength in group.items()} for group in groups.values()]


@uncast()
def _products(
    one: LayerFactors, other: LayerFactors, matrices: dict[str, Tensor], cotangents: dict[str, Tensor], output: str
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """The kernel of B behind the given A as sum of products by element, and of what has no such product.

    Returns
    -------
    list of (Tensor (n1, C, n2, C), Tensor (n1, n2))
        For layers in `cotangents`: the Gram matrix of cotangents, which all draws share, and (A a) . (A a').
    Tensor (n1, C, n2, C)
        The kernel of the other layers. For ``output="trace"`` all are (n1, n2).
    """
    first = one.project(matrices)
    second = first if other is one else other.project(matrices)
    products = [
        (cotangents[name], first.activations[name][:, 0] @ second.activations[name][:, 0].T)
        for name in matrices
        if name in cotangents
    ]
    return products, gram(first, second, [(name, "weight") for name in matrices if name not in cotangents], output)


def _write(targets: Sequence[tuple[Tensor, float]], products: Sequence[tuple[Tensor, Tensor]], rest: Tensor) -> None:
    """Write factor * (rest + sum of products) to each (kernel, factor) in `targets`, some rows of each at a time.

    Kernels are seen as (n1, C, n2 C), with C = 1 for the trace: rows of inputs are contiguous in all of them.
    """
    n1, n2 = rest.shape[0], rest.shape[len(rest.shape) // 2]
    C = rest.shape[1] if rest.ndim == 4 else 1

    def part(kernel: Tensor, rows: slice) -> Tensor:
        return kernel.view(n1, C, n2 * C)[rows]

    step = max(1, TILE // (C * C * n2))
    for rows in (slice(start, start + step) for start in range(0, n1, step)):
        tile = part(rest, rows)
        for cotangents, activations in products:
            tile.addcmul_(part(cotangents, rows), activations[rows].repeat_interleave(C, dim=1)[:, None])
        for kernel, factor in targets:
            torch.mul(tile, factor, out=part(kernel, rows))
