"""What the third grid of `protocol.md` says of findings 3 and 5: the variance of A, over learning rates.

Statements ``finding-3``, ``finding-5``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from evidence.effects import EffectRange, over_choices, slope_weights
from evidence.findings import Member
from evidence.variance import gaps_within_seeds

from .admissible import Choices, choices, over_rates
from .family import MARGINS
from .identified import RANK, Setting, settings
from .runs import UNITS, compare, times_n


def findings_of_variances(runs: pd.DataFrame, grid: pd.DataFrame) -> list[Member]:
    """Undecided members for findings 3 and 5, by optimizer and attack.

    Parameters
    ----------
    runs : DataFrame
        Recorded runs of LoRA at one rank and scaling, at several variances k/n and learning rates.
    grid : DataFrame
        The runs of `identified.findings_of_grid`: whether a setting failed is seen there.
    """
    others, members = settings(grid), []
    for key, setting in settings(runs).items():
        failed = others[key].failed([("lora", RANK)])
        for finding, effect, diverged in effects(setting):
            margin = MARGINS[setting.half]
            members.append(
                Member(finding, setting.half, "digits", setting.name, effect, margin, True, failed, diverged)
            )
    return members


def effects(setting: Setting) -> list[tuple[str, EffectRange, int]]:
    """(finding, effect, diverged runs): the largest gap between variances, and the rise of harm over their range."""
    unit, harm = UNITS[setting.attack], _by_k(setting, "harm")
    weights = np.log10(max(harm) / min(harm)) * slope_weights(np.log10(list(harm)))
    diverged = sum(int(s.sum()) for arm in _by_k(setting, "diverged").values() for s in arm.values())
    name = f"k from {min(harm):g} to {max(harm):g}"
    rise = over_rates(list(harm.values()), weights.tolist(), f"rise of harm, {name}", unit)
    return [("finding-3", gaps_over_rates(harm, f"largest gap in harm, {name}", unit), diverged),
            ("finding-5", rise, diverged)]  # fmt: skip


def at_common_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """Rise of harm over the range of k with one learning rate for all values of k: what k does by itself.

    Returns
    -------
    DataFrame
        setting, learning rate, value, low, high (95 % over seeds), p.
    """
    rows = []
    for setting in settings(runs).values():
        table = setting.rows.assign(k=times_n(setting.rows.variance))
        for rate, part in table.groupby("learning_rate"):
            harm = part.pivot_table(index="seed", columns="k", values="harm")
            ks = np.log10(harm.columns.to_numpy(dtype=float))
            weights = np.ptp(ks) * slope_weights(ks)
            e = compare([harm[k] for k in harm.columns], weights, f"{setting.name}, {rate:g}", UNITS[setting.attack])
            rows.append([setting.half, setting.name, rate, e.value, e.low, e.high, e.p])
    return pd.DataFrame(rows, columns=["half", "setting", "learning rate", "value", "low", "high", "p"])


def gaps_over_rates(arms: Mapping[float, Choices], name: str, unit: str) -> EffectRange:
    """Largest gap between arms, paired by seed, over every combination of their admissible learning rates.

    Every arm has the same seeds at every learning rate.
    """
    return over_choices(gaps_within_seeds([list(arm.values()) for arm in arms.values()], name, unit), name)


def _by_k(setting: Setting, column: str) -> dict[float, Choices]:
    rows, table = (part.assign(k=times_n(part.variance)) for part in (setting.rows, setting.table))
    return {k: choices(rows[rows.k == k], table[table.k == k], column) for k in sorted(rows.k.unique())}
