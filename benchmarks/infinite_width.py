"""The infinite-width kernel against neural-tangents' analytic one, in float64.

On the diagonal both are held against the closed form: an angle by arccos of a cosine near 1 keeps half of the digits.
"""

from __future__ import annotations

from typing import Any

from .races import Contender, Stable, race
from .rows import agreement, faster

SIZES: dict[str, dict[str, Any]] = {
    "full": {"n": 4096, "d": 784, "depth": 3},
    "smoke": {"n": 20, "d": 12, "depth": 3},
}


def run(stable: Stable, n: int, d: int, depth: int, repeats: int) -> dict[str, Any]:
    """Time, agreement off the diagonal, and both diagonals against their closed form."""
    arguments, peer = {"n": n, "d": d, "depth": depth}, "neural-tangents"
    races = {}
    for task, count in (("limit", repeats), ("limit_off_diagonal", 0), ("limit_diagonal", 0)):
        contenders = [Contender("lorantk", task, arguments), Contender(peer, task, arguments, "jax")]
        if task == "limit_diagonal":
            contenders.insert(0, Contender("closed form", "limit_diagonal_in_closed_form", arguments))
        races[task] = race(stable, contenders, count)
    what = f"infinite-width kernel, n = {n}, depth {depth}"
    lines = [
        faster(races["limit"], f"{what}, against neural-tangents", "lorantk", peer, at_least=1.0),
        agreement(
            races["limit_off_diagonal"], "the same, off the diagonal, difference from neural-tangents", peer, 1e-10
        ),
        agreement(races["limit_diagonal"], "the same, our diagonal, difference from its closed form", "lorantk", 1e-10),
        agreement(
            races["limit_diagonal"], "the same, neural-tangents' diagonal, difference from its closed form", peer
        ),
    ]
    return {"races": races, "lines": lines}
