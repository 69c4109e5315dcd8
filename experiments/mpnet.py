"""MPNet as a BertModel: the same layers under other names, and a bias of attention by distance beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Distances(nn.Module):
    """MPNet's bias of attention by the distance of two tokens, the same in all layers and never trained.

    Parameters
    ----------
    weight : Tensor (buckets, heads)
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", weight.detach().clone())

    def forward(self, length: int) -> Tensor:
        """(1, heads, length, length)."""
        from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

        places = torch.arange(length, device=self.weight.device)
        buckets = MPNetEncoder.relative_position_bucket(places - places[:, None], num_buckets=len(self.weight))
        return F.embedding(buckets, self.weight).permute(2, 0, 1)[None]


def distances_of(encoder: Any) -> nn.Module | None:
    """The `Distances` of an encoder of `from_mpnet`; None of any other."""
    return getattr(encoder.encoder, "distances", None)


NAMES = {"attention.attn.q.": "attention.self.query.", "attention.attn.k.": "attention.self.key.",
         "attention.attn.v.": "attention.self.value.", "attention.attn.o.": "attention.output.dense.",
         "attention.LayerNorm.": "attention.output.LayerNorm."}  # fmt: skip
"""MPNet's names of weights -> BERT's, where they differ."""


def from_mpnet(mpnet: Any) -> Any:
    """A BertModel with the weights of an MPNetModel; it computes the same once its `Distances` are added to attention.

    MPNet has no token types, for which there are zeros, and counts positions from its padding's index plus one.
    """
    from transformers import BertConfig, BertModel

    config, first = mpnet.config, mpnet.embeddings.padding_idx + 1
    weights = dict(mpnet.state_dict())
    distances = Distances(weights.pop("encoder.relative_attention_bias.weight"))
    weights["embeddings.position_embeddings.weight"] = weights["embeddings.position_embeddings.weight"][first:]
    weights["embeddings.token_type_embeddings.weight"] = torch.zeros(2, config.hidden_size)
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
            "layer_norm_eps", "initializer_range", "pad_token_id")  # fmt: skip
    sizes = {name: getattr(config, name) for name in same}
    positions = config.max_position_embeddings - first
    with torch.random.fork_rng(devices=[]):  # an initialisation, replaced below, that draws from the global state
        bert = BertModel(BertConfig(max_position_embeddings=positions, type_vocab_size=2, **sizes))
    bert.load_state_dict({_named_as_bert(name): w for name, w in weights.items()})
    bert.encoder.distances = distances
    return bert.eval()


def _named_as_bert(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name
