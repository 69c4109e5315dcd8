"""Effects by resampling: rank correlations, and statistics of group means whose spread is known.

Generators are given by the caller, so a page repeats itself to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .effects import LEVEL, Effect


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


def partial_spearman(
    x: ArrayLike, y: ArrayLike, controls: ArrayLike, rng: np.random.Generator, name: str, draws: int = 2000
) -> Effect:
    """Spearman's correlation of x and y, (n,), that is left when controls (k, n) are held, with a bootstrap interval.

    That is the partial correlation of the ranks. The interval is the percentile one over redrawn rows.

    Raises
    ------
    ValueError
        If shapes do not match, something is not finite or constant, or there are not more rows than variables.
    """
    rows = np.vstack([x, y, np.atleast_2d(np.asarray(controls, dtype=float))]).astype(float)
    if not np.isfinite(rows).all() or (np.ptp(rows, axis=1) == 0).any() or rows.shape[1] <= rows.shape[0]:
        raise ValueError(f"x, y and controls of {name!r} must be finite, not constant, and more rows than variables")
    n = rows.shape[1]
    again = rng.integers(n, size=(draws, n))
    drawn = _partial(np.moveaxis(rows[:, again], 0, 1))
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(_partial(rows[None])[0])
    return Effect(name, value, min(low, value), max(high, value), n, "", float(np.nanstd(drawn)))


def _partial(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Partial correlation of the ranks of the first two rows of tables (m, k, n), given the others: (m,)."""
    from scipy.stats import rankdata

    ranks = rankdata(tables, axis=-1)
    centred = ranks - ranks.mean(axis=-1, keepdims=True)
    pair, held = centred[:, :2], centred[:, 2:]
    gram = np.linalg.pinv(held @ held.transpose(0, 2, 1), hermitian=True)
    rest = pair - pair @ held.transpose(0, 2, 1) @ gram @ held
    products = rest @ rest.transpose(0, 2, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(products[:, 0, 1] / np.sqrt(products[:, 0, 0] * products[:, 1, 1]))


def parametric_bootstrap(
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
    if n < 2 or draws < 1:
        raise ValueError(f"n must be 2 or more and draws 1 or more; got {n} and {draws} for {name!r}")
    centre, scale = np.asarray(mean, dtype=float), np.asarray(std, dtype=float) / n**0.5
    if centre.shape != scale.shape or not np.isfinite(centre).all() or not (scale >= 0).all():
        raise ValueError(
            f"mean and std of {name!r} must be finite, std 0 or above, of one shape; got {mean!r}, {std!r}"
        )
    values = statistic(centre + scale * rng.standard_t(n - 1, (draws, *centre.shape)))
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    runs = n * centre.size
    return Effect(name, float(statistic(centre[None])[0]), low, high, runs, unit, float(values.std()))


def rank_correlation(x: ArrayLike) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Statistic for `parametric_bootstrap`: Spearman's correlation of x, shape (k,), with means of shape (draws, k)."""
    from scipy.stats import rankdata, zscore

    fixed = zscore(rankdata(x))
    return lambda means: np.asarray(zscore(rankdata(means, axis=-1), axis=-1) @ fixed / len(fixed))


def poison_rate_at(poison_rates: ArrayLike, accuracy: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Poison rate at which accuracy has fallen to `level`.

    Curves are made monotone by least squares (isotonic regression) and read between the measured rates, linearly in
    the logarithm. Nothing is extrapolated: a curve that is below the level everywhere gives the lowest poison rate, one
    that is above it the highest.

    Parameters
    ----------
    poison_rates : array_like (k,)
        Increasing, above 0.
    accuracy : array (draws, k)
    level : float

    Returns
    -------
    array (draws,)
    """
    from scipy.optimize import isotonic_regression

    rates = np.asarray(poison_rates, dtype=float)
    if not (rates[:1] > 0).all() or not (np.diff(rates) > 0).all():
        raise ValueError(f"poison_rates must increase and be above 0; got {rates.tolist()}")
    if accuracy.ndim != 2 or accuracy.shape[1:] != rates.shape or not np.isfinite(accuracy).all():
        raise ValueError(f"accuracy must be finite, of shape (draws, {len(rates)}); got {accuracy.shape}")
    fits = [isotonic_regression(curve, increasing=False).x for curve in accuracy]
    return np.exp([np.interp(-level, -fit, np.log(rates)) for fit in fits])
