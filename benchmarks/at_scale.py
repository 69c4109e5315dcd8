"""The kernel as an operator, where it is too large to be written down: leading eigenvalues, and adapters on a GPT-2."""

from __future__ import annotations

from typing import Any

from .races import Contender, Stable, race
from .rows import line

SIZES: dict[str, dict[str, Any]] = {
    "full": {"widths": [784, 1024, 1024, 10], "n": 2048, "k": 20,
             "gpt2": {"n": 16, "tokens": 64, "layers": 12, "width": 768, "vocabulary": 50257, "rank": 8},
             "max_memory": "2GB"},
    "smoke": {"widths": [12, 16, 3], "n": 8, "k": 3,
              "gpt2": {"n": 2, "tokens": 5, "layers": 1, "width": 16, "vocabulary": 20, "rank": 2},
              "max_memory": "2GB"},
}  # fmt: skip


def run(
    stable: Stable, widths: list[int], n: int, k: int, gpt2: dict[str, int], max_memory: str, repeats: int
) -> dict[str, Any]:
    """Seconds and peak memory of both, above the model and the inputs."""
    lanczos = Contender("lorantk", "leading_eigenvalues", {"widths": widths, "n": n, "k": k}, most=0)
    adapters = Contender("lorantk", "gpt2_adapters", {**gpt2, "max_memory": max_memory}, most=0)
    races = {"eigenvalues": race(stable, [lanczos], 1), "gpt2": race(stable, [adapters], 1)}
    C = widths[-1]
    lines = [
        *_costs(races["eigenvalues"]["lorantk"],
                f"{k} leading eigenvalues, n = {n}, C = {C} ({n * C:,} squared), by the operator", None, 2),
        *_costs(races["gpt2"]["lorantk"],
                f"two next-token logits of a GPT-2 of {gpt2['layers']} layers, width {gpt2['width']}, "
                f"n = {gpt2['n']}, {gpt2['tokens']} tokens, LoRA on c_attn", 60, 4),
    ]  # fmt: skip
    return {"races": races, "lines": lines}


def _costs(record: dict[str, Any], what: str, seconds: float | None, gigabytes: float) -> list[dict[str, Any]]:
    peak = record.get("peak_bytes")
    return [
        line(what, record.get("seconds"), "s", at_most=seconds, by_cpu=record.get("cpu_seconds"),
             not_run=record.get("not_run")),
        line("the same, peak memory above the model", None if peak is None else peak / 1e9, "GB", at_most=gigabytes,
             not_run=record.get("not_run")),
    ]  # fmt: skip
