"""What share of the variance between runs the level of a factor explains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .effects import LEVEL, Effect, summaries


def variance_explained(groups: Sequence[tuple[float, float, int]], name: str) -> Effect:
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

    mean, std, n = summaries(groups, name)
    if len(mean) < 2 or not std.all():
        raise ValueError(f"groups of {name!r} must be two or more, each with a spread; got {list(groups)}")
    test = anova_generic(mean, std**2, n, use_var="unequal")
    return _share_of_variance(test.statistic, test.df, float(test.pvalue), int(n.sum()), name)


def variance_explained_within(outcomes: ArrayLike, name: str) -> Effect:
    """As `variance_explained`, for outcomes (seeds, levels) in which the runs of one seed are compared.

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
