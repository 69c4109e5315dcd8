"""What to do against poisoned data: the paper's advice, and beside each line what the evidence comes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evidence.findings import STYLES, overall, primary, verdict
from evidence.statements import SOURCES
from evidence.tables import Badge, Link, cell_html

ADVICE = {
    ("finding-1", "flips"): "Full fine-tuning rather than LoRA against flipped labels",
    ("finding-1", "backdoor"): "LoRA rather than full fine-tuning against backdoors",
    ("finding-2", "flips"): "A high rank against flipped labels",
    ("finding-2", "backdoor"): "A low rank against backdoors",
    ("finding-4", "backdoor"): "Against backdoors the lowest rank that keeps clean accuracy",
    ("finding-3", "flips"): "Choose the variance of A with care, against flipped labels",
    ("finding-3", "backdoor"): "Choose the variance of A with care, against backdoors",
    ("finding-5", "flips"): "A small variance of A against flipped labels",
    ("finding-5", "backdoor"): "A small variance of A against backdoors",
}
"""Finding and half -> what one would do if it holds, in the order in which one would do it."""

WORDS = {"inconclusive": "we cannot tell", "negligible": "no difference that matters"}
"""Verdict -> what it means to somebody who has to choose; other verdicts say so themselves."""

OPTIMIZERS = ("AdamW", "SGD")
"""As settings name them."""


def advice(records: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """A list, as one line of HTML: each advice, its verdict over all sources, and that of each source.

    Parameters
    ----------
    records : mapping of (finding, source) to record
        As `evidence.findings.load_findings` returns them.
    """
    lines = []
    for (id, half), text in ADVICE.items():
        mine = {source: records[id, source] for source in SOURCES if (id, source) in records}
        said = "; ".join(f"{source}: {of_source(record, half)}" for source, record in mine.items()) or "no evidence"
        word = overall(mine.values(), half)
        cell = (Badge(in_words(word), STYLES[word]), f" {said}; ", Link("numbers", f"claims.html#card-{id}"))
        lines.append(f"<dt>{cell_html(text)}</dt><dd>{cell_html(cell)}</dd>")
    return f'<dl class="advice">{"".join(lines)}</dl>\n'


def of_source(record: Mapping[str, Any], half: str) -> str:
    """The verdict of one source as advice; told apart by optimizer where AdamW and SGD do not say the same."""
    outcomes = {
        name: [effect["outcome"] for effect in primary(record, half) if name in effect["setting"]]
        for name in OPTIMIZERS
    }
    words = {name: in_words(verdict(found)) for name, found in outcomes.items() if found}
    if len(set(words.values())) < 2:
        return in_words(record["verdicts"][half])
    return ", ".join(f"{word} with {name}" for name, word in words.items())


def in_words(verdict: str) -> str:
    """A verdict as advice."""
    return WORDS.get(verdict, verdict)
