"""The order through training in a pretrained encoder: MiniLM's last layer learns reviews by LoRA.

``python -m experiments.training_order_text`` writes experiments/results/training-order-minilm.csv, in half an hour on
one core. It needs the data of SOURCES.md. Statement ``order-in-training``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from evidence.artifacts import write_atomically
from lorantk import LoRA

from .bert import BACKBONE, Classifier
from .certificate import follow
from .text import load

RANK = 8
RULES = {"sgd": 0.3, "adamw": 1e-3}
"""Optimizers and their learning rates: SGD's trains in as many steps, AdamW's is the best of the pilot at this rank."""
SCALINGS = (1.0, 2.0)
SEEDS = range(3)
SENTENCES = 16
CHECKPOINTS = (0, 1, 2, 5, 10, 20, 50, 100)
BATCH = 32


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


def measure() -> pd.DataFrame:
    """`certificate.follow` on sentences held out from training, a row an optimizer, scaling, draw, step and layer.

    The adapters are of `RANK` with PEFT's draw, on all linear layers of the encoder's last; a fresh head is trained.
    """
    task, tables = load("reviews"), []
    for (name, rate), s, seed in itertools.product(RULES.items(), SCALINGS, SEEDS):
        train, validation, _ = task.split(seed)
        head = torch.Generator().manual_seed(seed)
        model = Classifier(task.encoder, task.frozen, head, task.pooling).double().eval().requires_grad_(False)
        adapted = LoRA(RANK, scaling=s, layers=BACKBONE).attach(model, seed)
        adapted.get_submodule("head").requires_grad_(True)
        shown = sentences(validation[:SENTENCES])
        table = follow(adapted, model, batches(train, seed), shown, (name, rate), CHECKPOINTS)
        tables.append(table.assign(scaling=s, seed=seed))
    return pd.concat(tables, ignore_index=True)


if __name__ == "__main__":
    target = Path(__file__).parent / "results" / "training-order-minilm.csv"
    write_atomically(target, measure().to_csv(index=False, float_format="%.7g"))
