"""Kernels of transformers: a small BERT beside per-sample gradients and projections, and LoRA on one of BERT's size."""

from __future__ import annotations

from typing import Any

from .races import Contender, Stable, race
from .rows import agreement, faster, line

SIZES: dict[str, dict[str, Any]] = {
    "full": {"small": {"n": 64, "tokens": 64, "layers": 4, "width": 256, "vocabulary": 1000}, "dimension": 2048,
             "large": {"n": 32, "tokens": 64, "layers": 12, "width": 768, "vocabulary": 30522}, "rank": 8},
    "smoke": {"small": {"n": 3, "tokens": 5, "layers": 1, "width": 16, "vocabulary": 20}, "dimension": 32,
              "large": {"n": 2, "tokens": 5, "layers": 1, "width": 16, "vocabulary": 20}, "rank": 2},
}  # fmt: skip


def run(
    stable: Stable, small: dict[str, int], dimension: int, large: dict[str, int], rank: int, repeats: int
) -> dict[str, Any]:
    """Gram matrices of loss gradients of all weights of the small model; kernel of adapters on the large one."""
    contenders = [
        Contender("lorantk", "bert_gram", small),
        Contender("vmap(grad)", "bert_gradients", small, most=3),
        Contender("projections", "bert_projected", {**small, "dimension": dimension}, most=0),
    ]
    races = {"small": race(stable, contenders, repeats)}
    adapters = Contender("lorantk", "bert_adapters", {**large, "rank": rank, "max_memory": "4GB"}, most=0)
    races["large"] = race(stable, [adapters], 1)
    record, peak = races["large"]["lorantk"], races["large"]["lorantk"]["peak_bytes"]
    shape = described(small)
    base = f"LoRA on query and value of a BERT of {large['layers']} layers, width {large['width']}, n = {large['n']}"
    lines = [
        faster(races["small"], f"{shape}, against vmap(grad)", "lorantk", "vmap(grad)", at_least=1.3),
        line("the same, peak memory of vmap(grad) over ours", _memory(races["small"]), "times", at_least=1.0),
        agreement(races["small"], "the same, difference from vmap(grad)", "vmap(grad)", 1e-3),
        faster(races["small"], f"the same, against projections to {dimension} dimensions", "lorantk", "projections"),
        agreement(races["small"], "the same, error of the projections", "projections"),
        line(f"{base}, {large['tokens']} tokens", record["seconds"], "s", at_most=120, by_cpu=record["cpu_seconds"]),
        line("the same, peak memory above the model", None if peak is None else peak / 1e9, "GB", at_most=8),
    ]
    return {"races": races, "lines": lines}


def described(bert: dict[str, int]) -> str:
    """The model and its inputs, for a line of the table."""
    return f"BERT of {bert['layers']} layers, width {bert['width']}, {bert['tokens']} tokens, n = {bert['n']}"


def _memory(records: dict[str, dict[str, Any]]) -> float | None:
    mine, theirs = records["lorantk"]["peak_bytes"], records["vmap(grad)"]["peak_bytes"]
    return theirs / mine if theirs and mine else None
