"""The order on real sentences: every linear layer of the pretrained MiniLM below a fresh head of two classes.

``python -m experiments.order_text`` writes experiments/results/order-minilm.csv, in some minutes on two cores. It needs
the data of SOURCES.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from evidence.artifacts import write_atomically
from lorantk import LoRA
from lorantk.layers import adaptable_layers

from .bert import BACKBONE, Classifier
from .order import by_layer
from .text import load

RANK = 8
SENTENCES = (2, 8, 32)
SEEDS = range(3)


def measure() -> pd.DataFrame:
    """A row for each number of sentences, layer and draw of A at `RANK`, with PEFT's variance: see `by_layer`."""
    task = replace(load("spam"), frozen=0, stored=False)
    model = Classifier(task.encoder, 0, torch.Generator().manual_seed(0)).eval()
    loras = {name: LoRA(RANK, layers=[name]) for name in adaptable_layers(model, BACKBONE)}
    tables = []
    for count in SENTENCES:
        rows = task.split(0)[0][:count]
        x = task.batch(rows, torch.zeros(count, dtype=torch.bool))
        table = by_layer(model, x, loras, list(SEEDS))
        table.insert(0, "sentences", count)
        table.insert(1, "tokens", int(x["mask"].sum()))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


if __name__ == "__main__":
    target = Path(__file__).parent / "results" / "order-minilm.csv"
    write_atomically(target, measure().to_csv(index=False, float_format="%.7g"))
