"""From runs to effects: an estimate with its 95 % interval, made by one of a few standard methods.

Each maker wraps scipy or statsmodels and returns an `Effect`. The pages say which finding an effect speaks to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    error, p : float, optional
        Standard error, and p-value of no effect, where the method gives one.

    Raises
    ------
    ValueError
        If the estimate is not finite or low <= high does not hold.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    unit: str = ""
    error: float | None = None
    p: float | None = None

    def __post_init__(self) -> None:
        for field in ("value", "low", "high"):
            object.__setattr__(self, field, float(getattr(self, field)))
        if not math.isfinite(self.value):
            raise ValueError(f"value of {self.name!r} must be finite; got {self.value}")
        if not self.low <= self.high:
            raise ValueError(f"low must be at most high; got {self.low} and {self.high} for {self.name!r}")

    def __neg__(self) -> Effect:
        """The same effect seen from the other side."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low)

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"

    def renamed(self, name: str) -> Effect:
        """The same effect under another name."""
        return replace(self, name=name)


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
    mean, std, n = (np.array(column, dtype=float) for column in zip(*groups, strict=True))
    share = np.square(weights) * std**2 / n
    value, error = float(np.dot(weights, mean)), float(np.sqrt(share.sum()))
    runs = int(n.sum())
    if error == 0:
        return Effect(name, value, value, value, runs, unit, 0.0, float(value == 0))
    freedom = share.sum() ** 2 / (share**2 / (n - 1)).sum()
    low, high = t.interval(LEVEL, freedom, value, error)
    return Effect(name, value, low, high, runs, unit, error, float(2 * t.sf(abs(value) / error, freedom)))


def welch(first: tuple[float, float, int], second: tuple[float, float, int], name: str, unit: str = "") -> Effect:
    """Mean of the first group minus mean of the second, from (mean, std, n) of each, with unequal variances."""
    return contrast([first, second], [1, -1], name, unit)


def paired(first: ArrayLike, second: ArrayLike, name: str, unit: str = "") -> Effect:
    """Mean of first - second over pairs that share a seed, by the paired t-test; arrays of shape (seeds,)."""
    from scipy.stats import ttest_rel

    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(f"first and second must have one shape (seeds,), seeds >= 2; got {a.shape} and {b.shape}")
    difference = a - b
    value, error = float(difference.mean()), float(difference.std(ddof=1) / len(a) ** 0.5)
    if error == 0:
        return Effect(name, value, value, value, len(a), unit, 0.0, float(value == 0))
    test = ttest_rel(a, b)
    low, high = test.confidence_interval(LEVEL)
    return Effect(name, value, low, high, len(a), unit, error, float(test.pvalue))


def over_tasks(effects: Sequence[Effect], name: str) -> Effect:
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
    return Effect(name, value, low, high, len(effects), effects[0].unit, error, float(p))


def spearman(x: ArrayLike, y: ArrayLike, rng: np.random.Generator, name: str) -> Effect:
    """Spearman's rank correlation of x and y, arrays of shape (n,), with a bootstrap interval over pairs."""
    from scipy.stats import bootstrap, rankdata, zscore

    def correlation(a: Any, b: Any, axis: int = -1) -> Any:
        one, other = (zscore(rankdata(values, axis=axis), axis=axis) for values in (a, b))
        return (one * other).mean(axis=axis)

    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        raise ValueError(f"x and y of {name!r} must have one shape (n,) and not be constant; got {a.shape}, {b.shape}")
    result = bootstrap(
        (a, b), correlation, paired=True, vectorized=True, n_resamples=2000, confidence_level=LEVEL,
        method="percentile", random_state=rng,
    )  # fmt: skip
    interval = result.confidence_interval
    return Effect(name, float(correlation(a, b)), interval.low, interval.high, len(a), "", float(result.standard_error))


def parametric(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    mean: ArrayLike,
    std: ArrayLike,
    n: int,
    rng: np.random.Generator,
    name: str,
    unit: str = "",
    draws: int = 4000,
) -> Effect:
    """A statistic of several group means, with a percentile interval over draws of what those means may be.

    Each mean is redrawn from its t distribution with n - 1 degrees of freedom, scale std / sqrt(n).

    Parameters
    ----------
    statistic : callable
        Maps means of shape (draws, \\*shape) to (draws,).
    mean, std : array_like (\\*shape)
        Summaries of groups of `n` runs each; std with n - 1 in the denominator.
    rng : numpy Generator
    name, unit : str
        See `Effect`.
    draws : int
        How many; with 4000 the ends of the interval are known to about 3 % of its width.
    """
    centre, scale = np.asarray(mean, dtype=float), np.asarray(std, dtype=float) / n**0.5
    values = statistic(centre + scale * rng.standard_t(n - 1, (draws, *centre.shape)))
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    runs = n * centre.size
    return Effect(name, float(statistic(centre[None])[0]), low, high, runs, unit, float(values.std()))


def rank_correlation(x: ArrayLike) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Statistic for `parametric`: Spearman's correlation of x, shape (k,), with means of shape (draws, k)."""
    from scipy.stats import rankdata, zscore

    fixed = zscore(rankdata(x))
    return lambda means: np.asarray(zscore(rankdata(means, axis=-1), axis=-1) @ fixed / len(fixed))


def dose(rates: ArrayLike, accuracy: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Poison rate at which accuracy has fallen to `level`.

    Curves are made monotone by least squares (isotonic regression) and read between the measured rates, linearly in
    the logarithm. Nothing is extrapolated: a curve that is below the level everywhere gives the lowest rate, one
    that is above it the highest.

    Parameters
    ----------
    rates : array_like (k,)
        Increasing, above 0.
    accuracy : array (draws, k)
    level : float

    Returns
    -------
    array (draws,)
    """
    from scipy.optimize import isotonic_regression

    fits = [isotonic_regression(curve, increasing=False).x for curve in accuracy]
    return np.exp([np.interp(-level, -fit, np.log(np.asarray(rates, dtype=float))) for fit in fits])


def levels(groups: Sequence[tuple[float, float, int]], name: str) -> Effect:
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

    mean, std, n = (np.array(column, dtype=float) for column in zip(*groups, strict=True))
    test = anova_generic(mean, std**2, n, use_var="unequal")
    return _share_of_variance(test.statistic, test.df, float(test.pvalue), int(n.sum()), name)


def repeated_levels(outcomes: ArrayLike, name: str) -> Effect:
    """As `levels`, for outcomes of shape (seeds, levels) in which a seed's runs are compared with each other.

    By analysis of variance with repeated measures: what seeds differ by, whatever the level, is taken off first.
    """
    import pandas as pd
    from statsmodels.stats.anova import AnovaRM

    table = np.asarray(outcomes, dtype=float)
    if table.ndim != 2 or min(table.shape) < 2 or not np.isfinite(table).all():
        raise ValueError(f"outcomes of {name!r} must be finite, of shape (seeds, levels), two or more of each")
    long = pd.DataFrame(table).reset_index(names="seed").melt("seed", var_name="level", value_name="outcome")
    statistic, between, within, p = AnovaRM(long, "outcome", "seed", ["level"]).fit().anova_table.iloc[0]
    return _share_of_variance(statistic, (between, within), float(p), table.size, name)


def _share_of_variance(statistic: float, df: tuple[float, float], p: float, runs: int, name: str) -> Effect:
    """Noncentrality of an F statistic, with its interval, as a share of variance: c / (c + runs), by Cohen's f."""
    from statsmodels.stats.oneway import confint_noncentrality

    between, within = df
    low, high = confint_noncentrality(statistic, df, alpha=1 - LEVEL)
    value = max(0.0, statistic * between * (within - 2) / within - between)
    value, low, high = (float(c / (c + runs)) for c in (value, low, high))
    return Effect(name, value, low, high, runs, "share of variance", p=p)


def discoveries(effects: Sequence[Effect], rate: float = 0.05) -> NDArray[np.bool_]:
    """Which effects stay, shape (n,), when at most `rate` of those that do may be false (Benjamini and Hochberg)."""
    from statsmodels.stats.multitest import multipletests

    missing = [e.name for e in effects if e.p is None]
    if missing or not effects:
        raise ValueError(f"effects must be one or more with a p-value each; none in {missing}")
    return np.asarray(multipletests([e.p for e in effects], rate, method="fdr_bh")[0])
