"""What the attacks on digits do to a training image, for the reader to see."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evidence.figures import subplots

from .config import Run
from .digits import poison, split

KINDS = {"clean": ("none", 0.0), "trigger": ("backdoor", 0.2), "flip": ("untargeted", 0.3)}
"""What is shown -> attack and poison rate."""

LEAST = 5
"""The smallest of the digits that are classified: label 0 is the digit 5."""


def examples(seed: int, count: int = 2) -> pd.DataFrame:
    """Training images that both attacks touch, a row a pixel: image, kind, label (a digit), row, column, brightness."""
    x, y = split(seed, "digits-exact").train
    attacked = {kind: poison(x, y, _run(attack, rate, seed)) for kind, (attack, rate) in KINDS.items()}
    both = (attacked["trigger"][1] != y) & (attacked["flip"][1] != y)
    rows, columns = np.divmod(np.arange(64), 8)
    return pd.concat(
        pd.DataFrame({"image": place, "kind": kind, "label": int(labels[i]) + LEAST, "row": rows, "column": columns,
                      "brightness": images[i].numpy().round(4)})
        for place, i in enumerate(both.nonzero()[:count, 0].tolist())
        for kind, (images, labels) in attacked.items()
    )  # fmt: skip


def draw_examples(pixels: pd.DataFrame) -> Figure:
    """The images, a column a kind."""
    kinds, images = list(KINDS), sorted(pixels.image.unique())
    fig, axes = subplots(len(images), len(kinds), figsize=(4.8, 1.6 * len(images)))
    for row, image in zip(axes, images, strict=True):
        for ax, kind in zip(row, kinds, strict=True):
            part = pixels[(pixels.image == image) & (pixels.kind == kind)]
            ax.imshow(part.brightness.to_numpy().reshape(8, 8), cmap="gray_r", vmin=0, vmax=pixels.brightness.max())
            ax.set(xticks=[], yticks=[], title=f"{kind}: label {part.label.iloc[0]}")
            ax.grid(visible=False)
            ax.spines[:].set_visible(True)
    return fig


def _run(attack: str, rate: float, seed: int) -> Run:
    return Run("digits-exact", attack, rate, seed=seed)
