"""The figure of the order through training: certificate, order and loss by step, a panel an optimizer and scaling."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from evidence.figures import COLORS, subplots

from .arms import WORDS

LINES = {"certificate": ("certificate", "bound"), "ratio": ("the order itself, c", "lora"), "loss": ("loss", "theory")}
"""Column -> its label and colour."""

RUN = ["optimizer", "scaling", "seed", "step"]
"""Columns that name a checkpoint of a run."""


def worst_layer(orders: pd.DataFrame) -> pd.DataFrame:
    """The largest certificate and ratio over the layers of `certificate.follow`, with loss and accuracy, by `RUN`.

    A scaling may be text, as recorded ones are.
    """
    how = {"certificate": "max", "ratio": "max", "loss": "first", "accuracy": "first"}
    return orders.astype({"scaling": float}).groupby(RUN)[list(how)].agg(how).reset_index()


def draw_along(worst: pd.DataFrame) -> Figure:
    """The columns of `LINES` against the step, a line a seed, SGD above AdamW, scalings side by side."""
    optimizers, scalings = ("sgd", "adamw"), sorted(worst.scaling.unique())
    fig, axes = subplots(2, len(scalings), figsize=(7.2, 5), sharex=True, sharey=True, squeeze=False)
    for row, optimizer in zip(axes, optimizers, strict=True):
        for ax, scaling in zip(row, scalings, strict=True):
            part = worst[(worst.optimizer == optimizer) & (worst.scaling == scaling)]
            for column, (label, color) in LINES.items():
                lines = part.pivot_table(index="step", columns="seed", values=column)
                names = [label] + [None] * (lines.shape[1] - 1)
                ax.plot(lines.index, lines, color=COLORS[color], lw=1.2, label=names)
            ax.axhline(1, color=COLORS["other"], ls="--")
            ax.set(yscale="log", title=f"{WORDS[optimizer]}, s = {scaling:g}")
    for ax in axes[-1]:
        ax.set_xlabel("step")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig
