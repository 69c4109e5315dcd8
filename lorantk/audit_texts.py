"""A saved adapter's kernel on texts, beside full fine-tuning's of the same layers, both at the merged point.

Statements ``eq-2``, ``order-in-training``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .adapter_files import SavedAdapter
from .kernels import ntk
from .spectra import information_bits


@dataclass(frozen=True)
class KernelAudit:
    """The adapter's kernel on texts beside full fine-tuning's of the same layers, both at the merged point.

    Attributes
    ----------
    outputs : {"log-likelihood", "logits"}
        Of each text.
    scale : float
        Trace of K_LoRA over trace of K_FF.
    order : float
        Largest eigenvalue of K_FF^(-1/2) K_LoRA K_FF^(-1/2); at most the certificate.
    shares, scales : dict of float
        Layer name to its share of the trace of K_LoRA, and to its own scale.
    spectrum, full_spectrum : list of float
        Eigenvalues of K_LoRA and K_FF, largest first.
    information, full_information : float
        Half their log2 pseudo-determinants, in bits.
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
    task = saved.config.get("task_type")
    classes = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_CLS": "AutoModelForSequenceClassification"}
    if task not in classes:
        raise ValueError(f"--base needs a PEFT folder with task_type {' or '.join(classes)}; this one has {task!r}")
    if not base.is_dir():
        raise ValueError(f"--base must be a folder with the base model; {base} is none")
    try:
        import peft
        import transformers
    except ModuleNotFoundError as error:
        raise ImportError("--base needs the extra 'hf': pip install 'lorantk[hf]'") from error
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base, local_files_only=True)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = getattr(transformers, classes[task]).from_pretrained(
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
