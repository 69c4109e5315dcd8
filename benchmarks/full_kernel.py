"""The full kernel of an MLP: lorantk against neural-tangents and torch.func."""

from __future__ import annotations

from typing import Any

from .matrix_products import half_grams, passes
from .races import Contender, Stable, race
from .rows import agreement, faster, line

SIZES: dict[str, dict[str, Any]] = {
    "full": {"widths": [784, 1024, 1024, 10], "sizes": [64, 256], "jacobian": 128},
    "smoke": {"widths": [12, 16, 3], "sizes": [5, 8], "jacobian": 6},
}


def run(stable: Stable, widths: list[int], sizes: list[int], jacobian: int, repeats: int) -> dict[str, Any]:
    """Races at each number of inputs, and the lines of the table."""
    races, lines = {}, []
    for n in sizes:
        arguments = {"widths": widths, "n": n}
        peer = Contender("neural-tangents", "kernel", arguments, "jax")
        races[f"n = {n}"] = race(stable, [Contender("lorantk", "kernel", arguments), peer], repeats)
        what = f"full kernel, n = {n}, against neural-tangents' structured derivatives"
        lines.append(faster(races[f"n = {n}"], what, "lorantk", "neural-tangents", at_least=1.7 if n >= 256 else 1.0))
        lines.append(
            line(f"full kernel, n = {n}, operations without symmetry over those with it", saved(widths, n), "times")
        )
        lines.append(
            agreement(races[f"n = {n}"], f"full kernel, n = {n}, difference from neural-tangents", peer.label, 1e-4)
        )
    arguments = {"widths": widths, "n": jacobian}
    peer = Contender("torch.func", "jacobian_kernel", arguments, most=0)
    races["jacobian"] = race(stable, [Contender("lorantk", "kernel", arguments), peer], repeats)
    what = f"full kernel, n = {jacobian}, against torch.func Jacobian contraction"
    lines.append(faster(races["jacobian"], what, "lorantk", "torch.func", at_least=500))
    lines.append(
        agreement(races["jacobian"], f"full kernel, n = {jacobian}, difference from torch.func", peer.label, 1e-4)
    )
    return {"races": races, "lines": lines}


def saved(widths: list[int], n: int) -> float:
    """Operations without symmetry over those with it; the passes cost the same in both, so few inputs gain least."""
    return (2 * half_grams(widths, n) + passes(widths, n)) / (half_grams(widths, n) + passes(widths, n))
