"""What to do against poisoned data: the paper's advice, and beside each line what the evidence comes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evidence.findings import STYLES, overall
from evidence.statements import SOURCES
from evidence.tables import Badge, Link, cell_html

ADVICE = {
    "finding-1": "Full fine-tuning against flipped labels, LoRA against backdoors",
    "finding-2": "A high rank against flipped labels, a low one against backdoors",
    "finding-4": "Against backdoors the lowest rank that keeps clean accuracy",
    "finding-3": "Choose the variance of A with care",
    "finding-5": "A small variance of A",
}
"""Finding -> what one would do if it holds, in the order in which one would do it."""

WORDS = {"not shown": "we cannot tell", "inconclusive": "we cannot tell", "negligible": "no difference that matters"}
"""Verdict -> what it means to somebody who has to choose; other verdicts say so themselves."""


def advice(records: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """A list, as one line of HTML: each advice, its verdict over all sources, and that of each source.

    Parameters
    ----------
    records : mapping of (finding, source) to record
        As `evidence.findings.load_findings` returns them.
    """
    lines = []
    for id, text in ADVICE.items():
        mine = {source: records[id, source] for source in SOURCES if (id, source) in records}
        said = "; ".join(f"{source}: {in_words(record['verdict'])}" for source, record in mine.items()) or "no evidence"
        word = overall([dict(record) for record in mine.values()])
        cell = (Badge(in_words(word), STYLES[word]), f" {said}; ", Link("numbers", f"claims.html#card-{id}"))
        lines.append(f"<dt>{cell_html(text)}</dt><dd>{cell_html(cell)}</dd>")
    return f'<dl class="advice">{"".join(lines)}</dl>\n'


def in_words(verdict: str) -> str:
    """A verdict as advice."""
    return WORDS.get(verdict, verdict)
