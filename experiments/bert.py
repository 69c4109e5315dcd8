"""BERT as a classifier whose upper layers learn, and PEFT's adapters on it, drawn by `lorantk.lora.LoRA`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorantk import Adapter, LoRA
from lorantk.batches import check_choice
from lorantk.layers import adaptable_layers, fans

from .config import Run
from .mpnet import distances_of

CLASSES = 2
BACKBONE = r"(layers|pooler)\..*"
"""Layers that adapters sit on: all linear ones but the head."""


class Classifier(nn.Module):
    """BERT's layers above the frozen ones and a fresh head.

    With pooling "first", as in transformers' BertForSequenceClassification, the head reads the pooler's output at the
    first token, and the last layer is evaluated there only. With "mean" it reads the mean of the last layer's outputs
    over the text's tokens, which is what sentence encoders are trained for.

    Parameters
    ----------
    encoder : transformers.BertModel
        Left as it is.
    frozen : int
        How many lower layers to leave out, the embeddings with them; 0 leaves out none of both.
    generator : torch.Generator
        Draws the head's weights, of BERT's own deviation.
    pooling : {"first", "mean"}
    """

    def __init__(self, encoder: Any, frozen: int, generator: torch.Generator, pooling: str = "first") -> None:
        super().__init__()
        check_choice("pooling", pooling, ("first", "mean"))
        self.embeddings = copy.deepcopy(encoder.embeddings) if frozen == 0 else None
        self.distances = copy.deepcopy(distances_of(encoder))
        self.layers = copy.deepcopy(encoder.encoder.layer[frozen:])
        self.pooler = copy.deepcopy(encoder.pooler) if pooling == "first" else None
        with torch.device("meta"):  # torch's own initialisation would draw from the global random state
            self.head = nn.Linear(encoder.config.hidden_size, CLASSES)
        weight = encoder.config.initializer_range * torch.randn(self.head.weight.shape, generator=generator)
        self.head.weight = nn.Parameter(weight.to(encoder.device))
        self.head.bias = nn.Parameter(torch.zeros(CLASSES, device=encoder.device))

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Outputs (n, 2) at the frozen layers' (n, length, width), or at tokens and their types (n, 2, length)."""
        h = inputs if self.embeddings is None else self.embeddings(inputs[:, 0], inputs[:, 1])
        bias = attention_bias(mask, self.distances)
        if self.pooler is None:
            return self.head(self._token_mean(h, mask, bias))
        h = through(self.layers[:-1], h, bias)
        last, first = self.layers[-1], h[:, :1]
        projections = last.attention.self
        context = _attend(last, projections.query(first), projections.key(h), projections.value(h), bias[..., :1, :])
        attended = last.attention.output(context, first)
        return self.head(self.pooler(last.output(last.intermediate(attended), attended)))

    def _token_mean(self, h: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        """Mean of the last layer's outputs over each text's tokens, (n, width); no layer is evaluated at padding."""
        places = mask.flatten().nonzero()[:, 0]

        def padded(tokens: Tensor) -> Tensor:
            """(n, length, width) with zeros at padding."""
            return (
                tokens.new_zeros(mask.numel(), tokens.shape[-1]).index_copy(0, places, tokens).unflatten(0, mask.shape)
            )

        tokens = h.flatten(0, 1)[places]
        for layer in self.layers:
            projections = (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value)
            query, key, value = (padded(projection(tokens)) for projection in projections)
            context = _attend(layer, query, key, value, bias)
            attended = layer.attention.output(context.flatten(0, 1)[places], tokens)
            tokens = layer.output(layer.intermediate(attended), attended)
        return padded(tokens).sum(1) / mask.sum(1, keepdim=True)


def _attend(layer: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """What the heads of a layer read, (n, length, width), from its projections of that shape."""
    heads = layer.attention.self.num_attention_heads
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)


def through(layers: Iterable[nn.Module], h: Tensor, bias: Tensor) -> Tensor:
    """Output of BERT's layers at their input, both (n, length, width)."""
    for layer in layers:
        out = layer(h, bias)
        h = out if isinstance(out, Tensor) else out[0]  # transformers 4 returns a tuple
    return h


def attention_bias(mask: Tensor, distances: nn.Module | None = None) -> Tensor:
    """What attention adds to its logits: 0, or the most negative number at padding; to it MPNet's bias by distance.

    Its shape is (n, 1, 1, length), with `distances` (n, heads, length, length).
    """
    padding = (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min
    return padding if distances is None else padding + distances(mask.shape[1])


def loras(model: nn.Module, run: Run) -> dict[str, LoRA]:
    """How the adapter of each adapted layer of a `Classifier` is drawn."""
    layers = adaptable_layers(model, BACKBONE)
    return {name: replace(run.lora(fans(layer)[0]), layers=[name]) for name, layer in layers.items()}


def adapters(model: nn.Module, run: Run) -> Mapping[str, Adapter]:
    """The run's adapters of a `Classifier` at their start, by layer name."""
    drawn = loras(model, run)
    return {name: Adapter(lora.sample(model, run.seed)[name], None, lora.scaling) for name, lora in drawn.items()}


def with_peft(model: nn.Module, drawn: Mapping[str, Adapter]) -> nn.Module:
    """`model`, itself changed, with these adapters as PEFT's: B = 0, all else frozen but the head.

    Raises
    ------
    ImportError
        If the extra ``hf`` is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise ImportError("adapters on text need the extra 'hf': pip install 'lorantk[hf]'") from error
    ranks = {name: len(adapter.A) for name, adapter in drawn.items()}
    config = LoraConfig(
        target_modules=list(drawn),
        rank_pattern=ranks,
        alpha_pattern={name: ranks[name] * adapter.scaling for name, adapter in drawn.items()},
        lora_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):  # PEFT's own draw, replaced below, moves the global random state
        wrapped = get_peft_model(model, config)
    for name, adapter in drawn.items():
        model.get_parameter(f"{name}.lora_A.default.weight").data.copy_(adapter.A)
    model.get_submodule("head").requires_grad_(True)
    return wrapped
