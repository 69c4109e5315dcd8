"""All recorded evidence on the findings, decided as one family: what chapters 11 and 12, README and front page say.

Statements ``finding-1`` to ``finding-5``; the rules are those of `protocol.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pandas as pd

from evidence.findings import Finding, Member
from evidence.statements import FINDINGS

from . import arms, family, identified, published, variances
from .data import recorded

METHODS_AND_RANKS = ("finding-1", "finding-2", "finding-4")
"""Findings that the grids with all methods decide; the variances of A have others."""

FIGURES = {"published": ("published-effects",) * 2, "digits": ("digits-outcomes",) * 2,
           "text": ("text-outcomes", "text-arms")}  # fmt: skip
"""Source -> the figure that shows its effects: for `METHODS_AND_RANKS`, and for the variances of A."""

COMMANDS = {"published": ("make notebook N=11",) * 2,
            "digits": ("python -m experiments run digits-exact", "python -m experiments run digits-variance"),
            "text": ("python -m experiments run text-exact-attacked && python -m experiments run text-mpnet",
                     "python -m experiments run text")}  # fmt: skip
"""Source -> what reruns its numbers, in the same two parts."""

MIDDLE = 0.016
"""The backdoor's poison rate on digits whose effects are primary, 8 of 500."""

COUNTED = {"untargeted": 0.3, "backdoor": 0.02}
COUNTED_MPNET = {"untargeted": 0.3, "backdoor": 0.015}
"""The poison rates of 1,000 reviews whose effects are primary: with MiniLM, and with MPNet."""

DOSES = (0.0, 0.006, 0.016, 0.04, 0.3)
"""Poison rates of those grids on digits; others, and other steps, are those of memorisation."""

TEXT = {"rank": 8, "steps": 150, "tolerance": 0.01, "doublings": 6.0, "decades": float(np.log10(4 / 0.01))}
"""The earlier runs on text: LoRA's rank beside full fine-tuning, their steps, the accuracy that makes a rank perform,
and the ranges of ranks and variances."""

POISON_RATES = {"untargeted": 0.3, "backdoor": 0.01}
"""Of the earlier runs on text."""


def digits_runs() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The recorded runs of `protocol.md` on digits: all methods over learning rates, and the variances of A."""
    runs = recorded("results/digits-exact").query("seed < 20 and steps == 300 and poison_rate in @DOSES")
    varied = runs.variance.str.endswith("/n", na=False)
    return runs[~varied], runs[varied]


def review_runs() -> pd.DataFrame:
    """The recorded runs of `protocol.md` on text: all methods over learning rates, attacked at the admissible ones."""
    return recorded("results/reviews").query("seed < 10")


def mpnet_runs() -> pd.DataFrame:
    """The recorded runs of `protocol.md` with MPNet: all methods at two learning rates, attacked at both."""
    return recorded("results/reviews-mpnet").query("seed < 10")


def text_tables() -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """The earlier runs on text and their chosen learning rates, by task."""
    return {
        "spam": (recorded("results/spam"), recorded("results/rates-spam")),
        "reuters": (recorded("results/reuters"), recorded("results/rates-reuters")),
    }


def text_runs() -> pd.DataFrame:
    """The earlier runs on text with their harm, at the learning rate that a method's ranks share."""
    chosen = arms.with_scaling_1(arms.on_tasks(text_tables(), "shared"), int(TEXT["steps"]))
    return arms.at_poison_rates(chosen, POISON_RATES)


@cache
def whole_family(middle: float = MIDDLE, within: float = 1.0) -> tuple[Member, ...]:
    """Every effect of every source with its outcome.

    Parameters
    ----------
    middle : float
        The backdoor's poison rate on digits whose effects are primary: 0.006, 0.016 or 0.04.
    within : float
        Standard errors of the best learning rate within which others are admissible, for methods and ranks on digits
        and on reviews, where MiniLM's arms were attacked within two at most; 1 is the protocol's.
    """
    grid = identified.findings_of_grid(digits_runs()[0], middle, within)
    return tuple(family.decided([*_older_members(), *grid, *_review_members(within), *_variance_members()]))


@cache
def _older_members() -> tuple[Member, ...]:
    """Undecided: the published numbers and the earlier runs on text."""
    figures = published.printed_tasks(recorded("published/figures"))
    seeds = published.printed_tasks(recorded("published/seeds"))
    sweeps = published.accuracy_sweeps(figures)
    members = family.published_members(published.effects_by_task(sweeps, seeds), published.next_rank_effects(sweeps))
    members += family.published_gaps(published.gaps_of_variances(sweeps))
    settings, written = ["task", "optimizer", "attack"], text_runs()
    found = arms.effects_by_group(written, settings, rank=int(TEXT["rank"]), tolerance=TEXT["tolerance"])
    failed = family.failures(written, settings)
    spans = {"doublings": TEXT["doublings"], "decades": TEXT["decades"]}
    members += family.text_members(found, failed, **spans, later=METHODS_AND_RANKS)
    return tuple(members)


@cache
def _review_members(within: float) -> tuple[Member, ...]:
    """Undecided: the text grid, and that with MPNet."""
    grids = (review_runs(), COUNTED, identified.REVIEWS), (mpnet_runs(), COUNTED_MPNET, identified.MPNET)
    return tuple(
        member
        for runs, counted, grid in grids
        for member in identified.findings_of_grid(runs, counted["backdoor"], within, grid)
    )


@cache
def _variance_members() -> tuple[Member, ...]:
    """Undecided: the variances of A on digits."""
    grid, varied = digits_runs()
    return tuple(variances.findings_of_variances(varied[varied["rank"] == identified.RANK], grid))


def within_two_errors(middle: float = MIDDLE) -> pd.DataFrame:
    """Primary effects of method and rank, decided with learning rates within one and within two errors.

    Returns
    -------
    DataFrame
        finding, half, setting, one error, two errors (outcomes), lowest and highest value at two errors; digits, then
        reviews.
    """
    both = ([m for source in ("digits", "text") for m in family.primary_of(whole_family(middle, errors), source)
             if m.finding in METHODS_AND_RANKS] for errors in (1.0, 2.0))  # fmt: skip
    return pd.DataFrame([
        {"finding": a.finding, "half": a.half, "setting": a.setting, "one error": a.outcome, "two errors": b.outcome,
         "lowest": b.range[0], "highest": b.range[1]}
        for a, b in zip(*both, strict=True)
    ])  # fmt: skip


def findings(members: Sequence[Member], source: str) -> Iterator[Finding]:
    """What one source says of each finding."""
    for id in FINDINGS:
        mine = [member for member in members if (member.finding, member.source) == (id, source)]
        part = int(id not in METHODS_AND_RANKS)
        yield Finding(id, source, mine, FIGURES[source][part], COMMANDS[source][part])
