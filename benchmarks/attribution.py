"""Inner products of loss gradients of all weights, beside libraries for data attribution: dattri, TRAK and bergson."""

from __future__ import annotations

from typing import Any

from .races import Contender, Stable, race
from .rows import agreement, faster

SIZES: dict[str, dict[str, Any]] = {
    "full": {"network": {"widths": [784, 1024, 1024, 10], "n": 128},
             "bert": {"n": 64, "tokens": 64, "layers": 4, "width": 256, "vocabulary": 1000}},
    "smoke": {"network": {"widths": [12, 16, 3], "n": 8},
              "bert": {"n": 3, "tokens": 5, "layers": 1, "width": 16, "vocabulary": 20}},
}  # fmt: skip


def run(stable: Stable, network: dict[str, Any], bert: dict[str, int], repeats: int) -> dict[str, Any]:
    """Time and agreement of the Gram matrices.

    BERT is for TRAK: bergson takes linear layers only, and dattri minutes where one weight is many tensors.
    """
    tasks = {"dattri": "tracin", "TRAK": "trak_features", "bergson": "collected"}
    shapes = {
        "network": f"a network {'-'.join(map(str, network['widths']))}, n = {network['n']}",
        "BERT": f"a BERT of {bert['layers']} layers, width {bert['width']}, {bert['tokens']} tokens, n = {bert['n']}",
    }
    contenders = {
        "network": [
            Contender("lorantk", "network_gram", network),
            *(Contender(peer, task, network, "attribution", most=2) for peer, task in tasks.items()),
        ],
        "BERT": [
            Contender("lorantk", "bert_gram", bert),
            Contender("TRAK", "trak_features", bert, "attribution", most=2),
        ],
    }
    races = {name: race(stable, entered, repeats) for name, entered in contenders.items()}
    lines = []
    for name, records in races.items():
        for peer in (label for label in records if label != "lorantk"):
            what = f"inner products of loss gradients of {shapes[name]}, against {peer}"
            lines += [
                faster(records, what, "lorantk", peer, at_least=1.0),
                agreement(records, f"the same, difference from {peer}", peer, 1e-3),
            ]
    return {"races": races, "lines": lines}
