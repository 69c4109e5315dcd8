"""Inner products of loss gradients of all weights, beside libraries for data attribution: dattri, TRAK and bergson."""

from __future__ import annotations

from typing import Any

from . import language_models
from .races import Contender, Stable, race
from .rows import agreement, faster

SIZES: dict[str, dict[str, Any]] = {
    "full": {"network": {"widths": [784, 1024, 1024, 10], "n": 128},
             "bert": language_models.SIZES["full"]["small"]},
    "smoke": {"network": {"widths": [12, 16, 3], "n": 8},
              "bert": language_models.SIZES["smoke"]["small"]},
}  # fmt: skip


def run(stable: Stable, network: dict[str, Any], bert: dict[str, int], repeats: int) -> dict[str, Any]:
    """Time and agreement of the Gram matrices.

    BERT is for TRAK: bergson takes linear layers only, and dattri minutes where one weight is many tensors.
    """
    tasks = {"dattri": "tracin", "TRAK": "trak_features", "bergson": "collected"}
    shapes = {
        "network": f"a network {'-'.join(map(str, network['widths']))}, n = {network['n']}",
        "BERT": f"a {language_models.described(bert)}",
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
