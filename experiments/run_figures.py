"""The figures of our own runs: harm against rank, poison rate, variance, scaling and budget, and what arms are spared.

Rows are those that the functions of `arms` of like names return.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evidence.effects import Effect
from evidence.figures import COLORS, MARKERS, curve_grid, forest, subplots

from .arms import ARMS, ATTACKS

METHOD_LOOKS: dict[str, dict[str, Any]] = {
    "full": {"color": COLORS["full"], "ls": "--"},
    "head": {"color": COLORS["theory"], "ls": ":"},
    "lora": {"color": COLORS["lora"], "marker": "o", "ms": 4},
}
ARM_LOOKS: dict[str, dict[str, Any]] = {
    "full": {"color": COLORS["full"], "ls": "--", "marker": "D"},
    "head": {"color": COLORS["theory"], "ls": ":", "marker": "v"},
    "LoRA, r = 1": {"color": COLORS["lora"], "marker": MARKERS[0]},
    "LoRA, r = 8": {"color": COLORS["other"], "marker": MARKERS[1]},
    "LoRA, r = 64": {"color": COLORS["third"], "marker": MARKERS[2]},
}
"""Arm -> its look."""

LEARNING_RATES = {"one rate": "one learning rate", "a rate each": "a learning rate each"}


def draw_ranks(curves: pd.DataFrame) -> Figure:
    """Harm against the rank, beside the levels of full fine-tuning and of the head alone."""
    fig, axes = _curves(curves, "rank", "method", METHOD_LOOKS)
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
    return fig


def draw_poison_rates(curves: pd.DataFrame) -> Figure:
    """Attack success of each arm against the poison rate."""
    fig, axes = _curves(curves, "poison_rate", "arm", {arm: look | {"ms": 4} for arm, look in ARM_LOOKS.items()})
    for ax in axes:
        ax.set(xscale="log", xlabel="share of poisoned samples")
    return fig


def draw_variances(curves: pd.DataFrame) -> Figure:
    """Harm against k in the variance k/n, at one learning rate and at each arm's own."""
    styles = {
        "one learning rate": {"color": COLORS["lora"], "marker": "o", "ms": 4},
        "a learning rate each": {"color": COLORS["third"], "marker": "s", "ms": 4, "ls": ":"},
    }
    fig, axes = _curves(curves.replace({"rate": LEARNING_RATES}), "k", "rate", styles)
    for ax in axes:
        ax.set(xscale="log", xlabel="k in the variance k/n")
    return fig


def draw_scalings(curves: pd.DataFrame) -> Figure:
    """Harm under each rule for the scaling."""
    looks = {"ls": "", "ms": 5}
    styles = {
        "r = 1": {"color": COLORS["lora"], "marker": "o"} | looks,
        "r = 64": {"color": COLORS["third"], "marker": "s"} | looks,
    }
    return _curves(curves, "rule", "arm", styles)[0]


def draw_budgets(curves: pd.DataFrame) -> Figure:
    """Harm of each arm against the number of steps."""
    styles = {arm: look | {"ms": 4} for arm, look in ARM_LOOKS.items() if arm in set(curves.arm)}
    fig, axes = _curves(curves, "steps", "arm", styles)
    for ax in axes:
        ax.set(xscale="log", xlabel="steps")
    return fig


def draw_text(curves: pd.DataFrame) -> Figure:
    """Harm of each arm on text, one row a panel of attack and task."""
    places = {arm: place for place, arm in enumerate(ARMS.values())}
    styles = {arm: look | {"ms": 5, "ls": ""} for arm, look in ARM_LOOKS.items()}
    fig, axes = _curves(curves.assign(place=curves.arm.map(places)), "place", "arm", styles, row="panel")
    for ax in axes:
        ax.set(xticks=[], xlabel="")
    return fig


def _curves(
    curves: pd.DataFrame, x: str, line: str, styles: Mapping[str, Mapping[str, Any]], row: str = "attack"
) -> tuple[Figure, list[Axes]]:
    fig, axes = curve_grid(curves, x, row=row, column="optimizer", line=line, styles=styles, bars="half")
    return fig, list(axes.values())


def draw_spared(effects: Sequence[Effect], poison_rates: Mapping[str, float], height: float, xlabel: str) -> Figure:
    """Forest plots of `arms.harm_spared`, one panel an attack."""
    fig, axes = subplots(1, 2, figsize=(7.2, height), sharey=True)
    for ax, (attack, share) in zip(axes, poison_rates.items(), strict=True):
        forest(ax, [e for e in effects if e.unit == attack], "lora")
        ax.set(title=f"harm, {share:.0%} {ATTACKS[attack]}", xlabel=xlabel)
    return fig
