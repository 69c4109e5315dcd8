"""The order through training in a pretrained encoder: MiniLM's last layer learns reviews by LoRA.

``python -m experiments.training_order_text`` writes training-order-minilm.csv and training-order-minilm-controls.csv
into experiments/results, in fifty minutes on two cores. It needs the data of SOURCES.md.
Statement ``order-in-training``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from evidence.artifacts import write_atomically
from lorantk import LoRA

from .bert import BACKBONE, Classifier
from .certificate import follow
from .schedule import side_by_side
from .text import load

RANK = 8
RULES = {"sgd": 0.3, "adamw": 1e-3}
"""Optimizers and their learning rates: SGD's trains in as many steps, AdamW's is the best of the pilot at this rank."""
SCALINGS = (1.0, 2.0)
SEEDS = range(3)
SENTENCES = 16
CHECKPOINTS = (0, 1, 2, 5, 10, 20, 50, 100)
BATCH = 32
CONTROLS = {
    "adapter and head": [("sgd", 0.1), ("sgd", 1.0), ("sgd", 3.0), ("adamw", 3e-4), ("adamw", 3e-3)],
    "adapter": [("sgd", 0.3), ("sgd", 1.0), ("sgd", 3.0), ("adamw", 1e-3)],
    "head": list(RULES.items()),
}
"""What is trained at scaling 1 -> by which rules: other learning rates, the adapter alone, the head alone."""
CONTROL_CHECKPOINTS = (10, 100)


def batches(rows: Tensor, seed: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Batches of reviews in float64, drawn with replacement, with their labels."""
    task, draw = load("reviews"), torch.Generator().manual_seed(seed)
    while True:
        chosen = rows[torch.randint(len(rows), (BATCH,), generator=draw)]
        yield sentences(chosen), task.corpus.labels[chosen]


def sentences(rows: Tensor) -> dict[str, Tensor]:
    """What the classifier takes for these reviews, in float64."""
    inputs = load("reviews").batch(rows, torch.zeros(len(rows), dtype=torch.bool))
    return inputs | {"inputs": inputs["inputs"].double()}


def run(
    trained: str, rule: tuple[str, float], scaling: float, seed: int, checkpoints: Sequence[int]
) -> pd.DataFrame:  # fmt: skip
    """`certificate.follow` on sentences held out from training, a row a checkpoint and layer.

    The adapters are of `RANK` with PEFT's draw, on all linear layers of the encoder's last. `trained` says what learns:
    "adapter and head", "adapter" under a fresh head, or "head".
    """
    torch.set_num_threads(1)
    task = load("reviews")
    train, validation, _ = task.split(seed)
    head = torch.Generator().manual_seed(seed)
    model = Classifier(task.encoder, task.frozen, head, task.pooling).double().eval().requires_grad_(False)
    adapted = LoRA(RANK, scaling=scaling, layers=BACKBONE).attach(model, seed)
    if trained == "head":
        adapted.requires_grad_(False)
    adapted.get_submodule("head").requires_grad_(trained != "adapter")
    shown = sentences(validation[:SENTENCES])
    table = follow(adapted, model, batches(train, seed), shown, rule, checkpoints)
    return table.assign(scaling=scaling, seed=seed)


def measure() -> pd.DataFrame:
    """`run` of adapter and head by each of `RULES`, at each of `SCALINGS` and draws."""
    runs = [("adapter and head", *cell, CHECKPOINTS) for cell in itertools.product(RULES.items(), SCALINGS, SEEDS)]
    return pd.concat(side_by_side(lambda chosen: run(*chosen), runs, -1))


def measure_controls() -> pd.DataFrame:
    """`run` of each of `CONTROLS` and draws, with the column "trained"."""
    cells = [(trained, rule) for trained, rules in CONTROLS.items() for rule in rules]
    runs = [(*cell, 1.0, seed, CONTROL_CHECKPOINTS) for cell, seed in itertools.product(cells, SEEDS)]
    tables = side_by_side(lambda chosen: run(*chosen), runs, -1)
    return pd.concat(table.assign(trained=trained) for table, (trained, *_) in zip(tables, runs, strict=True))


if __name__ == "__main__":
    results = Path(__file__).parent / "results"
    for name, table in (("", measure), ("-controls", measure_controls)):
        target = results / f"training-order-minilm{name}.csv"
        write_atomically(target, table().to_csv(index=False, float_format="%.7g"))
