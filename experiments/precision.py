"""How many digits a kernel has: by method, number format and model, against autograd in float64.

The reference runs one input and one output at a time through plain autograd, on a copy of the model whose weights, as
they were rounded, are converted to float64. So the error is that of the computation, not that of storing the weights.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from decimal import Decimal, localcontext
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from evidence.figures import COLORS, subplots
from lorantk import LoRA, attach, mlp, ntk, renyi_entropy

FORMATS = {
    "float64": (torch.float64, torch.float64, False),
    "float32": (torch.float32, torch.float32, False),
    "bfloat16": (torch.bfloat16, torch.bfloat16, False),
    "float16": (torch.float16, torch.float16, False),
    "bfloat16, adapters float32": (torch.bfloat16, torch.float32, True),
    "float16, adapters float32": (torch.float16, torch.float32, True),
    "float32 under autocast": (torch.float32, torch.float32, True),
}
"""Name -> dtype of frozen and of trainable weights, and whether the model runs under autocast."""

METHODS = ("layerwise", "jacobian", "vector_products")


def models(seed: int) -> dict[str, tuple[nn.Module, Any]]:
    """Small models in float32, and their inputs: fully connected, convolutional, transformers, and one with PEFT."""
    import peft
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        x, images, tokens = torch.randn(4, 64), torch.randn(3, 3, 8, 8), torch.randint(1, 50, (3, 8))
        text = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        convolutional = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(128, 3),
        )  # fmt: skip
        size: dict[str, Any] = {
            "num_labels": 2,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        }
        bert = BertForSequenceClassification(BertConfig(vocab_size=50, **size)).eval()
        small: dict[str, Any] = {
            "num_labels": 2, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16,
            "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
        }  # fmt: skip
        gpt2 = GPT2ForSequenceClassification(GPT2Config(vocab_size=50, **small)).eval()
        adapted = peft.get_peft_model(copy.deepcopy(bert), peft.LoraConfig(r=4, target_modules=["query", "value"]))
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.02)
        network = mlp([64, 128, 128, 4], "tanh", "standard", seed=seed)
    return {
        "MLP": (network, x),
        "MLP, LoRA": (attach(network, LoRA(4).sample(network, seed)), x),
        "convolutions": (convolutional, images),
        "BERT": (bert, text),
        "GPT-2": (gpt2, text),
        "BERT, PEFT": (adapted.eval(), text),
    }


def reference(model: nn.Module, x: Any) -> Tensor:
    """The kernel in float64 by autograd, one input and one output at a time."""
    model = copy.deepcopy(model).double()
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for i in range(len(x) if isinstance(x, Tensor) else len(x["input_ids"])):
        one = x[i : i + 1].double() if isinstance(x, Tensor) else {name: t[i : i + 1] for name, t in x.items()}
        outputs = model(one) if isinstance(one, Tensor) else model(**one).logits
        for output in outputs[0]:
            grads = torch.autograd.grad(output, parameters, allow_unused=True, retain_graph=True)
            pairs = zip(grads, parameters, strict=True)
            rows.append([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
    J = torch.stack([torch.cat(row) for row in rows])
    n = len(x) if isinstance(x, Tensor) else len(x["input_ids"])
    return (J @ J.T).reshape(n, len(J) // n, n, len(J) // n)


def errors(chosen: Mapping[str, tuple[nn.Module, Any]], formats: list[str]) -> pd.DataFrame:
    """Largest error of an entry over the largest entry, and its digits, for each model, format and method.

    A method that refuses a model has no error, and its reason in a column of its own.
    """
    rows = []
    for name, (model, x) in chosen.items():
        has_frozen = any(not p.requires_grad for p in model.parameters())
        for label in formats:
            base, trained, autocast = FORMATS[label]
            if base != trained and not has_frozen:
                continue
            rounded = _rounded(model, base, trained)
            inputs = x.to(trained) if isinstance(x, Tensor) else x
            truth = reference(rounded, inputs)
            coarse = base if base != torch.float32 or not autocast else torch.bfloat16
            context = torch.autocast("cpu", coarse) if autocast else nullcontext()
            for method in METHODS:
                error, reason = math.nan, ""
                try:
                    with context:
                        kernel = ntk(rounded, inputs, method=method)
                    error = ((kernel.double() - truth).abs().max() / truth.abs().max()).item()
                except (ValueError, RuntimeError, NotImplementedError) as refusal:
                    reason = str(refusal)
                rows.append({"model": name, "format": label, "method": method, "error": error,
                             "digits": -math.log10(max(error, 1e-17)), "eps": torch.finfo(coarse).eps,
                             "refused": reason})  # fmt: skip
    return pd.DataFrame(rows)


def _rounded(model: nn.Module, base: torch.dtype, trained: torch.dtype) -> nn.Module:
    """A copy with frozen weights in one dtype and trainable ones in another."""
    made = copy.deepcopy(model).to(base)
    for p in made.parameters():
        if p.requires_grad:
            p.data = p.data.to(trained)
    return made


def table(found: pd.DataFrame) -> pd.DataFrame:
    """Errors by model and format, a column a method."""
    wide = found.pivot_table(index=["model", "format"], columns="method", values="error", sort=False, dropna=False)
    return wide[[m for m in METHODS if m in wide]].dropna(how="all").reset_index()


def chart(found: pd.DataFrame) -> Figure:
    """Digits of all models by format; a line marks the digits of the format's eps."""
    figure, axes = subplots(figsize=(6.4, 3.6))
    order = [label for label in FORMATS if label in set(found["format"])][::-1]
    for k, (method, color) in enumerate(zip(METHODS, ("full", "lora", "other"), strict=True)):
        rows = found[(found["method"] == method) & found["error"].notna()]
        heights = [order.index(label) + 0.2 * (1 - k) for label in rows["format"]]
        axes.scatter(rows["digits"], heights, s=14, color=COLORS[color], label=method)
    for place, label in enumerate(order):
        digits = -math.log10(found.loc[found["format"] == label, "eps"].iloc[0])
        axes.plot([digits, digits], [place - 0.4, place + 0.4], color=COLORS["theory"], lw=1)
    axes.set(xlabel="correct digits of the kernel", yticks=range(len(order)), yticklabels=order)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def small_eigenvalues(seed: int, sizes: list[int]) -> pd.DataFrame:
    """Eigenvalues that float32 gets wrong by a tenth or more, of a float32 kernel whose spectrum is taken in either."""
    rows = []
    for n in sizes:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        network = mlp([2, 64, 1], "tanh", seed=seed).double()
        exact = torch.linalg.eigvalsh(ntk(network, x, output="trace"))
        kernel = ntk(network.float(), x.float(), output="trace")
        for label, matrix in (("float64", kernel.double()), ("float32", kernel)):
            found = torch.linalg.eigvalsh(matrix).double()
            gap = (found - exact).abs() / exact[-1]
            rows.append({"n": n, "spectrum in": label, "error over largest": gap.max().item(),
                         "condition number": (exact[-1] / exact[0]).item()})  # fmt: skip
    return pd.DataFrame(rows)


def renyi_near_one(orders: list[float]) -> pd.DataFrame:
    """Renyi entropy near order 1 against 50 digits: ours, and the definition evaluated in float32 as it stands."""
    p = torch.tensor([2.0**-k for k in range(1, 12)] + [2.0**-11], dtype=torch.float64)
    rows = []
    for alpha in orders:
        with localcontext(prec=50):
            order = Decimal(alpha)
            exact = sum((Decimal(v) ** order for v in p.tolist()), Decimal(0)).ln() / (1 - order)
        single = p.float()
        naive = (single**alpha).sum().log() / torch.tensor(1 - alpha, dtype=torch.float32)
        found: dict[str, Callable[[], Tensor]] = {
            "ours, float64": lambda a=alpha: renyi_entropy(p, a),  # type: ignore[misc]
            "ours, float32": lambda a=alpha: renyi_entropy(p.float(), a),  # type: ignore[misc]
            "definition, float32": lambda v=naive: v,  # type: ignore[misc]
        }
        rows.append({"order − 1": alpha - 1, "exact": float(exact),
                     **{name: abs(float(value()) - float(exact)) for name, value in found.items()}})  # fmt: skip
    return pd.DataFrame(rows)
