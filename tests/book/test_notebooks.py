"""Notebooks hold prose and calls: their code cells are short enough to read on a page."""

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
