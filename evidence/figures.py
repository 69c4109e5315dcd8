"""One style for every figure, and one way to save it: pictures, the plotted numbers, provenance.

Importing this module sets matplotlib's style, not its backend: figures come from `subplots` and show themselves once,
through what `save` returns. The same thing has the same colour everywhere: `COLORS`. Numbers in
tables of pandas have four significant digits.
"""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from torch import Tensor

from .artifacts import results_directory, write_atomically
from .effects import Effect
from .pictures import GRID, INK, pictures
from .tables import short

_BLUE, _ORANGE, _GREEN, _RED, _PURPLE = (matplotlib.colors.to_hex(c) for c in sns.color_palette("colorblind")[:5])
COLORS = {"full": _BLUE, "lora": _ORANGE, "bound": _RED, "other": _GREEN, "third": _PURPLE, "theory": INK}
"""Colour by meaning: full fine-tuning, LoRA, a bound or edge, further series, a theoretical curve."""

MARKERS = ("o", "s", "^", "D", "v", "P")
"""Markers in the order of series, so that a figure reads in greyscale."""

TOLERANCE = {"rtol": 1e-6, "atol": 1e-12}
"""Declared agreement of a recorded column across machines, unless `save` is told otherwise (float64 results)."""

matplotlib.rcParams.update(
    {
        "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "text.color": INK,
        "xtick.color": INK, "ytick.color": INK, "grid.color": GRID, "axes.grid": True, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "figure.dpi": 110,
        "figure.figsize": (7.2, 3.6), "figure.constrained_layout.use": True, "font.size": 11.0,
        "axes.titlesize": 11.5, "axes.labelsize": 11.0, "lines.linewidth": 1.8, "lines.markersize": 5.5,
        "svg.fonttype": "path", "axes.prop_cycle": cycler(color=sns.color_palette("colorblind")),
    }
)  # fmt: skip


pd.set_option("display.float_format", short)
pd.set_option("styler.format.formatter", short)


@dataclass(frozen=True)
class SavedFigure:
    """A saved figure; on a page it shows its picture, its caption and a link to its numbers."""

    name: str
    alt: str
    caption: str
    directory: Path
    sizes: Mapping[str, tuple[int, int]]

    def _repr_html_(self) -> str:
        base = html.escape(f"{self.directory.as_posix()}/{self.name}")
        caption = html.escape(self.caption, quote=False)
        return (
            f'<figure id="fig-{self.name}" class="lorantk-figure">'
            f"{self._picture(base, '', 'only-light')}{self._picture(base, '-dark', 'only-dark')}"
            f'<figcaption><span class="mathjax_process">{caption}</span> '
            f'<a href="{base}.csv" download>Numbers (CSV)</a>, <a href="{base}.png" download>PNG</a>.</figcaption>'
            "</figure>"
        )

    def _picture(self, base: str, suffix: str, shown: str) -> str:
        """One theme's picture, in its narrow rendering on a narrow screen; a hidden lazy one is never fetched."""
        (width, height), (narrow, tall) = self.sizes["wide"], self.sizes["narrow"]
        look = "hidden" if shown == "only-dark" else 'style="background: white"'  # JupyterLab shows it on dark
        return (
            f'<picture><source media="(max-width: 600px)" srcset="{base}-narrow{suffix}.svg" '
            f'width="{narrow}" height="{tall}"><img class="{shown}" {look} loading="lazy" '
            f'src="{base}{suffix}.svg" width="{width}" height="{height}" alt="{html.escape(self.alt)}"></picture>'
        )


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float] | None = None, **options: Any) -> Any:
    """A figure and its axes, as from pyplot, but known to no backend: nothing shows or keeps it until it is saved.

    Parameters
    ----------
    rows, columns : int
    figsize : (width, height) in inches, optional
    **options
        As `matplotlib.figure.Figure.subplots` takes them.

    Returns
    -------
    Figure, and Axes or an array of them
    """
    fig = Figure(figsize=figsize)
    return fig, fig.subplots(rows, columns, **options)


def save(
    fig: Figure,
    name: str,
    data: pd.DataFrame | Mapping[str, Sequence[float]],
    alt: str,
    caption: str = "",
    tolerance: Mapping[str, Mapping[str, float]] | None = None,
) -> SavedFigure:
    """Write a figure and everything a reader needs to check it.

    Parameters
    ----------
    fig : matplotlib Figure
    name : str
        File stem, lower case with hyphens; also the anchor ``fig-<name>`` on the page.
    data : DataFrame or mapping of columns
        The plotted numbers. Floats are recorded to 7 significant digits; magnitudes below a column's atol as 0.
    alt : str
        What the picture shows, for a reader who does not see it.
    caption : str
        What to see; may hold TeX in ``\\( \\)``.
    tolerance : mapping of column to {"rtol", "atol"}, optional
        Declared agreement across machines where it is not `TOLERANCE`.

    Returns
    -------
    SavedFigure

    Raises
    ------
    ValueError
        If `alt` is empty, `data` has no rows, a tolerance names no column, or the name is not a plain stem.
    """
    frame = pd.DataFrame(data)
    if not alt.strip():
        raise ValueError(f"alt must say what figure {name!r} shows; got an empty text")
    if frame.empty:
        raise ValueError(f"data of figure {name!r} must hold the plotted numbers; got no rows")
    for declared in (tolerance or {}).values():
        if set(declared) - set(TOLERANCE) or not all(value >= 0 for value in declared.values()):
            raise ValueError(f"tolerance must hold rtol and atol, 0 or above; got {dict(declared)}")
    if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name must be lower-case letters a to z, digits and hyphens; got {name!r}")
    unknown = set(tolerance or {}) - set(frame.columns)
    if unknown:
        raise ValueError(f"tolerance must name columns among {list(frame.columns)}; got {sorted(unknown)}")
    frame.columns = frame.columns.map(str)
    columns = {str(column): {**TOLERANCE, **(tolerance or {}).get(str(column), {})} for column in frame.columns}
    for column in frame.select_dtypes("float"):
        frame[column] = frame[column].mask(frame[column].abs() < columns[str(column)]["atol"], 0.0)

    directory = results_directory("figures")
    record = {
        "name": name,
        "alt": alt,
        "caption": caption,
        "columns": columns,
        "parameters": json.loads(os.environ.get("LORANTK_PARAMETERS", "{}")),
        "versions": {package: version(package) for package in ("lorantk", "torch", "numpy", "matplotlib")},
        "revision": _revision(),
    }
    drawn, sizes = pictures(fig, name)
    files = drawn | {
        ".csv": frame.to_csv(index=False, float_format="%.7g", lineterminator="\n"),
        ".json": json.dumps(record, indent=1) + "\n",
    }
    for suffix, content in files.items():
        write_atomically(directory / f"{name}{suffix}", content)
    return SavedFigure(name, alt, caption, directory, sizes)


def order_line(ax: Axes, x: Sequence[float], y: Sequence[float], order: float, label: str) -> None:
    """Dashed guide of slope `order`, an order of convergence, through the last point of a log-log curve."""
    x_values = np.asarray(x, dtype=float)
    ax.plot(x_values, y[-1] * (x_values / x_values[-1]) ** order, "--", color=INK, lw=1.2, label=label)


def log_axes(ax: Axes, xlabel: str, ylabel: str, ticks: Sequence[float] | None = None) -> None:
    """Logarithmic axes with labels; `ticks` writes the values of x that were run as plain numbers."""
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    low, high = ax.get_ylim()
    if high < 1000 * low:  # powers of ten alone would leave too few labels
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if ticks is not None:
        ax.set_xticks(list(ticks), [f"{t:g}" for t in ticks])
        ax.minorticks_off()


def kernel_panel(ax: Axes, kernel: Tensor, title: str, top: float) -> AxesImage:
    """A kernel matrix (n, n) as a picture, colour from 0 to `top`; larger values take the last colour."""
    image = ax.imshow(kernel.numpy(), cmap="cividis", vmin=0.0, vmax=top, interpolation="nearest")
    ax.set(title=title, xticks=[], yticks=[])
    ax.grid(visible=False)
    return image


def phase_panel(
    ax: Axes, data: pd.DataFrame, x: str, y: str, value: str, *, diverging: bool = False, ticks: bool = False
) -> QuadMesh:
    """Heat map of `value` over a full grid of `x` and `y`, each a column of `data`.

    With `diverging`, colours are centred on 0; with `ticks`, the cells are equally wide and labelled by their values.
    """
    table = data.pivot_table(index=y, columns=x, values=value)
    columns, rows = (np.arange(n) for n in table.T.shape) if ticks else (table.columns, table.index)
    limit = table.abs().to_numpy().max()
    scale = {"cmap": "vlag", "vmin": -limit, "vmax": limit} if diverging else {"cmap": "cividis"}
    mesh = ax.pcolormesh(columns, rows, table, shading="nearest", rasterized=True, **scale)
    if ticks:
        ax.set_xticks(columns, [f"{v:.4g}" for v in table.columns])
        ax.set_yticks(rows, [f"{v:.2g}" for v in table.index])
    ax.grid(visible=False)
    return mesh


def curve_grid(
    data: pd.DataFrame,
    x: str,
    *,
    row: str,
    column: str,
    line: str,
    styles: Mapping[str, Mapping[str, Any]],
    bars: str = "std",
) -> tuple[Figure, dict[tuple[Any, Any], Axes]]:
    """Small multiples of curves with error bars; rows share y, columns share x.

    Parameters
    ----------
    data : DataFrame
        Columns named by `x`, `row`, `column` and `line`, and mean; panels in the order of first appearance.
    styles : mapping
        Value of `line` -> what matplotlib needs to draw it, in the order of the legend.
    bars : str
        Column with the half length of the bars.

    Returns
    -------
    Figure, dict of (row, column) -> Axes
    """
    rows, columns = list(data[row].unique()), list(data[column].unique())
    size = (6.2, 1.1 + 1.45 * len(rows))
    fig, grid = subplots(len(rows), len(columns), figsize=size, sharex="col", sharey="row", squeeze=False)
    axes = {(r, c): grid[i, j] for i, r in enumerate(rows) for j, c in enumerate(columns)}
    for (r, c), ax in axes.items():
        cell = data[(data[row] == r) & (data[column] == c)]
        for name, style in styles.items():
            part = cell[cell[line] == name]
            ax.errorbar(part[x], part["mean"], part[bars], label=name, elinewidth=1, **style)
        ax.tick_params(labelsize=9)
    for c, ax in zip(columns, grid[0], strict=True):
        ax.set_title(c, fontsize=10.5)
    for ax in grid[-1]:
        ax.set_xlabel(x.replace("_", " "))
    for r, ax in zip(rows, grid[:, 0], strict=True):
        ax.set_ylabel(r)
    fig.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig, axes


def forest(ax: Axes, effects: Sequence[Effect], color: str, names: Sequence[str] | None = None) -> None:
    """Effects with their intervals, from top to bottom, against 0; hollow where the interval holds 0."""
    for place, effect in enumerate(effects):
        shown = effect.low > 0 or effect.high < 0
        ax.plot([effect.low, effect.high], [place, place], color=COLORS[color])
        ax.plot(effect.value, place, "o", color=COLORS[color], mfc=COLORS[color] if shown else "none")
    ax.axvline(0, color=INK, lw=1)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_yticks(range(len(effects)), names or [effect.name for effect in effects])
    ax.set_ylim(len(effects) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")


def _revision() -> str:
    """Git revision of the source tree, or "unknown" outside one."""
    command: list[Any] = ["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
