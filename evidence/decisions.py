"""Many tests at once: which effects are kept when their number is taken into account."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .effects import Effect


def benjamini_hochberg(effects: Sequence[Effect], level: float = 0.05) -> NDArray[np.bool_]:
    """Which effects are kept, shape (n,), at a false discovery rate of `level`, by Benjamini and Hochberg."""
    from statsmodels.stats.multitest import multipletests

    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1; got {level}")
    missing = [e.name for e in effects if e.p is None]
    if missing or not effects:
        raise ValueError(f"effects must be one or more with a p-value each; none in {missing}")
    return np.asarray(multipletests([e.p for e in effects], level, method="fdr_bh")[0])
