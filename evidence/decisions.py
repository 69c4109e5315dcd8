"""What effects come to, all of them judged together: four outcomes, decided after a correction for their number.

An effect is oriented: positive is what its finding says. Its margin, fixed beforehand, is the smallest size that
matters. The outcome is

- "negligible" if two one-sided tests show that it is smaller than its margin, whatever its sign;
- else "supported" or "reversed" if it is shown to be above or below 0;
- else "inconclusive".

"Shown" is after Benjamini and Hochberg's procedure over the whole family, run once for the tests against 0 and once
for those against the margins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorantk.batches import check_real

from .effects import Effect

OUTCOMES = ("supported", "reversed", "negligible", "inconclusive")
FALSE_DISCOVERY = 0.05
"""Share of false ones among the tests that reject, at most, in expectation."""


def benjamini_hochberg(p: ArrayLike, level: float = FALSE_DISCOVERY) -> NDArray[np.bool_]:
    """Which of the p-values, shape (n,), stay if at most `level` of those that do may be false.

    Raises
    ------
    ValueError
        Without p-values, or if one is not in [0, 1].

    Notes
    -----
    Source: Benjamini and Hochberg (1995).
    """
    from statsmodels.stats.multitest import multipletests

    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1; got {level}")
    values = np.asarray(p, dtype=float)
    if values.ndim != 1 or not values.size or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p must be one or more values in [0, 1]; got {values}")
    return np.asarray(multipletests(values, level, method="fdr_bh")[0])


def decide(effects: Sequence[Effect], margins: Sequence[float]) -> list[str]:
    """Outcome of each effect of a family, one of `OUTCOMES`.

    Parameters
    ----------
    effects : sequence of Effect
        Oriented; the whole family, since the correction depends on its size.
    margins : sequence of float
        One above 0 for each effect, in its unit.

    Raises
    ------
    ValueError
        If the two do not match, or a margin is not above 0.
    """
    if len(effects) != len(margins):
        raise ValueError(f"margins must match the {len(effects)} effects; got {len(margins)}")
    for margin in margins:
        check_real("margin", margin, minimum=0.0, exclusive=True)
    differs = benjamini_hochberg([effect.p_difference() for effect in effects])
    small = benjamini_hochberg([effect.p_within(margin) for effect, margin in zip(effects, margins, strict=True)])
    signs = ["supported" if effect.p_above() < effect.p_below() else "reversed" for effect in effects]
    return [
        "negligible" if within else sign if shown else "inconclusive"
        for within, shown, sign in zip(small, differs, signs, strict=True)
    ]
