"""What the paper claims beside what survives, with the computed verdicts on it: the front page's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evidence.claims import VERDICTS
from evidence.findings import STYLES, overall, rows_of_findings
from evidence.statements import FINDINGS
from evidence.tables import Cell, Link, cell_html, join, tally

ROWS: Sequence[tuple[str, str, tuple[str, ...]]] = (
    (
        "LoRA's kernel is full fine-tuning's plus a correction",
        "Yes, exactly and at every width, with the scaling $s$ in it: {doc}`chapter 3 <notebooks/03-kernel-of-lora>`; "
        "in attention too: {doc}`chapter 10 <notebooks/10-appendix>`",
        ("lem-lora-ntk", "thm-relation", "thm-relation-attention"),
    ),
    (
        "Wide networks have a fixed, deterministic kernel",
        "Full fine-tuning, yes: {doc}`chapter 2 <notebooks/02-infinite-width-kernel>`. LoRA's own part at fixed rank, "
        "neither: it scatters about its mean, and moves: {doc}`chapters 3 <notebooks/03-kernel-of-lora>` and "
        "{doc}`9 <notebooks/09-lazy-or-not>`",
        ("ntk-limit", "ntk-constant", "ntk-limit-lora", "ntk-constant-lora"),
    ),
    (
        "The correction is negative semi-definite when the variance is below $1/n$",
        "In wide layers: at fixed rank yes, if below it by a fixed factor; else the condition is "
        "$s^2\\sigma_a^2 n\\,(1+\\sqrt{r/n})^2 < 1$: "
        "{doc}`chapter 4 <notebooks/04-matrix-m>`. What the paper needs, the order of the kernels, holds on data "
        "of low dimension far beyond it: {doc}`the order on the data <notebooks/15-the-order-on-the-data>`",
        ("thm-nsd", "cor-ideal", "order-on-data"),
    ),
    (
        "Fisher information is a weighted kernel",
        "Yes, at every width: {doc}`chapter 5 <notebooks/05-fisher-information>`",
        ("thm-fisher",),
    ),
    (
        "LoRA has fewer information bits, lower entropy",
        "Bits: yes, regularised or at equal rank. Entropy: below order 1 only, reversed above, unordered if "
        "normalised: {doc}`chapters 6 <notebooks/06-information-bits-and-entropy>` and "
        "{doc}`7 <notebooks/07-does-lora-carry-less>`",
        ("thm-ib", "thm-renyi"),
    ),
    (
        "Hence weaker against untargeted poisoning, stronger against backdoors",
        "Does not follow: it needs larger inner products of gradients, and where the theorems apply each layer's is "
        "smaller in the mean over $A$. At low rank, at the start, clean gradients leave poison less room, which "
        "supports both; a trigger that LoRA does not see hides in one layer, for some steps: "
        "{doc}`chapter 8 <notebooks/08-attacks-as-alignment>`",
        ("direction", "why-it-matters"),
    ),
    (
        "Its experiments: LoRA and low ranks lose more to flipped labels, less to backdoors; keep the variance of $A$ "
        "small",
        "It depends on the learning rate, and on which evidence is asked: {doc}`published numbers "
        "<notebooks/11-published-findings>`, {doc}`our runs <notebooks/12-our-own-runs>`",
        tuple(FINDINGS),
    ),
    (
        "Information and entropy explain both",
        "On our networks, under SGD and at one learning rate, they order the backdoors, as the size of the step does; "
        "under AdamW rank and learning rate do better, and for flipped labels the sign is the opposite. Nothing is "
        "shown to be added to what needs no theory: "
        "{doc}`chapter 13 <notebooks/13-does-theory-predict>`",
        (),
    ),
)
"""What the paper claims, what is left of it, and the statements or findings whose verdicts say so."""


def survives(claims: Sequence[Mapping[str, Any]], findings: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """The table in MyST markdown; verdicts come from the records, those of findings for each attack over all sources.

    Parameters
    ----------
    claims : sequence of records
        As `evidence.claims.load_claims` returns them.
    findings : mapping of (finding, source) to record
        As `evidence.findings.load_findings` returns them.
    """
    verdicts = {record["id"]: record["verdict"] for record in claims}
    lines = ["| What the paper claims | What survives |", "|---|---|"]
    for claim, left, ids in ROWS:
        of_findings = [
            overall([r for (finding, _), r in findings.items() if finding == id], half)
            for id, half in rows_of_findings()
            if id in ids
        ]
        of_claims = [verdicts[id] for id in ids if id in verdicts]
        counted: list[Cell] = [
            tally(words, styles) for words, styles in ((of_claims, VERDICTS), (of_findings, STYLES)) if words
        ]
        said = join([*counted, Link("cards", f"claims.html#card-{ids[0]}")]) if counted else "correlations, no verdict"
        lines.append(f"| {claim} | {left} ({cell_html(said)}) |")
    return "\n".join(lines) + "\n"
