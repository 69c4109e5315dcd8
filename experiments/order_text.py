"""The order on real sentences: every linear layer of a pretrained encoder below a fresh head of two classes.

``python -m experiments.order_text minilm`` writes experiments/results/order-minilm.csv, in some minutes on two cores;
``mpnet`` in place of ``minilm`` fetches 405 MB and takes half an hour. The mails are those of SOURCES.md.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import pandas as pd
import torch
import typer

from evidence.artifacts import write_atomically
from lorantk import LoRA
from lorantk.layers import adaptable_layers

from . import corpora
from .bert import BACKBONE, Classifier
from .order import by_layer
from .text import load

RANK = 8
SENTENCES = (2, 8, 32)
SEEDS = range(3)


class Encoder(StrEnum):
    """MiniLM, 6 layers of width 384, or MPNet, 12 of 768; both read through their pooler."""

    MINILM = "minilm"
    MPNET = "mpnet"


def measure(encoder: Encoder) -> pd.DataFrame:
    """A row for each number of sentences, layer and draw of A at `RANK`, with PEFT's variance: see `by_layer`."""
    task = replace(load("spam"), frozen=0, stored=False)
    if encoder is Encoder.MPNET:
        corpora.download(corpora.MPNET)
        model, tokenizer = corpora.mpnet()
        task = replace(task, encoder=model, tokenizer=tokenizer)
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


def main(encoder: Encoder) -> None:
    """Write the table of `measure`."""
    target = Path(__file__).parent / "results" / f"order-{encoder.value}.csv"
    write_atomically(target, measure(encoder).to_csv(index=False, float_format="%.7g"))


if __name__ == "__main__":
    typer.run(main)
