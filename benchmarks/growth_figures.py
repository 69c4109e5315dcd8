"""How measured time and memory grow with inputs, width, depth and rank, beside what was counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from evidence.figures import COLORS, MARKERS, log_axes, subplots

AXES = {"n": "inputs", "width": "width", "depth": "linear layers", "rank": "rank of the adapters"}
"""What grows, as recorded -> as printed."""

QUANTITIES = {
    "CPU time": ("seconds", "operations", "CPU seconds"),
    "peak memory": ("megabytes", "held_bytes", "MB"),
}
"""Quantity -> column measured, column expected, label."""


def growth_curves(growth: Mapping[str, Any]) -> pd.DataFrame:
    """The curves of the benchmark "growth", with megabytes beside the bytes."""
    curves = pd.DataFrame(growth["curves"])
    return curves.assign(megabytes=curves["bytes"] / 1e6)


def growth_exponents(growth: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Exponents, measured and expected, of each quantity in each axis: "CPU time in n" and so on."""
    return {x["what"].removeprefix("exponent of "): (x["measured"], x["expected"]) for x in growth["lines"]}


def draw_growth(growth: Mapping[str, Any], quantity: str) -> Figure:
    """A panel for each of `AXES`; the count is scaled to the last measured point.

    Parameters
    ----------
    growth : mapping
        The benchmark "growth", as `report.benchmark` reads it.
    quantity : str
        A key of `QUANTITIES`.
    """
    measured, expected, label = QUANTITIES[quantity]
    curves, exponents = growth_curves(growth), growth_exponents(growth)
    fig, axes = subplots(2, 2, figsize=(6.2, 5.6))
    for ax, (axis, name) in zip(axes.flat, AXES.items(), strict=True):
        curve = curves[curves.axis == axis]
        scale = curve[measured].iloc[-1] / curve[expected].iloc[-1]
        ax.plot(curve.value, curve[measured], MARKERS[0] + "-", color=COLORS["full"], label="measured")
        ax.plot(curve.value, scale * curve[expected], "--", color=COLORS["theory"], label="expected")
        ax.set_ylim(curve[measured].min() / 3, curve[measured].max() * 2)
        log_axes(ax, name, label, curve.value.tolist()[:: 2 if len(curve) > 5 else 1])
        ax.set_title("exponent {:.2f}, expected {:.2f}".format(*exponents[f"{quantity} in {axis}"]))
    axes[0, 0].legend()
    return fig
