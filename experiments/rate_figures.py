"""The figures of runs over learning rates and doses, and of the effects over admissible learning rates.

Rows are those that the functions of `rate_curves` and `family` return.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from evidence.effects import EffectRange
from evidence.figures import COLORS, curve_grid, subplots
from evidence.findings import Member

from .family import MARGINS
from .run_figures import ARM_LOOKS

OUTCOMES = {"supported": "other", "reversed": "bound", "negligible": "theory", "inconclusive": "third"}
"""Outcome -> its colour among `COLORS`."""


def draw_harm_over_rates(curves: pd.DataFrame) -> Figure:
    """Harm against the learning rate, a row an attack, a column an optimizer; filled markers are admissible."""
    styles = {arm: look | {"marker": "", "lw": 1.3} for arm, look in ARM_LOOKS.items()}
    fig, axes = curve_grid(
        curves, "learning_rate", row="attack", column="optimizer", line="arm", styles=styles, bars="half"
    )
    for (attack, optimizer), ax in axes.items():
        panel = curves[(curves.attack == attack) & (curves.optimizer == optimizer)]
        for arm, look in ARM_LOOKS.items():
            for admissible, part in panel[panel.arm == arm].groupby("admissible"):
                face = look["color"] if admissible else "none"
                ax.plot(
                    part.learning_rate, part["mean"], ls="", marker=look["marker"], ms=6.5 if admissible else 3,
                    color=look["color"], mfc=face,
                )  # fmt: skip
        rates = sorted(panel.learning_rate.unique())[::2]
        ax.set_xscale("log")
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        ax.minorticks_off()
    return fig


def draw_success_over_doses(curves: pd.DataFrame) -> Figure:
    """Attack success against the poisoned samples: at the best rate, with bands over admissible rates."""
    fig, axes = subplots(1, 2, figsize=(6.2, 3.2), sharey=True)
    for ax, (optimizer, panel) in zip(axes, curves.groupby("optimizer", sort=False), strict=True):
        for arm, look in ARM_LOOKS.items():
            part = panel[panel.arm == arm]
            ax.plot(part.samples, part["mean"], label=arm, **look | {"ms": 4})
            ax.fill_between(part.samples, part.lowest, part.highest, color=look["color"], alpha=0.12, lw=0)
        ax.set(title=optimizer, xscale="log", xlabel="poisoned samples of 500")
        samples = sorted(panel.samples.unique())
        ax.set_xticks(samples, [str(n) for n in samples])
        ax.minorticks_off()
    axes[0].set_ylabel("attack success")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def draw_frontier(points: pd.DataFrame) -> Figure:
    """Harm against clean accuracy, and against the share of poison learned; a marker an arm, hollow under SGD."""
    attacks, axes_names = list(points.attack.unique()), ["clean accuracy", "share of poison learned"]
    fig, axes = subplots(2, 2, figsize=(6.2, 5.4), sharey="row", sharex="col")
    for row, attack in zip(axes, attacks, strict=True):
        for ax, name in zip(row, axes_names, strict=True):
            for arm, look in ARM_LOOKS.items():
                for optimizer, part in points[(points.attack == attack) & (points.arm == arm)].groupby("optimizer"):
                    face = look["color"] if optimizer == "AdamW" else "none"
                    label = arm if optimizer == "AdamW" else None
                    ax.plot(part[name], part.harm, look["marker"], color=look["color"], mfc=face, ms=5, label=label)
        row[0].set_ylabel(attack)
    for ax, name in zip(axes[-1], axes_names, strict=True):
        ax.set_xlabel(name)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


SUBJECTS = {
    "finding-1": "method", "finding-2": "rank", "finding-3": "k", "finding-4": "lowest rank", "finding-5": "small k",
}  # fmt: skip
"""What each finding is about, in a word or two; A has variance k/n."""


def draw_outcomes(members: Sequence[Member]) -> Figure:
    """Effects at the best rates (dots), their range over admissible ones (thick), and all intervals (thin).

    The members are in one unit a half; the shaded band is within the margin.
    """
    halves = [[member for member in members if member.half == half] for half in MARGINS]
    fig, axes = subplots(1, 2, figsize=(7.2, 1.0 + 0.42 * max(map(len, halves))))
    for ax, mine in zip(axes, halves, strict=True):
        ax.axvspan(-mine[0].margin, mine[0].margin, color=COLORS["theory"], alpha=0.08, lw=0)
        ax.axvline(0, color=COLORS["theory"], lw=1)
        for place, member in enumerate(mine):
            color, effect = COLORS[OUTCOMES[member.outcome]], member.effect
            ax.plot([effect.low, effect.high], [place, place], color=color, lw=1.2)
            if isinstance(effect, EffectRange):
                ax.plot([effect.lowest, effect.highest], [place, place], color=color, lw=4, alpha=0.5)
            ax.plot(effect.value, place, "o", color=color)
        names = [f"{m.finding[-1]}: {_without_counts(m.setting)}\n{SUBJECTS[m.finding]}, {m.outcome}" for m in mine]
        ax.set_yticks(range(len(mine)), names, fontsize=9)
        ax.set_ylim(len(mine) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        ax.set(title=mine[0].half, xlabel=mine[0].effect.unit)
    return fig


def _without_counts(setting: str) -> str:
    """A setting without its attack or count of samples, which are the panel's."""
    return ", ".join(part for part in setting.split(", ") if " of " not in part and part not in MARGINS)


def draw_memorisation(curves: pd.DataFrame) -> Figure:
    """Harm of flips against the share of them learned, a row a poison rate, a column an optimizer; bands over rates."""
    rows, columns = list(curves.flips.unique()), list(curves.optimizer.unique())
    fig, axes = subplots(len(rows), len(columns), figsize=(6.2, 5.0), sharex=True, sharey="row", squeeze=False)
    for (row, column), ax in zip(itertools.product(rows, columns), axes.flat, strict=True):
        panel = curves[(curves.flips == row) & (curves.optimizer == column)]
        for arm, look in ARM_LOOKS.items():
            part = panel[panel.arm == arm]
            if len(part):
                ax.plot(part.share, part["mean"], label=arm, **look | {"ms": 3.5})
                ax.fill_between(part.share, part.lowest, part.highest, color=look["color"], alpha=0.12, lw=0)
        ax.set_title(f"{column}, {row:.0%} flips", fontsize=10.5)
    for ax in axes[-1]:
        ax.set_xlabel("share of flips learned")
    for ax in axes[:, 0]:
        ax.set_ylabel("harm")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig
