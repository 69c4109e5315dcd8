"""Notebooks hold prose and calls: cells short enough to read on a page, in files as jupytext writes them."""

from pathlib import Path

import jupytext
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.md"))
LINES, COLUMNS = 15, 88


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_cells_are_short_and_define_nothing(path):
    cells = [cell.source.splitlines() for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    assert cells
    assert [cell for cell in cells if len(cell) > LINES or max(map(len, cell), default=0) > COLUMNS] == []
    assert [line for cell in cells for line in cell if line.lstrip().startswith(("def ", "class "))] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_opening_a_source_in_jupyterlab_changes_nothing_in_it(path):
    def without_version(text):
        return [line for line in text.splitlines() if "jupytext_version:" not in line]

    text = path.read_text()
    assert without_version(jupytext.writes(jupytext.read(path), fmt="md:myst")) == without_version(text)
