"""A figure as files: SVG for light and dark pages, once for a wide and once for a narrow page, and a PNG."""

from __future__ import annotations

import io
import itertools
import textwrap
import warnings
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.legend import Legend

INK, INK_DARK = "#20242a", "#e8e6e3"
GRID, GRID_DARK = "#d8dade", "#43474e"

NARROW = 4.2
"""Width in inches of the narrow rendering: on a phone its text of 11 points is about 13 pixels high."""


def pictures(fig: Figure, name: str) -> tuple[dict[str, str | bytes], dict[str, tuple[int, int]]]:
    """The figure's files by suffix, and the pixels (width, height) of its "wide" and "narrow" renderings.

    The panels of `fig` stand in one column afterwards.
    """
    files: dict[str, str | bytes] = {}
    sizes = {}
    with matplotlib.rc_context({"svg.hashsalt": name}):
        _lay_out(fig)
        files[".png"] = _png(fig)
        for kind, suffix in (("wide", ""), ("narrow", "-narrow")):
            if kind == "narrow":
                stack_panels(fig)
            light = _svg(fig)
            files[f"{suffix}.svg"] = light
            files[f"{suffix}-dark.svg"] = light.replace(INK, INK_DARK).replace(GRID, GRID_DARK)
            width, height = fig.get_size_inches() * 100
            sizes[kind] = (round(width), round(height))
    return files, sizes


def _lay_out(fig: Figure) -> None:
    """Give everything in the figure its place, once for all files that it is then drawn to."""
    engine = fig.get_layout_engine()
    if engine is not None:
        engine.execute(fig)
    fig.set_layout_engine("none")


def _png(fig: Figure) -> bytes:
    """The figure on white. A canvas prints it with one drawing, where `Figure.savefig` takes two; so below."""
    content = io.BytesIO()
    dpi, ground = fig.dpi, fig.get_facecolor()
    fig.set(dpi=200, facecolor="white")
    FigureCanvasAgg(fig).print_png(content, metadata={"Software": None})
    fig.set(dpi=dpi, facecolor=ground)
    return content.getvalue()


def _svg(fig: Figure) -> str:
    """The figure on nothing, in the colours of a light page."""
    content = io.StringIO()
    for patch in (fig.patch, *(ax.patch for ax in fig.axes)):
        patch.set(facecolor="none", edgecolor="none")
    FigureCanvasSVG(fig).print_svg(content, metadata={"Date": None})
    return content.getvalue()


def stack_panels(fig: Figure) -> None:
    """Put the panels of a figure into one column of a phone's width, pictures of matrices into two, and lay it out."""
    specs = {ax: spec for ax in fig.axes if (spec := ax.get_subplotspec()) is not None}
    places = sorted({(spec.rowspan.start, spec.colspan.start) for spec in specs.values()})
    matrices = all(ax.get_images() for ax in specs)
    columns = min(2, len(places)) if matrices else 1
    rows = -(-len(places) // columns)
    _complete_labels(specs)
    grid = fig.add_gridspec(rows, columns)
    for ax, spec in specs.items():
        place = places.index((spec.rowspan.start, spec.colspan.start))
        ax.set_subplotspec(grid[place // columns, place % columns])
    wide = fig.get_size_inches()
    panel = wide[1] / len({row for row, _ in places})
    height = NARROW / columns if matrices else min(max(panel, 0.5 * NARROW), 0.9 * NARROW)
    legends = [*fig.legends, *(legend for ax in specs if (legend := ax.get_legend()))]
    for legend in legends:
        if len(legends) == 1 or legend._ncols > 1:  # type: ignore[attr-defined]
            _legend_below(fig, legend)
    _fit(fig, rows * height + 0.3)


def _legend_below(fig: Figure, legend: Legend) -> None:
    """Replace a legend by one below the panels, of two columns or, if its texts are long, one."""
    texts = [text.get_text() for text in legend.get_texts()]
    plotted = {text: handle for ax in fig.axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    # what the old legend drew of a curve with error bars is the bar alone
    handles: list[Any] = [plotted.get(text, drawn) for text, drawn in zip(texts, legend.legend_handles, strict=True)]
    legend.remove()
    columns = 1 if max(map(len, texts)) > 18 else 2
    fig.legend(handles, texts, loc="outside lower center", ncols=columns, fontsize=9)


def _fit(fig: Figure, height: float) -> None:
    """Give the figure the least of some sizes, from a phone's width on, in which every panel has room."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="constrained_layout not applied")
        for width, taller in itertools.product((NARROW, 1.3 * NARROW, 1.7 * NARROW), (1.0, 1.25, 1.6)):
            fig.set_size_inches(width, taller * height)
            fig.set_layout_engine("constrained")
            try:
                _lay_out(fig)
            except UserWarning:
                continue
            return
    raise ValueError(f"a figure's panels must fit into {1.7 * NARROW:.1f} inches of width: shorten their labels")


def _complete_labels(specs: Mapping[Axes, SubplotSpec]) -> None:
    """Give each panel the labels that it shared with others of its row or column."""
    for ax, spec in specs.items():
        row = [other for other, place in specs.items() if place.rowspan.start == spec.rowspan.start]
        column = [other for other, place in specs.items() if place.colspan.start == spec.colspan.start]
        if len(ax.get_shared_y_axes().get_siblings(ax)) > 1 and not ax.get_ylabel():
            ax.set_ylabel(next((other.get_ylabel() for other in row if other.get_ylabel()), ""))
        if len(ax.get_shared_x_axes().get_siblings(ax)) > 1 and not ax.get_xlabel():
            ax.set_xlabel(next((other.get_xlabel() for other in column if other.get_xlabel()), ""))
        if not ax.get_title():
            ax.set_title(next((other.get_title() for other in column if other.get_title()), ""), fontsize=10.5)
        ax.set_ylabel(textwrap.fill(ax.get_ylabel(), 26))
        if ax.axison:
            ax.tick_params(labelleft=True, labelbottom=True)
