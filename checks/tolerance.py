"""How far a random number may fall from its law: bounds that are missed with a stated probability, and fits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import binom, linregress, norm, t
from torch import Tensor

from evidence.effects import slope_weights

MISS = 1e-5
"""Probability with which one random check may miss, unless it says otherwise."""


def deviations(miss: float = MISS) -> float:
    """Standard deviations that a Gaussian number leaves, to either side, with probability `miss`."""
    return float(norm.isf(miss / 2))


def lipschitz(miss: float = MISS) -> float:
    """t with exp(-t^2 / 2) = miss: how far a 1-Lipschitz function of Gaussians exceeds its mean."""
    return math.sqrt(-2 * math.log(miss))


def distribution(draws: int, miss: float = MISS) -> float:
    """Distance that an empirical distribution function of `draws` draws keeps everywhere from its law.

    The inequality of Dvoretzky, Kiefer and Wolfowitz, with Massart's constant.
    """
    return math.sqrt(math.log(2 / miss) / (2 * draws))


def share(probability: float, draws: int, miss: float = MISS) -> float:
    """The smallest share of `draws` draws that an event of this probability has, but for `miss`."""
    return float(binom.ppf(miss, draws, probability)) / draws


def power(x: ArrayLike, y: ArrayLike) -> float:
    """The power of y in x: the slope of a line fitted in log-log axes."""
    return float(linregress(np.log(x), np.log(y)).slope)


def slope(x: Sequence[float], errors: Sequence[float] | float, miss: float = MISS) -> float:
    """How far a fitted slope in log-log axes may be off, from the relative standard errors of the points."""
    weights = slope_weights(np.log(np.asarray(x, dtype=float)))
    return deviations(miss) * float(np.sqrt((weights**2 * np.square(errors)).sum()))


def student(freedom: int, miss: float = MISS) -> float:
    """Standard errors that a mean leaves, to either side, with probability `miss`, if the error is estimated too."""
    return float(t.isf(miss / 2, freedom))


def in_errors(values: Tensor, expected: float) -> float:
    """Distance of a mean from what is expected, in standard errors."""
    return ((values.mean() - expected) / (values.std() / len(values) ** 0.5)).item()


def rank_powers(table: pd.DataFrame) -> pd.Series:
    """Power of the rank in "decrease", by rule and optimizer."""
    groups = {str(key): g for key, g in table.groupby(table.rule + "|" + table.optimizer)}
    slopes = {tuple(key.split("|")): power(g["rank"], g.decrease) for key, g in groups.items()}
    return pd.Series(slopes).rename_axis(["rule", "optimizer"])
