"""The spectrum of the Fisher information of a network of 1.9 million parameters, beside curvlinops and nngeometry."""

from __future__ import annotations

from typing import Any

from .races import Contender, Stable, race
from .rows import agreement, faster, line

SIZES: dict[str, dict[str, Any]] = {
    "full": {"widths": [784, 1024, 1024, 10], "n": 256, "top": 10},
    "smoke": {"widths": [12, 16, 3], "n": 8, "top": 3},
}


def run(stable: Stable, widths: list[int], n: int, top: int, repeats: int) -> dict[str, Any]:
    """Time, peak memory and agreement of the largest eigenvalues."""
    arguments = {"widths": widths, "n": n, "top": top}
    peers = {"curvlinops": "Lanczos on curvlinops' operator", "nngeometry": "nngeometry's Gram matrix"}
    tasks = {"curvlinops": "lanczos", "nngeometry": "gram_matrix"}
    contenders = [Contender("lorantk", "fisher", arguments)]
    contenders += [Contender(label, task, arguments, "torch", most=2) for label, task in tasks.items()]
    records = race(stable, contenders, repeats)
    lines = []
    for peer, name in peers.items():
        what = f"spectrum of the Fisher information, n = {n}, against {name}"
        mine, theirs = records["lorantk"]["peak_bytes"], records[peer].get("peak_bytes")
        lines += [
            faster(records, what, "lorantk", peer),
            line(f"the same, peak memory of {peer} over ours", theirs / mine if theirs and mine else None, "times",
                 ours_bytes=mine, peer_bytes=theirs, not_run=records[peer].get("not_run")),
            agreement(records, f"the same, largest {top} eigenvalues, difference from {peer}", peer, 1e-3),
        ]  # fmt: skip
    return {"races": {f"n = {n}": records}, "lines": lines}
