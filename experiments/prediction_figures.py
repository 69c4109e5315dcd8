"""The figures of theory against harm: correlations by proxy, clouds of configurations, the step against the rank."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pandas as pd
from matplotlib.figure import Figure

from evidence.effects import Effect
from evidence.figures import COLORS, forest, subplots

from .arms import WORDS
from .prediction import GROUPS, Correlations

METHOD_LOOKS = {"full": ("full", "D"), "matched": ("third", "^"), "head": ("theory", "v"), "lora": ("lora", "o")}
"""Method -> colour among `COLORS`, marker."""

CLOUDS = {"information_bits": "information bits, nats", "cosine_noise": "noise of the cosine"}
"""Proxies that are shown as clouds -> label."""


def draw_correlations(correlations: Correlations) -> Figure:
    """A forest plot an optimizer and attack; lines divide the kinds of proxies."""
    fig, axes = subplots(2, 2, figsize=(7.2, 7.6), sharex=True, sharey=True)
    edges = list(accumulate(len(group) for group in GROUPS.values()))[:-1]
    for ax, ((optimizer, attack), found) in zip(axes.flat, sorted(correlations.items(), reverse=True), strict=True):
        names = [e.name.replace("trace × rate", "trace × learning rate") for e in found]
        forest(ax, found, "lora" if attack == "backdoor" else "full", names)
        ax.set(title=f"{WORDS[optimizer]}, {WORDS[attack]}", xlim=(-1.05, 1.05))
        for edge in edges:
            ax.axhline(edge - 0.5, color=COLORS["theory"], lw=0.6)
    fig.supxlabel("Spearman correlation of proxy and harm")
    return fig


def draw_partial(raw: Correlations, partial: Correlations) -> Figure:
    """What is left of each correlation once rank and clean accuracy are held: grey before, in colour after."""
    fig, axes = subplots(2, 2, figsize=(7.2, 6.0), sharex=True, sharey=True)
    for ax, ((optimizer, attack), found) in zip(axes.flat, sorted(partial.items(), reverse=True), strict=True):
        before = {e.name: e for e in raw[optimizer, attack]}
        places = range(len(found))
        ax.plot([before[e.name].value for e in found], places, "|", ms=12, mew=2, color=COLORS["theory"])
        forest(ax, found, "lora" if attack == "backdoor" else "full", [e.name for e in found])
        ax.set(title=f"{WORDS[optimizer]}, {WORDS[attack]}", xlim=(-1.05, 1.05))
    fig.supxlabel("Spearman correlation of proxy and harm")
    return fig


def draw_clouds(table: pd.DataFrame) -> Figure:
    """Harm of each configuration against two proxies, a row an attack; hollow under SGD."""
    fig, axes = subplots(2, 2, figsize=(7.2, 5.4), sharey="row")
    for row, attack in zip(axes, ("untargeted", "backdoor"), strict=True):
        for ax, (column, label) in zip(row, CLOUDS.items(), strict=True):
            for (method, optimizer), part in table[table.attack == attack].groupby(["method", "optimizer"]):
                color, marker = METHOD_LOOKS[str(method)]
                face = COLORS[color] if optimizer == "adamw" else "none"
                ax.plot(
                    part[column],
                    part.harm,
                    marker,
                    color=COLORS[color],
                    mfc=face,
                    ls="",
                    label=f"{method}, {optimizer}",
                )
            ax.set(xlabel=label)
        row[0].set_ylabel(f"harm, {WORDS[attack]}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    filled = {label.removesuffix(", adamw"): handle for label, handle in zip(labels, handles, strict=True)}
    methods = [method for method in METHOD_LOOKS if method in filled]
    fig.legend([filled[method] for method in methods], methods, loc="outside lower center", ncols=4)
    return fig


def draw_step_and_rank(parts: Sequence[Effect]) -> Figure:
    """A forest plot of `prediction.step_and_rank`."""
    fig, ax = subplots(figsize=(7.2, 4.2))
    forest(ax, parts, "lora")
    ax.set_xlabel("harm spared")
    return fig
