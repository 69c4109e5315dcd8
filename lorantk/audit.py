"""What a LoRA configuration implies before training, and what a saved adapter has become, from its file alone.

Statements ``order-on-data``, ``order-in-training``, ``kernel-scale``, ``adam-kernel``. Nothing here detects poisoned
data: two adapters with the same numbers may have learned different things.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .adapter_files import SavedAdapter
from .batches import check_choice, check_integer, check_real
from .draws import Draw, draw_of
from .kernels import ntk
from .lora import Adapter
from .spectra import cosine_law, information_bits, kernel_scale, order_certificate, order_interval

DRAWS = ("peft", "gaussian", "orthonormal")


@dataclass(frozen=True)
class Plan:
    """What rank, alpha, width and draw imply at the start, where B = 0; see `plan`.

    Attributes
    ----------
    scaling : s
    variance : sigma^2, of the entries of A
    order : (c-, c+): c- K_FF <= K_LoRA <= c+ K_FF whatever the inputs, in the mean of the edges
    order_on_data : the same on inputs whose activations span `dimension` directions, or None
    largest_dimension : up to which c+ <= 1
    sgd, adam : size of LoRA's first step in the outputs, full fine-tuning's being 1 at the same learning rate
    angle : mean of abs(cos) that a pair with orthogonal activations gets
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
        """The alpha that keeps the first step at another rank: under SGD, and under Adam."""
        there = plan(rank, 1.0, self.width, self.init, self.rslora)
        return math.sqrt(self.sgd / there.sgd), self.adam / there.adam


def plan(
    rank: int, alpha: float, width: int, init: str = "peft", rslora: bool = False, dimension: int | None = None
) -> Plan:
    """Order, scale, step sizes and angles that a LoRA configuration has before its first step.

    Parameters
    ----------
    rank, alpha : int, float
        r, and the numerator of s = alpha / r, or of alpha / sqrt(r) with `rslora`.
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
    once: |s A a|_1 / |a|_1, which is s r sigma / sqrt(n) in the mean for activations with Gaussian entries.
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
    certificate : s^2 (|A|^2 + |B|^2), spectral norms: K_LoRA <= certificate K_FF at the merged point, so at most 1
        means that LoRA's kernel lies below full fine-tuning's
    scale : s^2 (|A|_F^2 / fan_in + |B|_F^2 / fan_out), K_LoRA over K_FF for isotropic activations and cotangents
    norm_a, norm_b : spectral norms
    update : Frobenius norm of s B A; share: its square over the sum of all layers
    stable_rank, effective_rank : |sBA|_F^2 / |sBA|^2, and exp(entropy of the normalised singular values); 0 if B A = 0
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
    scaling_from : where s comes from
    init : what PEFT's configuration says about the draw, e.g. "True" or "pissa"; "" without one
    others : tensors that were saved as a whole, and that the numbers here leave out
    certificate : the largest of all layers: K_LoRA <= certificate K_FF, summed over the adapted layers
    update : Frobenius norm of all s B A together
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
    layers = [audit_layer(name, adapter, name in saved.embeddings) for name, adapter in items]
    total = sum(layer.update**2 for layer in layers)
    return Audit(
        str(saved.path), saved.naming, saved.scaling_from, str(saved.config.get("init_lora_weights", "")), saved.others,
        layers=tuple(replace(layer, share=layer.update**2 / total if total else 0.0) for layer in layers),
        certificate=max(layer.certificate for layer in layers),
        update=math.sqrt(total),
    )  # fmt: skip


@dataclass(frozen=True)
class KernelAudit:
    """The adapter's kernel on texts beside full fine-tuning's of the same layers, both at the merged point.

    Attributes
    ----------
    outputs : "log-likelihood" of each text, or "logits"
    scale : trace of K_LoRA over trace of K_FF
    order : largest eigenvalue of K_FF^(-1/2) K_LoRA K_FF^(-1/2); at most the certificate
    shares, scales : layer name to its share of the trace of K_LoRA, and to its own scale
    spectrum, full_spectrum : eigenvalues of K_LoRA and K_FF, largest first
    information, full_information : half their log2 pseudo-determinants, in bits
    """

    outputs: str
    texts: int
    scale: float
    order: float
    shares: dict[str, float]
    scales: dict[str, float]
    spectrum: list[float]
    full_spectrum: list[float]
    information: float
    full_information: float


class _TextOutputs(nn.Module):
    """A model with one row a text: a language model's log-likelihood of it (n, 1), or a classifier's logits (n, C)."""

    def __init__(self, model: nn.Module, causal: bool) -> None:
        super().__init__()
        self.model, self.causal = model, causal

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        if not self.causal:
            return logits
        chosen = logits[:, :-1].log_softmax(-1).gather(-1, input_ids[:, 1:, None])[..., 0]
        return (chosen * attention_mask[:, 1:]).sum(1, keepdim=True)


def audit_texts(saved: SavedAdapter, base: Path, texts: list[str]) -> KernelAudit:
    """Kernel of an adapter on texts, from a folder with its base model; nothing is fetched from the network.

    Parameters
    ----------
    saved : SavedAdapter
        Of a PEFT folder, for a language model ("CAUSAL_LM") or a classifier of texts ("SEQ_CLS").
    base : Path
        Folder of the base model and its tokenizer, as transformers saves them, in safetensors.
    texts : list of str
        Cut after 128 tokens.

    Raises
    ------
    ImportError, OSError, ValueError
        Without the extra ``hf``; if a file is missing; on another task, or an adapter whose layers `base` has not.
    """
    try:
        import peft
        import transformers
    except ModuleNotFoundError as error:
        raise ImportError("--base needs the extra 'hf': pip install 'lorantk[hf]'") from error
    task = saved.config.get("task_type")
    classes = {
        "CAUSAL_LM": transformers.AutoModelForCausalLM,
        "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    }
    if task not in classes:
        raise ValueError(f"--base needs a PEFT folder with task_type {' or '.join(classes)}; this one has {task!r}")
    if not base.is_dir():
        raise ValueError(f"--base must be a folder with the base model; {base} is none")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base, local_files_only=True)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = classes[task].from_pretrained(
        base, local_files_only=True, dtype=torch.float32, attn_implementation="eager", use_safetensors=True
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    lacking = [name for name in saved.adapters if name not in dict(model.named_modules())]
    if lacking:
        raise ValueError(f"--base must have the adapter's layers; {base} has no {lacking[0]!r}")
    wrapped = peft.PeftModel.from_pretrained(model, saved.path.parent, is_trainable=True).eval()
    x = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    return audit_kernel(wrapped, {key: x[key] for key in ("input_ids", "attention_mask")}, task == "CAUSAL_LM")


def audit_kernel(model: Any, x: Mapping[str, Tensor], causal: bool) -> KernelAudit:
    """Kernel of a PEFT model's adapters on tokenised texts, layer by layer, and of the weights they sit on.

    Parameters
    ----------
    model : peft.PeftModel
        In evaluation mode; afterwards it is merged.
    x : mapping with input_ids and attention_mask, (n, T) each
    causal : bool
        Whether it is a language model, whose output is each text's log-likelihood; else a classifier of texts.

    Notes
    -----
    Statements ``eq-2``, ``order-in-training``.
    """
    modules = {name: m for name, m in model.get_base_model().named_modules() if hasattr(m, "lora_A")}
    sides = {name: [p for key, p in m.named_parameters() if "lora_" in key] for name, m in modules.items()}
    lora = _kernels(_TextOutputs(model, causal), sides, x)
    base = model.merge_and_unload()
    full = _kernels(_TextOutputs(base, causal), {name: [base.get_submodule(name).weight] for name in sides}, x)
    K, F = (torch.stack(list(kernels.values())).sum(0) for kernels in (lora, full))
    spectrum, full_spectrum = (torch.linalg.eigvalsh(k).flip(0).clamp(min=0) for k in (K, F))
    rtol = len(F) * 1e-6  # the kernels are float32 products
    values, vectors = torch.linalg.eigh(F)
    root = vectors[:, values > rtol * values[-1]] / values[values > rtol * values[-1]].sqrt()
    return KernelAudit(
        "log-likelihood" if causal else "logits", len(x["input_ids"]), float(K.trace() / F.trace()),
        order=float(torch.linalg.eigvalsh(root.T @ K @ root)[-1]),
        shares={name: float(k.trace() / K.trace()) for name, k in lora.items()},
        scales={name: float(k.trace() / full[name].trace()) for name, k in lora.items()},
        spectrum=spectrum.tolist(), full_spectrum=full_spectrum.tolist(),
        information=float(information_bits(spectrum, rtol=rtol, base=2)),
        full_information=float(information_bits(full_spectrum, rtol=rtol, base=2)),
    )  # fmt: skip


def _kernels(model: nn.Module, groups: Mapping[str, list[nn.Parameter]], x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kernel (n C, n C) of each group of parameters alone, in float64."""
    model.requires_grad_(False)
    kernels = {}
    for name, group in tqdm(groups.items(), "kernels", delay=2, leave=False):
        for parameter in group:
            parameter.requires_grad_(True)
        kernels[name] = ntk(model, x).flatten(2).flatten(0, 1).double()
        model.requires_grad_(False)
    return kernels
