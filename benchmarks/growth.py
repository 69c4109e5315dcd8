"""How time and memory grow with inputs, width, depth and rank, beside the counts of operations and of bytes held."""

from __future__ import annotations

import itertools
from typing import Any

from scipy.stats import linregress

from .matrix_products import passes
from .races import Contender, Stable, race
from .rows import line

SIZES: dict[str, dict[str, Any]] = {
    "full": {"axes": {"n": [64, 128, 256, 512, 1024, 2048, 4096], "width": [256, 512, 1024, 2048, 4096, 8192],
                      "depth": [2, 4, 8, 16, 32], "rank": [1, 4, 16, 64, 128]},
             "at": {"n": 64, "width": 512, "depth": 3, "rank": 8}},
    "smoke": {"axes": {"n": [4, 8, 16], "width": [8, 16], "depth": [2, 3], "rank": [1, 2]},
              "at": {"n": 4, "width": 8, "depth": 3, "rank": 2}},
}  # fmt: skip
INPUT, OUTPUT = 128, 10


def run(stable: Stable, axes: dict[str, list[int]], at: dict[str, int], repeats: int) -> dict[str, Any]:
    """Along each axis: seconds and peak bytes of the kernel summed over outputs, and fitted exponents of both."""
    races, lines, curves = {}, [], []
    for axis, values in axes.items():
        points = [{**at, axis: value} for value in values]
        contenders = [_contender(axis, point) for point in points]
        races[axis] = race(stable, contenders, min(repeats, 4))
        for point, contender in zip(points, contenders, strict=True):
            record = races[axis][contender.label]
            expected = _widths(point), point["n"], point["rank"] if axis == "rank" else 0
            curves.append({"axis": axis, "value": point[axis], "seconds": record["cpu_seconds"],
                           "bytes": record["peak_bytes"], "operations": operations(*expected),
                           "held_bytes": held(*expected)})  # fmt: skip
        lines += _exponents(axis, [c for c in curves if c["axis"] == axis])
    return {"races": races, "lines": lines, "curves": curves}


def _widths(point: dict[str, int]) -> list[int]:
    return [INPUT, *[point["width"]] * (point["depth"] - 1), OUTPUT]


def _contender(axis: str, point: dict[str, int]) -> Contender:
    arguments: dict[str, Any] = {"widths": _widths(point), "n": point["n"]}
    label = f"{axis} = {point[axis]}"
    if axis == "rank":
        return Contender(label, "kernel_of_adapters", {**arguments, "rank": point["rank"]})
    return Contender(label, "kernel", {**arguments, "output": "trace"})


def operations(widths: list[int], n: int, rank: int = 0) -> int:
    """Operations of both passes and of the upper triangles, summed over outputs; with adapters those of theirs too."""
    layers = list(itertools.pairwise(widths))
    grams = sum(n**2 * (widths[-1] * fan_out + (rank or fan_in)) for fan_in, fan_out in layers)
    through_adapters = 2 * n * (1 + widths[-1]) * rank * sum(fan_in + fan_out for fan_in, fan_out in layers)
    return passes(widths, n) + grams + through_adapters


def held(widths: list[int], n: int, rank: int = 0) -> int:
    """Bytes in float32 of cotangents, activations and the kernel; adapters have both, at their rank."""
    entries = sum(widths[-1] * fan_out + fan_in for fan_in, fan_out in itertools.pairwise(widths))
    return 4 * (n * (entries + (len(widths) - 1) * rank * (1 + widths[-1])) + n**2)


def _exponents(axis: str, curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Slopes of time and memory in log-log, from the upper half of the axis on, beside those of the counts."""
    tail = curve[len(curve) // 2 - 1 :] if len(curve) > 3 else curve
    lines = []
    for measured, count, what in (("seconds", "operations", "CPU time"), ("bytes", "held_bytes", "peak memory")):
        known = all(point[measured] for point in tail)
        slope = _slope(tail, measured) if known else None
        reason = None if known else "no growth was seen, as where peak memory cannot be read"
        lines.append(line(f"exponent of {what} in {axis}", slope, "", expected=_slope(tail, count), not_run=reason))
    return lines


def _slope(curve: list[dict[str, Any]], column: str) -> float:
    """Exponent of a column against the axis, by least squares of logarithms."""
    from numpy import log

    return float(linregress(log([p["value"] for p in curve]), log([p[column] for p in curve])).slope)
