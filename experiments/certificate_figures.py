"""The figure of the order through training: certificate, order and loss by step, a panel an optimizer and scaling."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from evidence.figures import COLORS, subplots

from .arms import WORDS

LINES = {
    "certificate": ("certificate", "bound", "-"),
    "worst layer": ("c of the worst layer", "lora", "--"),
    "all layers": ("c of all layers together", "lora", "-"),
    "loss": ("loss", "theory", ":"),
}
"""Column -> its label, colour and style."""


def draw_along(worst: pd.DataFrame) -> Figure:
    """The columns of `LINES` against the step, a line a seed, SGD above AdamW, scalings side by side."""
    optimizers, scalings = ("sgd", "adamw"), sorted(worst.scaling.unique())
    fig, axes = subplots(2, len(scalings), figsize=(7.2, 5), sharex=True, sharey=True, squeeze=False)
    for row, optimizer in zip(axes, optimizers, strict=True):
        for ax, scaling in zip(row, scalings, strict=True):
            part = worst[(worst.optimizer == optimizer) & (worst.scaling == scaling)]
            for column, (label, color, style) in LINES.items():
                lines = part.pivot_table(index="step", columns="seed", values=column)
                names = [label] + [None] * (lines.shape[1] - 1)
                ax.plot(lines.index, lines, color=COLORS[color], ls=style, lw=1.2, label=names)
            ax.axhline(1, color=COLORS["other"], ls="--")
            ax.set(yscale="log", title=f"{WORDS[optimizer]}, s = {scaling:g}")
    for ax in axes[-1]:
        ax.set_xlabel("step")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig
