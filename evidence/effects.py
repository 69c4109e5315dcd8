"""From runs to effects: an estimate with its 95 % interval, made by one of a few standard methods.

Each maker wraps scipy or statsmodels and returns an `Effect`. Which finding an effect belongs to is said on the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
"""Confidence level of every interval."""


@dataclass(frozen=True)
class Effect:
    """An estimated effect and the interval that holds it with 95 % confidence.

    Parameters
    ----------
    name : str
        What is compared with what, readable in a table.
    value, low, high : float
        Estimate and interval; an end may be infinite.
    n : int
        How many independent units stand behind it: runs, pairs, tasks or configurations.
    unit : str
        Of the estimate, e.g. "accuracy"; empty for a correlation.
    error, p, freedom : float, optional
        Standard error, p-value of no effect, and degrees of freedom of its t distribution, where the method gives them.

    Raises
    ------
    ValueError
        If the estimate is not finite, low <= high does not hold, n is below 1, the error is negative, or p is no
        probability.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    unit: str = ""
    error: float | None = None
    p: float | None = None
    freedom: float | None = None

    def __post_init__(self) -> None:
        for field in ("value", "low", "high"):
            object.__setattr__(self, field, float(getattr(self, field)))
        if not math.isfinite(self.value):
            raise ValueError(f"value of {self.name!r} must be finite; got {self.value}")
        if not self.low <= self.high:
            raise ValueError(f"low must be at most high; got {self.low} and {self.high} for {self.name!r}")
        if self.n < 1:
            raise ValueError(f"n of {self.name!r} must be at least 1; got {self.n}")
        if self.error is not None and not self.error >= 0:
            raise ValueError(f"error of {self.name!r} must be 0 or above; got {self.error}")
        if self.p is not None and not 0 <= self.p <= 1:
            raise ValueError(f"p of {self.name!r} must be from 0 to 1; got {self.p}")

    def __neg__(self) -> Self:
        """The effect with its sign reversed."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low)

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"

    def renamed(self, name: str) -> Self:
        """The same effect under another name."""
        return replace(self, name=name)

    def p_above(self, bound: float = 0.0) -> float:
        """One-sided p-value of the hypothesis that the effect is at most `bound`; small says that it is above.

        Raises
        ------
        ValueError
            If the effect has no standard error or degrees of freedom.
        """
        from scipy.special import stdtr  # t.sf checks its arguments at length, and this is asked some 10^4 times

        if self.error is None or self.freedom is None:
            raise ValueError(f"effect {self.name!r} must have a standard error and degrees of freedom")
        if self.error == 0:
            return float(self.value <= bound)
        return float(stdtr(self.freedom, (bound - self.value) / self.error))

    def p_below(self, bound: float = 0.0) -> float:
        """One-sided p-value of the hypothesis that the effect is at least `bound`; small says that it is below."""
        return (-self).p_above(-bound)

    def p_difference(self) -> float:
        """Two-sided p-value of no effect."""
        return min(1.0, 2 * min(self.p_above(), self.p_below()))

    def p_within(self, margin: float) -> float:
        """p-value of an effect of size `margin` or more, by two one-sided tests (Schuirmann 1987); small says less."""
        return max(self.p_above(-margin), self.p_below(margin))

    def detectable(self, power: float = 0.8) -> float:
        """Size of an effect that a two-sided test at 5 % with this standard error finds with probability `power`."""
        from scipy.optimize import brentq
        from scipy.stats import nct, t

        if not self.error or self.freedom is None:
            raise ValueError(f"effect {self.name!r} must have a standard error above 0 and degrees of freedom")
        df, critical = self.freedom, t.ppf((1 + LEVEL) / 2, self.freedom)
        return self.error * float(brentq(lambda shift: nct.sf(critical, df, shift) - power, 0.0, 5 * critical + 10))


def summaries(groups: Sequence[tuple[float, float, int]], name: str) -> tuple[NDArray[np.float64], ...]:
    """Means, standard deviations and numbers of runs of groups, an array (k,) each.

    Raises
    ------
    ValueError
        If there is no group, a number is not finite, a deviation is negative, or a group has fewer than two runs.
    """
    table = np.array(list(groups), dtype=float)
    if table.ndim != 2 or table.shape[1] != 3 or not np.isfinite(table).all():
        raise ValueError(f"groups of {name!r} must be finite (mean, std, n), one or more; got {list(groups)}")
    mean, std, n = table.T
    if (std < 0).any() or (n < 2).any():
        raise ValueError(f"groups of {name!r} must have a std of 0 or above and two runs or more; got {list(groups)}")
    return mean, std, n


def contrast(groups: Sequence[tuple[float, float, int]], weights: Sequence[float], name: str, unit: str = "") -> Effect:
    """Weighted sum of the means of independent groups, by Welch's t with Satterthwaite's degrees of freedom.

    Parameters
    ----------
    groups : sequence of (mean, std, n)
        Summaries; std with n - 1 in the denominator.
    weights : sequence of float
        One per group; (1, -1) is Welch's difference of two means.
    name, unit : str
        See `Effect`.
    """
    from scipy.stats import t

    if len(groups) != len(weights):
        raise ValueError(f"weights must match the {len(groups)} groups; got {len(weights)}")
    mean, std, n = summaries(groups, name)
    share = np.square(weights) * std**2 / n
    value, error = float(np.dot(weights, mean)), float(np.sqrt(share.sum()))
    runs = int(n.sum())
    if error == 0:
        return Effect(name, value, value, value, runs, unit, 0.0, float(value == 0), runs - len(groups))
    freedom = float(share.sum() ** 2 / (share**2 / (n - 1)).sum())
    low, high = t.interval(LEVEL, freedom, value, error)
    return Effect(name, value, low, high, runs, unit, error, float(2 * t.sf(abs(value) / error, freedom)), freedom)


def paired_contrast(outcomes: ArrayLike, weights: ArrayLike, name: str, unit: str = "") -> Effect:
    """Weighted sum of the arms within each seed, averaged over seeds, with Student's t interval over seeds.

    Parameters
    ----------
    outcomes : array_like (seeds, arms)
        Two seeds or more; all finite.
    weights : sequence of float (arms)
        (1, -1) is the paired difference of two arms; those of `slope_weights` a slope fitted for each seed.
    name, unit : str
        See `Effect`.
    """
    from scipy.stats import ttest_1samp

    table = np.asarray(outcomes, dtype=float)
    if table.ndim != 2 or len(table) < 2 or not np.isfinite(table).all():
        raise ValueError(f"outcomes of {name!r} must be finite, of shape (seeds, arms), seeds >= 2; got {table.shape}")
    coefficients = np.asarray(weights, dtype=float)
    if coefficients.shape != table.shape[1:]:
        raise ValueError(f"weights must match the {table.shape[1]} arms; got {coefficients.size}")
    sums = table @ coefficients
    value, error = float(sums.mean()), float(sums.std(ddof=1) / len(sums) ** 0.5)
    if error == 0:
        return Effect(name, value, value, value, len(sums), unit, 0.0, float(value == 0), len(sums) - 1)
    test = ttest_1samp(sums, 0.0)
    low, high = test.confidence_interval(LEVEL)
    return Effect(name, value, low, high, len(sums), unit, error, float(test.pvalue), len(sums) - 1)


def slope_weights(x: ArrayLike) -> NDArray[np.float64]:
    """Weights, shape (k,), that make a weighted sum of outcomes at x, shape (k,), their least-squares slope.

    Raises
    ------
    ValueError
        If x holds fewer than two different values, or one that is not finite.
    """
    values = np.asarray(x, dtype=float)
    if values.ndim != 1 or not np.isfinite(values).all() or len(np.unique(values)) < 2:
        raise ValueError(f"x must hold finite numbers, two different values or more; got {values.tolist()}")
    centred = values - values.mean()
    return centred / (centred**2).sum()


def random_effects(effects: Sequence[Effect], name: str) -> Effect:
    """Random-effects summary of one effect measured on several tasks.

    The variance between tasks is Paule and Mandel's; the interval is Hartung and Knapp's with t quantiles, but never
    narrower than that of the random-effects model itself, which few tasks that happen to agree would undercut.

    Parameters
    ----------
    effects : sequence of Effect
        One per task, at least two, each with a standard error above 0.

    Notes
    -----
    Source: Hartung and Knapp (2001); the safeguard: Röver, Knapp and Friede (2015).
    """
    from scipy.stats import t
    from statsmodels.stats.meta_analysis import combine_effects

    if len(effects) < 2 or any(not e.error for e in effects):
        raise ValueError(f"effects must be two or more with a standard error above 0; got {list(effects)}")
    values, variances = (
        np.array(column) for column in zip(*((e.value, (e.error or 0.0) ** 2) for e in effects), strict=True)
    )
    summary = combine_effects(values, variances, method_re="iterated", use_t=True)
    value = float(summary.mean_effect_re)
    error = float(max(summary.sd_eff_w_re, summary.sd_eff_w_re_hksj))
    low, high = t.interval(LEVEL, len(effects) - 1, value, error)
    p = 2 * t.sf(abs(value) / error, len(effects) - 1)
    return Effect(name, value, low, high, len(effects), effects[0].unit, error, float(p), len(effects) - 1)


@dataclass(frozen=True)
class EffectRange(Effect):
    """One effect under several choices that the data cannot tell apart, such as learning rates.

    Its estimate is that of the first choice; its interval holds those of all choices. What it says must hold under
    each of them: its p-values are the largest of its members' (an intersection-union test, Berger 1982).

    Parameters
    ----------
    lowest, highest : float
        The smallest and the largest of the members' estimates.
    members : tuple of Effect
    """

    lowest: float = math.nan
    highest: float = math.nan
    members: tuple[Effect, ...] = ()

    def __neg__(self) -> Self:
        """The same range seen from the other side."""
        seen = replace(self, value=-self.value, low=-self.high, high=-self.low, lowest=-self.highest)
        return replace(seen, highest=-self.lowest, members=tuple(-effect for effect in self.members))

    def p_above(self, bound: float = 0.0) -> float:
        return max(effect.p_above(bound) for effect in self.members)

    def p_below(self, bound: float = 0.0) -> float:
        return max(effect.p_below(bound) for effect in self.members)

    def detectable(self, power: float = 0.8) -> float:
        return max(effect.detectable(power) for effect in self.members)


def over_choices(effects: Sequence[Effect], name: str) -> EffectRange:
    """The range of an effect over choices, the first of which is the preferred one.

    Raises
    ------
    ValueError
        Without effects, or if their units differ.
    """
    if not effects or len({effect.unit for effect in effects}) > 1:
        raise ValueError(f"effects of {name!r} must be one or more, in one unit; got {[e.unit for e in effects]}")
    values = [effect.value for effect in effects]
    first, members = effects[0], tuple(effects)
    low, high = min(e.low for e in effects), max(e.high for e in effects)
    n, error = min(e.n for e in effects), max(e.error or 0.0 for e in effects)
    found = EffectRange(
        name, first.value, low, high, n, first.unit, error, freedom=first.freedom, lowest=min(values),
        highest=max(values), members=members,
    )  # fmt: skip
    return replace(found, p=found.p_difference())
