"""Every row of the findings has its papers, and each of them stands in the bibliography under its number."""

import re

import pytest

from evidence.findings import rows_of_findings
from evidence.literature import LITERATURE

PAPERS = sorted({paper for papers in LITERATURE.values() for paper in papers}, key=lambda paper: paper.key)


def test_every_row_of_the_findings_has_its_papers():
    assert list(LITERATURE) == rows_of_findings()


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.key)
def test_a_paper_is_in_the_bibliography(root, paper):
    entries = re.findall(r"@\w+\{(\w+),(.*?)\n\}", (root / "book" / "references.bib").read_text(), re.DOTALL)
    entry = dict(entries)[paper.key]
    assert paper.who.split(" ")[0] in entry
    assert re.search(r"\((\d+)\)", paper.who)[1] in entry
    assert paper.arxiv in entry or "doi" in entry
