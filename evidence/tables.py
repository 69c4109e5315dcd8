"""Tables and lines of results, and the one place where they become HTML, markdown or lines of a terminal.

A cell is text as it is, or holds a `Badge`, `Code` or `Link`; each rendering escapes what it must, once.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Badge:
    """A verdict; `style` is one of "holds", "amended", "fails" and "definition"."""

    text: str
    style: str

    def html(self) -> str:
        return f'<span class="verdict verdict-{html.escape(self.style)}">{html.escape(self.text)}</span>'

    def markdown(self) -> str:
        return f"**{escape_markdown(self.text)}**"


@dataclass(frozen=True)
class Code:
    """A name or a command; in HTML a line may end within it after a dot or an underscore, but not within an option."""

    text: str

    def html(self) -> str:
        breaking = re.sub("([._])", r"\1<wbr>", html.escape(self.text))
        return "<code>" + re.sub(r"(?<= )(-+\w+)", r'<span class="option">\1</span>', breaking) + "</code>"

    def markdown(self) -> str:
        return f"`{self.text}`"


@dataclass(frozen=True)
class Link:
    """Text that leads to the address `target`."""

    text: str
    target: str

    def html(self) -> str:
        return f'<a href="{html.escape(self.target)}">{html.escape(self.text)}</a>'

    def markdown(self) -> str:
        return f"[{escape_markdown(self.text)}]({self.target})"


Part = str | Badge | Code | Link
Cell = Part | tuple[Part, ...]


@dataclass(frozen=True)
class Table:
    """Column heads and rows of cells."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def html(self) -> str:
        """The table in a box of its own; on a narrow page each row is a list, whose entries are named by the heads."""
        head = "".join(f"<th>{html.escape(text)}</th>" for text in self.heads)
        names = [html.escape(text) for text in self.heads]
        rows = (
            "".join(f'<td data-head="{name}">{cell_html(cell)}</td>' for name, cell in zip(names, row, strict=True))
            for row in self.rows
        )
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return (
            '<div class="claim-table" tabindex="0">'
            f'<table class="listed"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def show(self, title: str) -> None:
        """Print the table in the terminal."""
        from rich.console import Console
        from rich.table import Table as TerminalTable
        from rich.text import Text

        table = TerminalTable(*self.heads, title=title)
        for row in self.text_rows():
            table.add_row(*map(Text, row))
        Console().print(table)

    def text_rows(self) -> list[tuple[str, ...]]:
        """The rows as plain text, a string a cell."""
        return [tuple("".join(_plain(part) for part in _parts(cell)) for cell in row) for row in self.rows]


def cell_html(cell: Cell) -> str:
    """One cell, or a line of text with badges in it, as HTML."""
    return "".join(html.escape(part) if isinstance(part, str) else part.html() for part in _parts(cell))


def cell_markdown(cell: Cell) -> str:
    """One cell, or a line of text with badges in it, as markdown."""
    return "".join(escape_markdown(part) if isinstance(part, str) else part.markdown() for part in _parts(cell))


def escape_markdown(text: str) -> str:
    """The text with the characters escaped that markdown would read as a table, a tag or emphasis."""
    return re.sub(r"([\\|<*`])", r"\\\1", text)


def tally(verdicts: Sequence[str], styles: Mapping[str, str]) -> Cell:
    """How often each verdict occurs, as text, in the order of `styles`."""
    found = [verdict for verdict in styles if verdict in verdicts]
    return join([(f"{verdicts.count(verdict)} ", Badge(verdict, styles[verdict])) for verdict in found])


def join(cells: Iterable[Cell], separator: str = ", ") -> Cell:
    """Several cells as one, with a separator between them."""
    parts = [part for cell in cells for part in (separator, *_parts(cell))]
    return tuple(parts[1:])


def number(value: float | None) -> str:
    """A number with three significant digits; below 1e-12 only that it is, since round-off varies between machines."""
    if value is None:
        return "no number"
    if 0 < abs(value) < 1e-12:
        return "below 1e-12"
    return f"{value:.3g}"


def short(value: object) -> str:
    """A cell of a data table: a float with four significant digits or, from ten thousand on, in full."""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "n/a"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def interval(low: float | None, high: float | None) -> str:
    """An interval in words; an open end is an infinity, or None in a saved record."""
    if high is None or high == math.inf:
        return "anything" if low is None or low == -math.inf else f"at least {number(low)}"
    if low is None or low == -math.inf:
        return f"at most {number(high)}"
    if low < high and number(low) == number(high):
        return f"{number((low + high) / 2)} ± {(high - low) / 2:.0e}"
    return f"{number(low)} to {number(high)}"


def _parts(cell: Cell) -> tuple[Part, ...]:
    return cell if isinstance(cell, tuple) else (cell,)


def _plain(part: Part) -> str:
    return part if isinstance(part, str) else part.text
