"""All effects of all sources as one family, and the outcome of each finding's halves in each source.

The rules are those of `protocol.md`. A half of a finding is what it says of one attack: "flips" or "backdoor".
Statements ``finding-1`` to ``finding-5``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from evidence.decisions import decide
from evidence.effects import Effect
from evidence.findings import Member
from evidence.tables import interval, number

from .arms import WORDS
from .published import Effects

MARGINS = {"flips": 0.02, "backdoor": 0.05}
"""Half -> size of an effect that does not matter, in accuracy or attack success."""

WORKS = 0.5
"""Least attack success of full fine-tuning at which a backdoor has something to be spared."""


def decided(members: Iterable[Member]) -> list[Member]:
    """The members of a whole family with their outcomes."""
    family = list(members)
    outcomes = decide([member.effect for member in family], [member.margin for member in family])
    return [
        replace(member, outcome="inconclusive" if member.failed else outcome)
        for member, outcome in zip(family, outcomes, strict=True)
    ]


def published_members(effects: Effects, next_rank: Sequence[Effect]) -> list[Member]:
    """The published effects of findings 1, 2, 4 and 5 on the tasks together and on tasks in general.

    Parameters
    ----------
    effects : Effects
        Of `published.effects_by_task`; what they say of finding-4, rank 4 whether it performs or not, is left out.
    next_rank : sequence of Effect
        Of `published.next_rank_effects`, for finding-4.
    """
    kept = {key: found for key, found in effects.items() if key[0] != "finding-4"}
    return [
        Member(finding, half, "published", scope, effect, MARGINS[half])
        for (finding, title), found in (kept | {("finding-4", "backdoor: next rank"): list(next_rank)}).items()
        for half in [title.split(":")[0]]
        for scope, effect in zip(("these tasks", "tasks in general"), found[-2:], strict=True)
    ]


def published_gaps(gaps: Mapping[str, Effect]) -> list[Member]:
    """finding-3 of the published numbers: the largest gap between values of k, by half."""
    return [Member("finding-3", half, "published", "these tasks", gap, MARGINS[half]) for half, gap in gaps.items()]


def failures(attacked: pd.DataFrame, by: Sequence[str]) -> dict[str, str]:
    """Why a setting failed, for each that did, by its name in `arms.effects_by_group`.

    Parameters
    ----------
    attacked : DataFrame
        Of `runs.harms`, one learning rate a method.
    by : sequence of str
        Columns that make a setting, the attack among them.
    """
    found = {}
    for keys, rows in attacked.groupby(list(by)):
        full, head = (rows[rows.method == method] for method in ("full", "head"))
        success, accuracy = full.attack_success.mean(), full.accuracy_without.mean()
        name = ", ".join(WORDS[str(key)] for key in keys)
        if rows.attack.iloc[0] == "backdoor" and success < WORKS:
            found[name] = f"attack success of full fine-tuning is {success:.2f}"
        elif accuracy < head.accuracy_without.mean():
            found[name] = f"clean accuracy of full is {accuracy:.3f}, the head's {head.accuracy_without.mean():.3f}"
    return found


def text_members(
    groups: Sequence[Mapping[str, list[Effect]]], failed: Mapping[str, str], doublings: float, decades: float,
    later: Collection[str] = (),
) -> list[Member]:  # fmt: skip
    """The effects of the earlier runs on text, each at one learning rate a method.

    Parameters
    ----------
    groups : sequence of mappings of finding to effects
        Of `arms.effects_by_group`.
    failed : mapping
        Of `failures`, by the same settings.
    doublings, decades : float
        Range of the ranks and of the variances: trends have the margin of the whole range, divided by it.
    later : collection of str
        Findings that later runs decide: these effects stand beside theirs, none is primary.
    """
    spans = {"finding-2": doublings, "finding-5": decades}
    return [
        Member(
            finding, half, "text", setting, effect.renamed(what), MARGINS[half] / spans.get(finding, 1.0),
            finding not in later, failed.get(setting, ""),
        )
        for found in groups
        for finding, effects in found.items()
        for effect in effects
        for setting, what in [effect.name.split(": ", 1)]
        for half in ["flips" if "flips" in setting else "backdoor"]
    ]  # fmt: skip


def table(members: Iterable[Member]) -> pd.DataFrame:
    """A row a member: value, its range over admissible learning rates, the interval that holds all, margin, outcome."""
    return pd.DataFrame([
        {
            "finding": m.finding, "half": m.half, "source": m.source, "setting": m.setting, "effect": m.effect.name,
            "value": m.effect.value, "lowest": m.range[0], "highest": m.range[1],
            "low": m.effect.low, "high": m.effect.high, "n": m.effect.n, "margin": m.margin, "primary": m.primary,
            "diverged": m.diverged, "failed": m.failed, "outcome": m.outcome,
        }
        for m in members
    ])  # fmt: skip


def listed(members: Iterable[Member]) -> pd.DataFrame:
    """The same to be read, in words: a row a member, with what failed."""
    rows = []
    for m in members:
        low, high = m.range
        notes = [m.outcome, m.failed, f"{m.diverged} diverged" if m.diverged else ""]
        rows.append({"finding": f"{m.finding[-1]}, {m.half}", "setting": f"{m.source}: {m.setting}",
                     "effect": m.effect.name, "value": number(m.effect.value),
                     "over learning rates": interval(low, high) if low < high else "",
                     "95 % interval": interval(m.effect.low, m.effect.high), "n": m.effect.n,
                     "margin": number(m.margin), "outcome": "; ".join(filter(None, notes))})  # fmt: skip
    return pd.DataFrame(rows)


def primary_of(members: Iterable[Member], source: str) -> list[Member]:
    """The primary members of a source, by finding and setting."""
    mine = [member for member in members if member.source == source and member.primary]
    return sorted(mine, key=lambda member: (member.finding, member.setting))
