"""The figures of the published numbers: sweeps as small multiples, tables as dots, effects and gaps with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evidence.figures import COLORS, MARKERS, curve_grid, forest, subplots

from .published import SCOPES, Effects, initialisations

METHOD_LOOKS = {
    "FF": {"color": COLORS["full"], "marker": "o", "ms": 4},
    "LoRA": {"color": COLORS["lora"], "marker": "s", "ms": 4},
}
POISON_LOOKS = {
    "with poison": {"color": COLORS["lora"], "marker": "s", "ms": 4},
    "without": {"color": COLORS["theory"], "marker": "o", "ms": 4, "ls": "--"},
}
DASHES = {"precision": ":", "recall": "--", "f1": "-"}
ATTACKS = {"flips": "bound", "backdoor": "third"}
"""Attack -> its colour among `COLORS`."""


def draw_accuracies(rows: pd.DataFrame, x: str, floors: pd.Series | None = None) -> Figure:
    """Curves of `published.accuracy_curves`, a row a task; `floors` are dotted where inputs carry the trigger."""
    line, styles = ("method", METHOD_LOOKS) if x == "poison_rate" else ("arm", POISON_LOOKS)
    fig, axes = curve_grid(rows, x, row="task", column="experiment", line=line, styles=styles)
    for task, floor in ({} if floors is None else floors).items():
        axes[task, "backdoor, triggered"].axhline(floor, color=COLORS["bound"], ls=":", lw=1.4)
    _scale(axes, x, base=2 if x == "rank" else 10)
    if x == "rank":
        for ax in axes.values():
            ax.set_xticks([4, 16, 64, 256], ["4", "16", "64", "256"])
    return fig


def draw_metrics(rows: pd.DataFrame, x: str) -> Figure:
    """Curves of `published.metric_curves`, a row a task: colour tells the arm, dashes the metric."""
    arms: dict[str, dict[str, Any]] = METHOD_LOOKS if x == "poison_rate" else POISON_LOOKS
    thin = {"ms": 3, "lw": 1.3}
    styles = {
        f"{arm}, {metric}": look | thin | {"ls": ls} for arm, look in arms.items() for metric, ls in DASHES.items()
    }
    fig, axes = curve_grid(rows, x, row="task", column="experiment", line="line", styles=styles)
    _scale(axes, x)
    return fig


def _scale(axes: Mapping[Any, Any], x: str, base: int = 10) -> None:
    for ax in axes.values():
        if x == "poison_rate":
            ax.xaxis.set_major_locator(MaxNLocator(4))
        else:
            ax.set_xscale("log", base=base)


def draw_tables(tables: pd.DataFrame) -> Figure:
    """The paper's tables 1, 3 and 2 as dots with one standard deviation."""
    fig, axes = subplots(3, 1, figsize=(6.2, 6.4), height_ratios=[4, 3, 6])
    titles = {1: "table 1: SST-2, triggered accuracy", 3: "table 3: Alpaca, attack success rate"}
    for ax, (number, title) in zip(axes, titles.items(), strict=False):
        for marker, color, name in zip(MARKERS, ("full", "lora"), ("FF", "LoRA"), strict=False):
            part = tables[(tables.table == number) & (tables.method == name)]
            ax.errorbar(part["mean"], part.attack, xerr=part["std"], fmt=marker, color=COLORS[color], label=name)
        ax.set_title(title)
        ax.margins(y=0.2)
    axes[0].legend(loc="center", ncols=2)
    by_poison_rate = initialisations(tables).groupby("poison_rate")
    for marker, color, (poison_rate, part) in zip(MARKERS, ("theory", "lora"), by_poison_rate, strict=False):
        look = {"fmt": marker, "color": COLORS[color], "label": f"poison rate {poison_rate:g}"}
        axes[2].errorbar(part["mean"], part.label, xerr=part["std"], **look)
    axes[2].set_title("table 2: SST-2, LoRA, triggered accuracy")
    axes[2].legend(loc="lower left")
    return fig


def draw_effects(effects: Effects) -> Figure:
    """A forest plot for each entry of `published.effects_by_task`."""
    fig, axes = subplots(4, 2, figsize=(6.2, 8.4), sharey=True)
    for ax, ((finding, title), found) in zip(axes.flat, effects.items(), strict=True):
        forest(ax, found, ATTACKS[title.split(":")[0]], SCOPES)
        ax.set_title(f"{finding}\n{title}", fontsize=10.5)
    return fig


def draw_gaps(gaps: pd.DataFrame) -> Figure:
    """`published.gaps_table`: a row a task, a column an attack; filled markers are kept."""
    fig, axes = subplots(4, 2, figsize=(6.2, 7.2), sharex="col", sharey="row")
    for row, (task, some) in zip(axes, gaps.groupby("task"), strict=True):
        for ax, (attack, color) in zip(row, ATTACKS.items(), strict=True):
            for stays, part in some[some.attack == attack].groupby("kept"):
                ends = [part.value - part.low, part.high - part.value]
                face = COLORS[color] if stays else "none"
                ax.errorbar(part.poison_rate, part.value, ends, fmt="o", ms=4.5, color=COLORS[color], mfc=face)
            ax.axhline(0, color=COLORS["theory"], lw=1)
            ax.set_title(f"{task}, {attack}", fontsize=10.5)
    for ax in axes[-1]:
        ax.set_xlabel("poison rate")
    fig.supylabel("accuracy, above 0 as the finding says")
    return fig


def draw_crossings(curves: Mapping[str, pd.DataFrame], crossings: pd.DataFrame) -> Figure:
    """Each task's curve of `potency.curves_by_task` with its floor, its level and where the methods cross it."""
    fig, axes = subplots(2, 2, figsize=(6.2, 5.4), sharex=True)
    for ax, (task, curve) in zip(axes.flat, curves.items(), strict=False):
        for marker, (name, look) in zip(MARKERS, METHOD_LOOKS.items(), strict=False):
            mean, std = curve["mean"].loc[name], curve["std"].loc[name]
            ax.errorbar(mean.index, mean, std, marker=marker, color=look["color"], label=name, elinewidth=1)
        read = crossings[crossings.task == task]
        ax.plot(read.rate, read.level, "X", color=COLORS["bound"], ms=9)
        ax.axhline(read.floor.iloc[0], color=COLORS["theory"], ls=":", lw=1.2)
        ax.axhline(read.level.iloc[0], color=COLORS["bound"], ls="--", lw=1.2)
        ax.set(title=task, xscale="log", xlabel="poison rate" if ax in axes[1] else "")
        ax.set_xticks([0.001, 0.002, 0.004], ["0.1 %", "0.2 %", "0.4 %"])
        ax.minorticks_off()
    axes[0, 0].legend()
    return fig
