"""What a LoRA configuration implies before training, and what a saved adapter has become, from its file alone.

Statements ``order-on-data``, ``order-in-training``, ``kernel-scale``, ``adam-kernel``. Nothing here detects poisoned
data: two adapters with the same numbers may have learned different things.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from .adapter_files import SavedAdapter
from .batches import check_choice, check_integer, check_real
from .draws import Draw, draw_of
from .lora import Adapter
from .spectra import cosine_law, kernel_scale, order_certificate, order_interval

DRAWS = ("peft", "gaussian", "orthonormal")


@dataclass(frozen=True)
class Plan:
    """What rank, alpha, width and draw imply at the start, where B = 0; see `plan`.

    Attributes
    ----------
    scaling, variance : float
        s, and sigma^2 of the entries of A.
    order : (float, float)
        (c1, c2): c1 K_FF <= K_LoRA <= c2 K_FF whatever the inputs, in the mean of the edges.
    order_on_data : (float, float) or None
        The same on inputs whose activations span `dimension` directions.
    largest_dimension : int
        Up to which c2 <= 1.
    sgd, adam : float
        By how much LoRA's first step lowers the loss, full fine-tuning's being 1 at the same learning rate. Where B
        learns at another rate than full fine-tuning would (LoRA+), times the ratio of the two.
    angle : float
        Mean of abs(cos) that a pair with orthogonal activations gets.
    """

    rank: int
    alpha: float
    width: int
    init: str
    rslora: bool
    dimension: int | None
    scaling: float
    variance: float
    order: tuple[float, float]
    order_on_data: tuple[float, float] | None
    largest_dimension: int
    sgd: float
    adam: float
    angle: float

    def alpha_at(self, rank: int) -> tuple[float, float]:
        """The alpha at which another rank's first step lowers the loss as much: under SGD, and under Adam."""
        there = plan(rank, 1.0, self.width, self.init, self.rslora)
        return math.sqrt(self.sgd / there.sgd), self.adam / there.adam


def plan(
    rank: int, alpha: float, width: int, init: str = "peft", rslora: bool = False, dimension: int | None = None
) -> Plan:
    """Order, scale, step sizes and angles that a LoRA configuration has before its first step.

    Parameters
    ----------
    rank : int
    alpha : float
        The numerator of s = alpha / r, or of alpha / sqrt(r) with `rslora`.
    width : int
        n, the fan-in of the adapted layer.
    init : {"peft", "gaussian", "orthonormal"}
        How A is drawn: uniform with variance 1/(3 n), Gaussian with variance 1/r^2, or with orthonormal rows.
    rslora : bool
    dimension : int, optional
        d, of the span of the layer's inputs over the data: at most the number of tokens, and at most n.

    Returns
    -------
    Plan

    Raises
    ------
    TypeError, ValueError
        On a rank outside 1..width, a dimension outside 1..width, an alpha not above 0, or an unknown draw.

    Notes
    -----
    Statements ``order-on-data``, ``kernel-scale``, ``adam-kernel``. Adam's first step is a sign step, so that s enters
    once: ``|s A a|_1 / |a|_1``, which is s r sigma / sqrt(n) in the mean for activations with Gaussian entries. All are
    means over A of what a step does to the training loss; how far other outputs move depends on the draw's noise too.
    """
    check_integer("width", width, 1)
    check_integer("rank", rank, 1)
    if rank > width:
        raise ValueError(f"rank must be at most the width {width}; got {rank}")
    check_real("alpha", alpha, minimum=0.0, exclusive=True)
    check_choice("init", init, DRAWS)
    if dimension is not None:
        check_integer("dimension", dimension, 1)
        if dimension > width:
            raise ValueError(f"dimension must be at most the width {width}; got {dimension}")
    scaling = alpha / (math.sqrt(rank) if rslora else rank)
    variance = {"peft": 1 / (3 * width), "gaussian": 1 / rank**2, "orthonormal": 1 / width}[init]

    def order(d: int) -> tuple[float, float]:
        if init != "orthonormal":
            return order_interval(rank, d, variance, scaling)
        # Cosines of two random subspaces of R^n, of dimensions r and d (Wachter, 1980); 1 where they must meet
        root, other = math.sqrt(rank * (width - d)), math.sqrt(d * (width - rank))
        high = 1.0 if rank + d >= width else ((root + other) / width) ** 2
        low = 1.0 if rank == width else ((root - other) / width) ** 2 if rank > d else 0.0
        return scaling**2 * low, scaling**2 * high

    return Plan(
        rank, alpha, width, init, rslora, dimension, scaling, variance,
        order=order(width),
        order_on_data=None if dimension is None else order(dimension),
        largest_dimension=max((d for d in range(1, width + 1) if order(d)[1] <= 1), default=0),
        sgd=kernel_scale(rank, variance, scaling),
        adam=scaling * rank * math.sqrt(variance / width),
        angle=cosine_law(rank)[1],
    )  # fmt: skip


@dataclass(frozen=True)
class LayerAudit:
    """One adapted layer of a saved adapter.

    Attributes
    ----------
    certificate : float
        ``s^2 (|A|^2 + |B|^2)``, spectral norms: K_LoRA <= certificate K_FF at the merged point, so that at most 1 means
        that LoRA's kernel lies below full fine-tuning's. For plain gradients, A and B at one learning rate.
    scale : float
        ``s^2 (|A|_F^2 / fan_in + |B|_F^2 / fan_out)``, K_LoRA over K_FF for isotropic activations and cotangents.
    norm_a, norm_b : float
        Spectral norms.
    update, share : float
        Frobenius norm of s B A, and its square over the sum of all layers.
    stable_rank, effective_rank : float
        ``|sBA|_F^2 / |sBA|^2``, and exp(entropy of the normalised singular values); 0 if B A = 0.
    """

    name: str
    rank: int
    fan_in: int
    fan_out: int
    dtype: str
    scaling: float
    draw: Draw
    norm_a: float
    norm_b: float
    certificate: float
    scale: float
    update: float
    share: float
    stable_rank: float
    effective_rank: float


def audit_layer(name: str, adapter: Adapter, embedding: bool = False) -> LayerAudit:
    """What one layer's A, B and s say, in float64, from r x r products; `share` is 1, that of a layer alone."""
    A = adapter.A.detach().double()
    rank, fan_in = A.shape
    B = A.new_zeros(1, rank) if adapter.B is None else adapter.B.detach().double()
    core = torch.linalg.qr(B, mode="r")[1] @ torch.linalg.qr(A.T, mode="r")[1].T
    values = adapter.scaling * torch.linalg.svdvals(core)
    update = float(values.norm())
    p = values[values > 0] / values.sum()
    drawn = adapter.B.T if embedding and adapter.B is not None else adapter.A
    return LayerAudit(
        name, rank, fan_in, len(B), str(adapter.A.dtype).removeprefix("torch."), adapter.scaling,
        draw=draw_of(drawn.detach(), embedding),
        norm_a=float(torch.linalg.matrix_norm(A, 2)),
        norm_b=float(torch.linalg.matrix_norm(B, 2)),
        certificate=order_certificate(A, B, adapter.scaling),
        scale=adapter.scaling**2 * float(A.square().sum() / fan_in + B.square().sum() / len(B)),
        update=update,
        share=1.0,
        stable_rank=float((values / values[0]).square().sum()) if update else 0.0,
        effective_rank=float(torch.special.entr(p).sum().exp()) if update else 0.0,
    )  # fmt: skip


@dataclass(frozen=True)
class Audit:
    """A saved adapter, layer by layer and summed; `audit` makes it.

    Attributes
    ----------
    scaling_from : str
        Where s comes from.
    init : str
        What PEFT's configuration says about the draw, e.g. "True" or "pissa"; "" without one.
    others : tuple of str
        Tensors that were saved as a whole, and that the numbers here leave out.
    certificate : float
        The largest of all layers: K_LoRA <= certificate K_FF, summed over the adapted layers.
    update : float
        Frobenius norm of all s B A together.
    """

    path: str
    naming: str
    scaling_from: str
    init: str
    others: tuple[str, ...]
    layers: tuple[LayerAudit, ...]
    certificate: float
    update: float


def audit(saved: SavedAdapter) -> Audit:
    """Audit a saved adapter, as `lorantk.adapter_files.read_adapter` returns it.

    Notes
    -----
    Statements ``order-in-training``, ``kernel-scale``. It says what the adapter can do to the kernel, not what it
    learned: poisoned data leave no mark here that clean data could not leave.
    """
    items = tqdm(saved.adapters.items(), "layers", delay=2, leave=False)
    layers = [audit_layer(name, Adapter(*halves), name in saved.embeddings) for name, halves in items]
    total = sum(layer.update**2 for layer in layers)
    return Audit(
        str(saved.path), saved.naming, saved.scaling_from, str(saved.config.get("init_lora_weights", "")), saved.others,
        layers=tuple(replace(layer, share=layer.update**2 / total if total else 0.0) for layer in layers),
        certificate=max(layer.certificate for layer in layers),
        update=math.sqrt(total),
    )  # fmt: skip
