"""Many kernels of LoRA: one set of layer factors against recomputing Jacobians for each draw."""

from __future__ import annotations

from typing import Any

from .races import Contender, Stable, race
from .rows import agreement, line

SIZES: dict[str, dict[str, Any]] = {
    "full": {"widths": [784, 1024, 1024, 10], "n": 128, "ranks": [1, 2, 4, 8, 16, 32, 64, 128, 256],
             "variances": [0.1, 0.2, 0.3, 0.4, 0.5], "seeds": 5},
    "smoke": {"widths": [12, 16, 3], "n": 5, "ranks": [1, 2], "variances": [0.1, 0.2], "seeds": 2},
}  # fmt: skip


def run(
    stable: Stable, widths: list[int], n: int, ranks: list[int], variances: list[float], seeds: int, repeats: int
) -> dict[str, Any]:
    """The sweep against the sum over ranks of one recomputed kernel, times the draws at that rank."""
    same = {"widths": widths, "n": n}
    ours = {**same, "ranks": ranks, "variances": variances}
    contenders = [
        Contender("lorantk", "sweep", {**ours, "seeds": seeds}),
        Contender("lorantk, one seed", "sweep", {**ours, "seeds": 1}),
        Contender("product", "product", {"n": n * widths[-1], "k": widths[1]}),
    ]
    races = {"sweep": race(stable, contenders, repeats)}
    for rank in ranks:
        one = {**ours, "ranks": [rank], "variances": variances[-1:], "seeds": seeds}
        peer = {**same, "rank": rank, "variance": variances[-1], "seed": seeds - 1}
        pair = [Contender("lorantk", "sweep", one), Contender("torch.func", "one_adapted_kernel", peer, most=0)]
        races[f"rank {rank}"] = race(stable, pair, 1)
    recomputed = [races[f"rank {rank}"]["torch.func"] for rank in ranks]
    record = races["sweep"]["lorantk"]
    draws = len(variances) * seeds
    missing = next((r["not_run"] for r in recomputed if "not_run" in r), None)
    total = None if missing else draws * sum(r["seconds"] for r in recomputed)
    by_cpu = None if missing else draws * sum(r["cpu_seconds"] for r in recomputed) / record["cpu_seconds"]
    count = draws * len(ranks)
    lines = [
        line(f"{count} kernels of LoRA, n = {n}, against recomputing Jacobians (one draw a rank, times {draws})",
             None if total is None else total / record["seconds"], "times", at_least=1500, by_cpu=by_cpu,
             ours_seconds=record["seconds"], peer_seconds=total, not_run=missing),
        _one_more(races["sweep"], count, seeds),
        *[agreement(races[f"rank {r}"], f"kernel of LoRA at rank {r}, difference from torch.func", "torch.func", 1e-3)
          for r in (ranks[0], ranks[-1])],
    ]  # fmt: skip
    return {"races": races, "lines": lines}


def _one_more(records: dict[str, dict[str, Any]], count: int, seeds: int) -> dict[str, Any]:
    """Time of one more kernel over that of one product of cotangents; below 1, it needs no such product."""
    added = count * (seeds - 1) // seeds
    more = (records["lorantk"]["cpu_seconds"] - records["lorantk, one seed"]["cpu_seconds"]) / added
    product = records["product"]["cpu_seconds"]
    return line("one more kernel of LoRA, in products of one layer's cotangents (CPU time)", more / product, "products",
                at_most=1.0, ours_seconds=more, peer_seconds=product)  # fmt: skip
