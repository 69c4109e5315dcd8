"""The order of the kernels while LoRA trains: its certificate s^2 (|A|^2 + |B|^2), and the order itself.

Statement ``order-in-training``. Both kernels are taken at the merged weights W + s B A, one adapted layer at a time and
summed over the adapted layers.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lorantk import Adapter, LayerFactors, attach, mlp, order_certificate
from lorantk.batches import Batch, call, check_integer
from lorantk.grams import gram
from lorantk.lora import LoRALayer

from .adam import jacobian, optimizer
from .order import kernel_ratios, matrix

TOGETHER = "together"
"""Names the kernels summed over the adapted layers, beside the names of layers."""

MEASURES = ["certificate", "worst layer", "all layers"]
"""Largest certificate, largest c of a layer's kernels, and c of their sums: columns of `worst_layer`."""

RUN = ["optimizer", "scaling", "seed", "step"]
"""Columns that name a checkpoint of a run."""


def merged(adapted: nn.Module, model: nn.Module) -> nn.Module:
    """`model` with all that `adapted` has learned, adapters added to the weights: its function, all of it trainable."""
    whole = copy.deepcopy(model)
    whole.load_state_dict(adapted.state_dict(), strict=False)  # adapters, and the layers under them, have other names
    for name, layer in _adapted_layers(adapted).items():
        weight = whole.get_parameter(f"{name}.weight")
        weight.data += layer.scaling * layer.up.weight.detach() @ layer.down.weight.detach()
    return whole.requires_grad_(True)


def layer_kernels(
    adapted: nn.Module, whole: nn.Module, x: Batch, layers: Iterable[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Kernels of each layer's adapter, and of the layer of the merged model, frozen or not, as matrices."""
    halves = {name: [f"{name}.down", f"{name}.up"] for name in layers}
    both = [half for pair in halves.values() for half in pair]
    small, large = LayerFactors.from_model(adapted, x, both), LayerFactors.from_model(whole, x, list(halves))
    for name, pair in halves.items():
        uses = [(name, which) for which, _ in whole.get_submodule(name).named_parameters()]
        yield matrix(gram(small, small, [(half, "weight") for half in pair])), matrix(gram(large, large, uses))


def orders(adapted: nn.Module, model: nn.Module, x: Batch) -> pd.DataFrame:
    """A row an adapted layer: its certificate, and the smallest c with K_LoRA <= c K_full on `x`.

    The last row, `TOGETHER`, has the smallest c for the kernels summed over these layers, which is at most the largest
    of theirs, and the largest certificate and share of B.

    Parameters
    ----------
    adapted : nn.Module
        A copy of `model` with adapters on layers of standard parametrisation.
    model : nn.Module
        Without adapters.
    x : Tensor (n, ...) or mapping of Tensor
        For models in float64.
    """
    whole, rows, kernels = merged(adapted, model), [], []
    layers = _adapted_layers(adapted)
    for (name, layer), (lora, full) in zip(layers.items(), layer_kernels(adapted, whole, x, layers), strict=True):
        A, B = layer.down.weight.detach(), layer.up.weight.detach()
        certificate = order_certificate(A, B, layer.scaling)
        share = (layer.scaling * torch.linalg.matrix_norm(B, 2)).item() ** 2
        ratio = kernel_ratios(lora, full)[-1].item()
        rows.append({"layer": name, "certificate": certificate, "share_of_B": share, "ratio": ratio})
        kernels.append(torch.stack([lora, full]))
    ratio = kernel_ratios(*torch.stack(kernels).sum(0))[-1].item()
    largest = {column: max(row[column] for row in rows) for column in ("certificate", "share_of_B")}
    return pd.DataFrame([*rows, {"layer": TOGETHER, **largest, "ratio": ratio}])


def follow(
    adapted: nn.Module, model: nn.Module, batches: Iterable[tuple[Batch, Tensor]], x: Batch, rule: tuple[str, float],
    checkpoints: Sequence[int],
) -> pd.DataFrame:  # fmt: skip
    """`orders` on `x` at each checkpoint (steps done) while `adapted` trains, by an optimizer and its learning rate.

    Each step takes the next of `batches`, inputs with labels; a checkpoint's loss and accuracy are those on the batch
    of the step that follows it. Training that diverges ends there: a warning says so, later checkpoints are missing.
    `adapted`, a copy of `model` with adapters, is trained in place.
    """
    if not checkpoints:
        raise ValueError("checkpoints must hold at least one step; got none")
    for checkpoint in checkpoints:
        check_integer("checkpoints", checkpoint, 0)
    steps, tables = optimizer(rule[0], adapted, rule[1]), []
    for done, (inputs, labels) in zip(range(max(checkpoints) + 1), batches, strict=False):
        outputs = call(adapted, inputs)
        loss = nn.functional.cross_entropy(outputs, labels)
        if not bool(outputs.isfinite().all()):
            warnings.warn(f"training by {rule} diverged at step {done}: no checkpoint from there on", stacklevel=2)
            break
        if done in checkpoints:
            accuracy = (outputs.argmax(1) == labels).double().mean().item()
            row: dict[str, Any] = {"optimizer": rule[0], "learning_rate": rule[1], "step": done}
            tables.append(orders(adapted, model, x).assign(**row, loss=loss.item(), accuracy=accuracy))
        steps.zero_grad()
        loss.backward()
        steps.step()
    return pd.concat(tables, ignore_index=True)


def worst_layer(orders: pd.DataFrame) -> pd.DataFrame:
    """`MEASURES` of the rows of `follow`, with loss and accuracy, a row a checkpoint; a scaling may be text."""
    orders = orders.astype({"scaling": float})
    single = orders[orders.layer != TOGETHER].rename(columns={"ratio": "worst layer"}).groupby(RUN)
    summed = orders[orders.layer == TOGETHER].rename(columns={"ratio": "all layers"}).set_index(RUN)
    return single[["certificate", "worst layer"]].max().join(summed[["all layers", "loss", "accuracy"]]).reset_index()


def first_beyond(worst: pd.DataFrame) -> pd.DataFrame:
    """First checkpoint at which `MEASURES` exceed 1, with loss and accuracy there.

    Parameters
    ----------
    worst : DataFrame
        A row a checkpoint: optimizer, scaling, seed, step, `MEASURES`, loss, accuracy.

    Returns
    -------
    DataFrame
        Indexed by optimizer, scaling and what ended; runs: in how many it ended. The other columns are means over these
        runs; what ended in none has no row.
    """
    long = worst.melt(["optimizer", "scaling", "seed", "step", "loss", "accuracy"], MEASURES, "ends")
    beyond = long[long.value > 1].sort_values("step").groupby(["optimizer", "scaling", "ends", "seed"]).first()
    means = {column: (column, "mean") for column in ("step", "loss", "accuracy")}
    return beyond.groupby(["optimizer", "scaling", "ends"]).agg(runs=("step", "size"), **means).round(3)


def over_controls(runs: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """What each control of a run learned, and whether it left the order: a row a part trained, optimizer and rate.

    Parameters
    ----------
    runs : DataFrame
        Of `follow` with adapter and head trained, at scalings and steps that include those of `controls`.
    controls : DataFrame
        The same with the column "trained".

    Returns
    -------
    DataFrame
        Mean accuracy over the draws at each step, and the largest c of a single layer and of all layers together over
        steps and draws.
    """
    shared = runs[runs.scaling.isin(controls.scaling) & runs.step.isin(controls.step)].assign(
        trained="adapter and head"
    )
    rows = []
    for keys, part in pd.concat([shared, controls]).groupby(["trained", "optimizer", "learning_rate"], sort=False):
        worst = worst_layer(part)
        accuracy = worst.groupby("step").accuracy.mean().rename(lambda step: f"accuracy, step {step}")
        largest = worst[MEASURES[1:]].max().rename(lambda column: f"c, {column}")
        rows.append(dict(zip(("trained", "optimizer", "rate"), keys, strict=True)) | {**accuracy, **largest})
    return pd.DataFrame(rows).sort_values(["trained", "optimizer", "rate"], ascending=[True, False, True])


def projected_kernel(J: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """J P J^T with P = s^2 (I (x) A^T A + B B^T (x) I), for J (k, fan_out * fan_in) of one full weight matrix."""
    G = J.unflatten(1, (len(B), A.shape[1]))
    return scaling**2 * ((G @ A.T).flatten(1) @ (G @ A.T).flatten(1).T + (B.T @ G).flatten(1) @ (B.T @ G).flatten(1).T)


def search(cases: Sequence[int]) -> pd.DataFrame:
    """Random networks, layers, ranks, scalings and B of any size: the identity's error, the ratio, the certificate."""
    rows = []
    for case in cases:
        draw = torch.Generator().manual_seed(case)
        width, rank, n = (int(torch.randint(1, top, (), generator=draw)) for top in (7, 5, 6))
        activation = ("relu", "tanh", "erf", "linear")[case % 4]
        model = mlp([5, width, 5, 3], activation, parametrization="standard", seed=case).double()
        name = ("0", "2", "4")[case % 3]
        fan_out, fan_in = model.get_parameter(f"{name}.weight").shape
        rank, size = min(rank, fan_in), 10.0 ** (4 * torch.rand((), generator=draw).item() - 3)
        scaling = 10.0 ** (2 * torch.rand((), generator=draw).item() - 1)
        A, x = (torch.randn(k, m, generator=draw, dtype=torch.float64) for k, m in ((rank, fan_in), (n, 5)))
        B = size * torch.randn(fan_out, rank, generator=draw, dtype=torch.float64)
        adapted = attach(model, {name: Adapter(A, B, scaling)})
        whole = merged(adapted, model).requires_grad_(False)
        whole.get_parameter(f"{name}.weight").requires_grad_(True)
        J, (kernel, full) = jacobian(whole, x), next(layer_kernels(adapted, whole, x, [name]))
        if not J.any():  # all units are dead: both kernels are 0
            continue
        error = (projected_kernel(J, A, B, scaling) - kernel).abs().max() / kernel.abs().max()
        ratio = kernel_ratios(kernel, full)[-1].item()
        rows.append({"case": case, "error": error.item(), "ratio": ratio, "bound": order_certificate(A, B, scaling)})
    return pd.DataFrame(rows)


def _adapted_layers(adapted: nn.Module) -> dict[str, LoRALayer]:
    """Layers with an adapter, by name."""
    return {name: module for name, module in adapted.named_modules() if isinstance(module, LoRALayer)}
