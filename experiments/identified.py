"""What the grids of `protocol.md` with all methods say of findings 1, 2 and 4: effects over learning rates.

A *setting* is an optimizer, an attack and a dose. Statements ``finding-1``, ``finding-2``, ``finding-4``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from evidence.effects import EffectRange, slope_weights
from evidence.findings import Member

from .admissible import Choices, choices, guessed, over_rates, performing, validation
from .arms import WORDS
from .family import MARGINS, WORKS
from .runs import UNITS, harms

HALVES = {"untargeted": "flips", "backdoor": "backdoor"}
"""Attack -> the half of a finding that it speaks to."""

RANK = 8
"""LoRA's rank beside full fine-tuning."""

Arm = tuple[str, int | None]
"""Method and rank."""


class Grid(NamedTuple):
    """The task of a grid: the source that it belongs to, its name before a setting's, its classes, its training set."""

    source: str
    name: str
    classes: int
    train: int


DIGITS, REVIEWS = Grid("digits", "", 5, 500), Grid("text", "reviews, ", 2, 1000)
MPNET = Grid("text", "MPNet, reviews, ", 2, 1000)


def findings_of_grid(
    runs: pd.DataFrame, middle: float = 0.016, within: float = 1.0, grid: Grid = DIGITS
) -> list[Member]:
    """Undecided members for findings 1, 2 and 4, by optimizer, attack and dose.

    Parameters
    ----------
    runs : DataFrame
        Recorded runs of one task and budget: full, head, and LoRA at several ranks with one variance and scaling;
        those without an attack at every learning rate, those with one at the admissible ones at least.
    middle : float
        The backdoor's poison rate whose effects are primary.
    within : float
        Standard errors of `admissible.validation`.
    grid : Grid
        The task.
    """
    return [
        Member(finding, setting.half, grid.source, setting.name, effect, MARGINS[setting.half], primary, failed,
               diverged)
        for setting in settings(runs, within, grid).values()
        for primary in [setting.half == "flips" or setting.poison_rate == middle]
        for finding, effect, failed, diverged in setting.effects()
    ]  # fmt: skip


def settings(runs: pd.DataFrame, within: float = 1.0, grid: Grid = DIGITS) -> dict[tuple[str, str, float], Setting]:
    """The attacked runs by optimizer, attack and poison rate, diverged ones as guesses."""
    table, filled = validation(runs, within), guessed(runs, grid.classes)
    clean = filled[filled.attack == "none"]
    found = [
        Setting(part, clean[clean.optimizer == key[0]], table[table.optimizer == key[0]], grid)
        for key, part in harms(filled).groupby(["optimizer", "attack", "poison_rate"])
    ]
    return {(setting.optimizer, setting.attack, setting.poison_rate): setting for setting in found}


class Setting:
    """Harm at one optimizer, attack and dose, arm by arm at its admissible rates; the clean runs beside them."""

    def __init__(self, rows: pd.DataFrame, clean: pd.DataFrame, table: pd.DataFrame, grid: Grid) -> None:
        self.rows, self.clean, self.table = rows, clean, table
        first = rows.iloc[0]
        self.optimizer, self.attack, self.poison_rate = (
            str(first.optimizer),
            str(first.attack),
            float(first.poison_rate),
        )
        self.half = HALVES[self.attack]
        self.name = f"{grid.name}{WORDS[self.optimizer]}, {rows.poisoned.max():.0f} of {grid.train}"
        self.ranks = sorted(int(rank) for rank in rows["rank"].dropna().unique())

    def arm(self, method: str, rank: int | None = None, column: str = "harm") -> Choices:
        return choices(self._of(self.rows, method, rank), self._of(self.table, method, rank), column)

    def effects(self) -> list[tuple[str, EffectRange, str, int]]:
        """(finding, effect, why the setting failed, diverged runs)."""
        found = []
        for finding, (name, weights) in self._contrasts().items():
            arms = [arm for arm, weight in weights.items() if weight]
            harm = [self.arm(*arm) for arm in arms]
            effect = over_rates(harm, [weights[arm] for arm in arms], name, UNITS[self.attack])
            found.append((finding, effect, self.failed(arms), sum(self._diverged(*arm) for arm in arms)))
        return found

    def _contrasts(self) -> dict[str, tuple[str, dict[Arm, float]]]:
        """Finding -> the name of its effect, and the weights of the arms' harm in it."""
        flips, low, high = self.attack == "untargeted", self.ranks[0], self.ranks[-1]
        sign = -1.0 if flips else 1.0
        slope = sign * float(np.log2(high / low)) * slope_weights(np.log2(self.ranks))
        found: dict[str, tuple[str, dict[Arm, float]]] = {
            "finding-1": (
                f"{'extra harm of LoRA' if flips else 'harm that LoRA is spared'}, r = {RANK}",
                {("full", None): sign, ("lora", RANK): -sign},
            ),
            "finding-2": (
                f"{'fall' if flips else 'rise'} of harm from r = {low} to {high}",
                {("lora", rank): float(weight) for rank, weight in zip(self.ranks, slope, strict=True)},
            ),
        }
        ranks = performing(self.table[self.table.method == "lora"])
        if not flips and len(ranks) > 1:
            lowest, following = ranks[:2]
            name = f"harm at r = {following} minus r = {lowest}"
            found["finding-4"] = name, {("lora", following): 1.0, ("lora", lowest): -1.0}
        return found

    def failed(self, arms: Sequence[Arm]) -> str:
        """Why nothing can be said of these arms, by the protocol; empty if something can."""
        success = next(iter(self.arm("full", column="attack_success").values())).mean()
        if self.attack == "backdoor" and success < WORKS:
            return f"attack success of full fine-tuning is {success:.2f}"
        head = self._clean_accuracy("head")
        for method, rank in arms:
            if (accuracy := self._clean_accuracy(method, rank)) < head:
                name = f"LoRA r = {rank}" if rank else method
                return f"clean accuracy of {name} is {accuracy:.3f}, the head's {head:.3f}"
        return ""

    def _clean_accuracy(self, method: str, rank: int | None = None) -> float:
        """On test data without an attack, at the best learning rate."""
        rows, table = (self._of(part, method, rank) for part in (self.clean, self.table))
        return float(next(iter(choices(rows, table, "clean_accuracy").values())).mean())

    def _diverged(self, method: str, rank: int | None) -> int:
        return sum(int(series.sum()) for series in self.arm(method, rank, "diverged").values())

    @staticmethod
    def _of(rows: pd.DataFrame, method: str, rank: int | None) -> pd.DataFrame:
        return rows[(rows.method == method) & (rows["rank"].isna() if rank is None else rows["rank"] == rank)]
