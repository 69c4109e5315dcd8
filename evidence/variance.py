"""Do the levels of a factor matter: the share of the variance that they explain, and the largest gap between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .effects import LEVEL, Effect, contrast, paired_contrast, summaries

Group = tuple[float, float, int]
"""(mean, std, n) of independent runs; std with n - 1 in the denominator."""


@dataclass(frozen=True)
class LevelGap(Effect):
    """How far apart the means of the two most different levels are, 0 or above.

    Whether they differ at all is decided by an analysis of variance, `p`; whether they differ by less than a margin,
    by two one-sided tests for each pair of levels, all of which must agree. The upper end of the interval is the
    largest of the pairs' own, the lower end the largest after Bonferroni's correction for their number, at least 0.

    Parameters
    ----------
    pairs : tuple of Effect
        Differences of two levels each.
    """

    pairs: tuple[Effect, ...] = ()

    def __neg__(self) -> Self:
        raise TypeError("a gap has no other side: it is 0 or above")

    def p_above(self, bound: float = 0.0) -> float:
        """Of no difference between the levels, halved as a one-sided test is; for other bounds that of the pairs."""
        if bound < 0:
            return 0.0
        if bound == 0 and self.p is not None:
            return self.p / 2
        return min(1.0, len(self.pairs) * min(min(pair.p_above(bound), pair.p_below(-bound)) for pair in self.pairs))

    def p_below(self, bound: float = 0.0) -> float:
        return 1.0 if bound <= 0 else max(pair.p_within(bound) for pair in self.pairs)

    def detectable(self, power: float = 0.8) -> float:
        """Size of a gap between two given levels that a paired test of them alone finds with probability `power`."""
        return max(pair.detectable(power) for pair in self.pairs)


def gap_between_groups(groups: Sequence[Group], name: str, unit: str = "") -> LevelGap:
    """Largest gap between the means of independent groups, by Welch's analysis of variance."""
    from statsmodels.stats.oneway import anova_generic

    mean, std, n = _with_spread(groups, name)
    pairs = [contrast(two, [1, -1], name, unit) for two in combinations(groups, 2)]
    p = float(anova_generic(mean, std**2, n, use_var="unequal").pvalue)
    return _gap(mean, pairs, p, int(n.sum()), name, unit)


def gap_within_seeds(outcomes: ArrayLike, name: str, unit: str = "") -> LevelGap:
    """Largest gap between the levels of outcomes (seeds, levels), by repeated measures.

    The degrees of freedom carry Greenhouse and Geisser's correction.
    """
    table = _checked(outcomes, name)
    return gaps_within_seeds([[column] for column in table.T], name, unit)[0]


def gaps_within_seeds(choices: Sequence[Sequence[ArrayLike]], name: str, unit: str = "") -> list[LevelGap]:
    """`gap_within_seeds` at every combination of choices: for each level one outcome (seeds,) or several."""

    @cache
    def difference(a: tuple[int, int], b: tuple[int, int]) -> Effect:
        pair = np.column_stack([choices[a[0]][a[1]], choices[b[0]][b[1]]])
        return paired_contrast(pair, [1, -1], name, unit)

    gaps = []
    for chosen in product(*(range(len(level)) for level in choices)):
        table = _checked(np.column_stack([choices[place][i] for place, i in enumerate(chosen)]), name)
        pairs = [difference(a, b) for a, b in combinations(enumerate(chosen), 2)]
        gaps.append(_gap(table.mean(axis=0), pairs, _repeated(table)[2], len(table), name, unit))
    return gaps


def variance_explained(groups: Sequence[Group], name: str) -> Effect:
    """Share of the variance between runs that the level of a factor explains, by Welch's analysis of variance.

    Parameters
    ----------
    groups : sequence of (mean, std, n)
        One per level, with one n.
    name : str

    Notes
    -----
    The interval inverts the noncentral F distribution; its lower end is 0 unless the test rejects equal means, so a
    share can be shown or not shown, never reversed. The estimate takes the unbiased noncentrality, at least 0.
    """
    from statsmodels.stats.oneway import anova_generic

    mean, std, n = _with_spread(groups, name)
    test = anova_generic(mean, std**2, n, use_var="unequal")
    return _share_of_variance(test.statistic, test.df, float(test.pvalue), int(n.sum()), name)


def variance_explained_within(outcomes: ArrayLike, name: str) -> Effect:
    """As `variance_explained`, for outcomes (seeds, levels) in which the runs of one seed are compared.

    By repeated measures: what seeds differ by, whatever the level, is taken off first. Differences between levels need
    not vary alike (sphericity): the degrees of freedom carry Greenhouse and Geisser's correction.
    """
    table = _checked(outcomes, name)
    statistic, df, p = _repeated(table)
    return _share_of_variance(statistic, df, p, table.size, name)


def greenhouse_geisser(outcomes: ArrayLike) -> float:
    """Epsilon of outcomes (seeds, levels): 1 if differences between levels vary alike, at least 1 / (levels - 1).

    Notes
    -----
    Source: Greenhouse and Geisser (1959); the covariance of the levels, centred in both directions, has eigenvalues
    whose squared sum over (levels - 1) times their sum of squares is epsilon.
    """
    table = _checked(outcomes, "greenhouse_geisser")
    covariance = np.cov(table, rowvar=False)
    covariance = covariance - covariance.mean(axis=0) - covariance.mean(axis=1)[:, None] + covariance.mean()
    squares = float((covariance**2).sum())
    return float(np.trace(covariance) ** 2 / (len(covariance) - 1) / squares) if squares else 1.0


def _with_spread(groups: Sequence[Group], name: str) -> tuple[NDArray[np.float64], ...]:
    """`summaries` of two groups or more, each of which varies: without, Welch's weights are infinite."""
    mean, std, n = summaries(groups, name)
    if len(mean) < 2 or not std.all():
        raise ValueError(f"groups of {name!r} must be two or more, each with a spread; got {list(groups)}")
    return mean, std, n


def _repeated(table: NDArray[np.float64]) -> tuple[float, tuple[float, float], float]:
    """F statistic of no difference between the columns, its corrected degrees of freedom, and the p-value."""
    from scipy.stats import f

    seeds, levels = table.shape
    means = table.mean(axis=0)
    rest = table - table.mean(axis=1, keepdims=True) - means + table.mean()
    between, within = levels - 1, (levels - 1) * (seeds - 1)
    signal, noise = seeds * float(((means - means.mean()) ** 2).sum()) / between, float((rest**2).sum()) / within
    epsilon = greenhouse_geisser(table)
    df = epsilon * between, epsilon * within
    if noise == 0:
        return (0.0, df, 1.0) if signal == 0 else (np.inf, df, 0.0)
    return signal / noise, df, float(f.sf(signal / noise, *df))


def _checked(outcomes: ArrayLike, name: str) -> NDArray[np.float64]:
    table = np.asarray(outcomes, dtype=float)
    if table.ndim != 2 or min(table.shape) < 2 or not np.isfinite(table).all():
        raise ValueError(f"outcomes of {name!r} must be finite, of shape (seeds, levels), two or more of each")
    return table


def _gap(means: NDArray[np.float64], pairs: Sequence[Effect], p: float, n: int, name: str, unit: str) -> LevelGap:
    from scipy.stats import t

    value, level = float(np.ptp(means)), 1 - (1 - LEVEL) / len(pairs)
    ends = [abs(e.value) - (e.error or 0.0) * float(t.ppf((1 + level) / 2, e.freedom)) for e in pairs]
    high = max(max(abs(e.low), abs(e.high)) for e in pairs)
    error = max(e.error or 0.0 for e in pairs)
    return LevelGap(name, value, min(value, max(0.0, *ends)), high, n, unit, error, p, pairs[0].freedom, tuple(pairs))


def _share_of_variance(statistic: float, df: tuple[float, float], p: float, runs: int, name: str) -> Effect:
    """Noncentrality of an F statistic, with its interval, as a share of variance: c / (c + runs), by Cohen's f."""
    from statsmodels.stats.oneway import confint_noncentrality

    between, within = df
    low, high = confint_noncentrality(statistic, df, alpha=1 - LEVEL)
    value = max(0.0, statistic * between * (within - 2) / within - between)
    value, low, high = (float(c / (c + runs)) for c in (value, low, high))
    return Effect(name, value, low, high, runs, "share of variance", p=p)
