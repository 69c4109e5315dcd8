"""How near the full kernel comes to the time of the matrix products that it cannot do without.

Three bounds of the whole computation are measured in the same process:

- *passes and products*: one forward pass and a backward pass an output as PyTorch makes them, and half of the full
  Gram matrices of activations and of hidden layers' cotangents, as matrix products into memory that is there. The
  kernel's own memory, its check, and products by element are not in it.
- *bare products*: the same, but of the passes the matrix products only. No program that uses this BLAS library is
  faster.
- *peak rate*: the operations of the same, at the rate of one large product. Thin products do not reach it.
"""

from __future__ import annotations

import itertools
from typing import Any

from .races import Contender, Stable, race
from .rows import line

SIZES: dict[str, dict[str, Any]] = {
    "full": {"widths": [784, 1024, 1024, 10], "sizes": [64, 256, 512], "product": 2048},
    "smoke": {"widths": [12, 16, 3], "sizes": [8], "product": 64},
}


def run(stable: Stable, widths: list[int], sizes: list[int], product: int, repeats: int) -> dict[str, Any]:
    """Time over the bound, for the contraction alone and for the whole kernel."""
    races, lines = {}, []
    for n in sizes:
        contenders = [
            Contender("kernel", "kernel", {"widths": widths, "n": n}),
            Contender("contraction", "gram_products", {"widths": widths, "n": n}),
            Contender("passes", "bare_passes", {"widths": widths, "n": n, "outputs": widths[-1]}),
            Contender("products of passes", "bare_products", {"widths": widths, "n": n, "outputs": widths[-1]}),
            Contender("grams", "bare_grams", {"widths": widths, "n": n, "outputs": widths[-1]}),
            Contender("product", "product", {"n": product, "k": product}),
        ]
        records = races[f"n = {n}"] = race(stable, contenders, repeats)
        # CPU seconds: what other processes take from this one does not count
        rate = 2 * product**3 / records["product"]["cpu_seconds"]
        records["product"]["gigaflops"] = rate / 1e9
        bare_grams = records["grams"]["cpu_seconds"] / 2
        passed, multiplied = (records[label]["cpu_seconds"] for label in ("passes", "products of passes"))
        for label, what, bounds, bound, target in (
            ("kernel", "full kernel, checks included", "passes and products", passed + bare_grams, 1.2),
            ("kernel", "full kernel, checks included", "bare products", multiplied + bare_grams, None),
            ("contraction", "products of factors", "bare products", bare_grams, None),
        ):
            seconds = records[label]["cpu_seconds"]
            what = f"{what}, n = {n}, over the bound of {bounds} (CPU time)"
            times = {"ours_seconds": seconds, "bound_seconds": bound}
            lines.append(line(what, seconds / bound, "times the bound", at_most=target, **times))
        for label, what, operations in (
            ("contraction", "products of factors", half_grams(widths, n)),
            ("kernel", "full kernel", half_grams(widths, n) + passes(widths, n)),
        ):
            seconds, bound = records[label]["cpu_seconds"], operations / rate
            what = f"{what}, n = {n}, over the bound of the peak rate (CPU time)"
            times = {"ours_seconds": seconds, "bound_seconds": bound}
            lines.append(line(what, seconds / bound, "times the bound", **times))
    return {"races": races, "lines": lines}


def half_grams(widths: list[int], n: int) -> int:
    """Operations of the upper triangles of all Gram matrices, two a multiply-add; the last cotangents' is known."""
    outputs = n * widths[-1]
    return sum(outputs**2 * hidden for hidden in widths[1:-1]) + sum(n**2 * fan_in for fan_in in widths[:-1])


def passes(widths: list[int], n: int) -> int:
    """Operations of one forward pass and of one backward pass an output."""
    layers = list(itertools.pairwise(widths))
    forward = sum(2 * n * fan_in * fan_out for fan_in, fan_out in layers)
    return forward + sum(2 * n * widths[-1] * fan_in * fan_out for fan_in, fan_out in layers[1:])
