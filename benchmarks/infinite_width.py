"""The infinite-width kernel against neural-tangents' analytic one, in float64."""

from __future__ import annotations

from typing import Any

from .races import Contender, Stable, race
from .rows import agreement, faster

SIZES: dict[str, dict[str, Any]] = {
    "full": {"n": 4096, "d": 784, "depth": 3},
    "smoke": {"n": 20, "d": 12, "depth": 3},
}


def run(stable: Stable, n: int, d: int, depth: int, repeats: int) -> dict[str, Any]:
    """Time and agreement."""
    arguments = {"n": n, "d": d, "depth": depth}
    contenders = [Contender("lorantk", "limit", arguments), Contender("neural-tangents", "limit", arguments, "jax")]
    records = race(stable, contenders, repeats)
    what = f"infinite-width kernel, n = {n}, depth {depth}"
    lines = [
        faster(records, f"{what}, against neural-tangents", "lorantk", "neural-tangents", at_least=1.0),
        agreement(records, f"{what}, difference from neural-tangents", "neural-tangents", 1e-10),
    ]
    return {"races": {f"n = {n}": records}, "lines": lines}
