"""A small language model, an adapter trained on it with PEFT, and the two commands of `lorantk` run on their folders.

The sentences are made of few words, so that the model learns them in seconds. Page "Your adapter".
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from evidence.figures import COLORS, subplots
from lorantk.adapter_files import read_adapter
from lorantk.audit import Plan, audit, plan
from lorantk.audit_texts import audit_texts
from lorantk.batches import check_integer

THINGS = ("film", "story", "actor", "scene", "ending", "music")
WORDS = {1: ("good", "great", "moving", "clever"), 0: ("bad", "dull", "flat", "clumsy")}
WIDTH = 128


def sentences(opinion: int) -> list[str]:
    """All sentences of one opinion, 1 or 0, in an order that mixes their words."""
    if opinion not in WORDS:
        raise ValueError(f"opinion must be 0 or 1; got {opinion!r}")
    made = (f"the {a} was {v} and the {b} {w}" for (a, b), (v, w) in itertools.product(
        itertools.permutations(THINGS, 2), itertools.permutations(WORDS[opinion], 2)))  # fmt: skip
    return sorted(made, key=lambda sentence: sentence[::-1])


def save_base(folder: Path, steps: int, seed: int) -> Path:
    """A GPT-2 of two layers and width 128 that has learned sentences of both opinions, saved with its tokenizer."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    texts = [*sentences(0), *sentences(1)]
    vocabulary = ["<pad>", *sorted({word for text in texts for word in text.split()})]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<pad>")
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary), n_embd=WIDTH, n_head=4, n_layer=2, n_positions=16, pad_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.GPT2LMHeadModel(config)
    _learn(model, tokenizer(texts, return_tensors="pt").input_ids, steps, 3e-3, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(
    base: Path, folder: Path, steps: int, seed: int, rank: int = 8, alpha: int = 16, learning_rate: float = 3e-3
) -> Path:
    """An adapter on every projection of the base model that has learned the sentences of opinion 1, in `folder`."""
    import peft
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = peft.get_peft_model(transformers.GPT2LMHeadModel.from_pretrained(base), config)
    _learn(model, tokenizer(sentences(1), return_tensors="pt").input_ids, steps, learning_rate, seed)
    model.save_pretrained(str(folder))
    return folder


def _learn(model: torch.nn.Module, ids: Tensor, steps: int, learning_rate: float, seed: int) -> None:
    """AdamW on the log-likelihood of sentences of one length, 16 a batch."""
    check_integer("steps", steps, 0)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    for _ in range(steps):
        batch = ids[torch.randint(len(ids), (16,), generator=generator)]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()


def command(*arguments: object) -> str:
    """What ``python -m lorantk`` prints, at the width of a page; raises CalledProcessError if it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith(("FORCE_COLOR", "COLOR_FORCE"))}
    environment = kept | {"COLUMNS": "92", "TRANSFORMERS_VERBOSITY": "error"}
    line = [sys.executable, "-m", "lorantk", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=True, env=environment).stdout


def audited(base: Path, folders: dict[int, Path], texts: list[str]) -> pd.DataFrame:
    """Certificate, measured order and ratio of the kernels' traces, and norms, of adapters on one base; a row each."""
    rows = []
    for steps, folder in folders.items():
        saved = read_adapter(folder)
        found, kernel = audit(saved), audit_texts(saved, base, texts)
        rows.append({
            "steps": steps, "certificate": found.certificate, "order": kernel.order, "trace_ratio": kernel.scale,
            "largest |B|": max(layer.norm_b for layer in found.layers), "|sBA|": found.update,
        })  # fmt: skip
    return pd.DataFrame(rows)


def along_training(audits: pd.DataFrame) -> Figure:
    """Draw the certificate, the order and the ratio of traces that `audited` gives against steps, and the line at 1."""
    fig, ax = subplots(figsize=(5.6, 3.4))
    ax.axhline(1, color=COLORS["theory"], lw=1)
    for marker, color, column in zip(
        "os^", ("full", "lora", "third"), ("certificate", "order", "trace_ratio"), strict=True
    ):
        ax.plot(audits.steps, audits[column], marker=marker, color=COLORS[color], label=column.replace("_", " "))
    ax.set(xlabel="steps of AdamW", ylabel="LoRA's kernel over full fine-tuning's", yscale="log")
    ax.legend()
    return fig


def planned(configurations: pd.DataFrame) -> pd.DataFrame:
    """Configurations with what `lorantk.audit.plan` says about them: order on R^n, dimension, first steps."""
    plans: list[Plan] = [
        plan(int(row.rank), float(row.alpha), int(row.width))  # type: ignore[arg-type]
        for row in configurations.itertuples()
    ]
    return configurations.assign(
        order=[p.order[1] for p in plans], largest_dimension=[p.largest_dimension for p in plans],
        sgd=[p.sgd for p in plans], adam=[p.adam for p in plans],
    ).sort_values("order", ignore_index=True)  # fmt: skip


def draws(folder: Path) -> pd.DataFrame:
    """Evidence for the draw of A, a row a layer."""
    layers = audit(read_adapter(folder)).layers
    columns = ("directions_moved", "moved", "detectable", "doubt", "kurtosis", "outside")
    return pd.DataFrame([{"layer": layer.name} | {c: getattr(layer.draw, c) for c in columns} for layer in layers])
