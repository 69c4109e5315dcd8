"""What changes a kernel: an adapter in place of a weight, and training, by features or by cotangents.

Statements ``thm-relation-attention`` and ``ntk-constant-lora``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lorantk import LayerFactors, delta_matrix


def change_by_adapters(factors: LayerFactors, drawn: Mapping[str, Tensor], scaling: float) -> Tensor:
    """Kernel of adapters at B = 0 minus the kernel of their layers: the sum over positions of (a^T M a') g g'^T.

    Parameters
    ----------
    factors : LayerFactors
        Of the model before it is adapted, on n inputs with C outputs.
    drawn : mapping of layer name to Tensor (r, fan_in)
        A of each adapter.
    scaling : float

    Returns
    -------
    Tensor (n, C, n, C)
    """
    parts = []
    for name, A in drawn.items():
        a, g = factors.activations[name], factors.cotangents[name]
        parts.append(torch.einsum("nti,ij,muj,ncto,mduo->ncmd", a, delta_matrix(A, scaling), a, g, g))
    return torch.stack(parts).sum(0)


def causes_of_drift(
    before: nn.Module, after: nn.Module, x: Tensor, *, A: Sequence[str], B: Sequence[str]
) -> dict[str, float]:
    """Why the kernel of LoRA, summed over outputs, moved between two states of one model of single-position layers.

    Parameters
    ----------
    before, after : nn.Module
    x : Tensor (n, d)
    A, B : sequence of str
        Layers that hold the adapters' A and B.

    Returns
    -------
    dict
        share_of_A: of A's own part in the kernel afterwards, by norms; features_moved: relative change of the features
        A a in the middle layer; drift_by_features, drift_by_cotangents: relative change of B's part of the kernel if
        only the features, or only the cotangents, take their later values.
    """
    old, new = (LayerFactors.from_model(model, x) for model in (before, after))
    start, own = part_of_layers(old, old, B), part_of_layers(new, new, A)
    features = [factors.activations[B[len(B) // 2]] for factors in (old, new)]
    return {
        "share_of_A": (own.norm() / (own + part_of_layers(new, new, B)).norm()).item(),
        "features_moved": ((features[1] - features[0]).norm() / features[0].norm()).item(),
        "drift_by_features": ((part_of_layers(new, old, B) - start).norm() / start.norm()).item(),
        "drift_by_cotangents": ((part_of_layers(old, new, B) - start).norm() / start.norm()).item(),
    }


def part_of_layers(features: LayerFactors, cotangents: LayerFactors, layers: Sequence[str]) -> Tensor:
    """The kernel of some layers, summed over outputs: Gram matrices of features times those of cotangents, (n, n).

    Parameters
    ----------
    features, cotangents : LayerFactors
        Of two states of one model of single-position layers, or twice of one.
    layers : sequence of str
    """
    parts = []
    for name in layers:
        a, g = features.activations[name][:, 0], cotangents.cotangents[name][:, :, 0]
        parts.append((a @ a.T) * torch.einsum("nco,mco->nm", g, g))
    return torch.stack(parts).sum(0)
