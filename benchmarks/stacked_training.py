"""Training many small networks: stacked parameters against a loop, and against torch.func's stacking and vmap."""

from __future__ import annotations

from typing import Any

from .races import Contender, Stable, race
from .rows import agreement, faster

SIZES: dict[str, dict[str, Any]] = {
    "full": {"widths": [64, 256], "setting": {"networks": 40, "n": 500, "steps": 30, "batch": 64}},
    "smoke": {"widths": [8], "setting": {"networks": 3, "n": 20, "steps": 3, "batch": 4}},
}


def run(stable: Stable, widths: list[int], setting: dict[str, int], repeats: int) -> dict[str, Any]:
    """Races at each width; the target is for the narrowest."""
    races, lines = {}, []
    for width in widths:
        tasks = {"stacked": "train_stacked", "loop": "train_in_a_loop", "vmap": "train_by_vmap"}
        contenders = [Contender(label, task, {"width": width, **setting}) for label, task in tasks.items()]
        records = races[f"width {width}"] = race(stable, contenders, repeats)
        what = f"{setting['networks']} networks of width {width} trained together"
        lines += [
            faster(records, f"{what}, against a loop", "stacked", "loop", at_least=3.0 if width == widths[0] else None),
            faster(records, f"{what}, against torch.func's vmap", "stacked", "vmap"),
            agreement(records, f"{what}, difference from the loop", "loop", 1e-3),
        ]
    return {"races": races, "lines": lines}
