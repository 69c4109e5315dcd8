"""Triggers that A does not see, and room that clean gradients leave: at the start, and as training goes on.

Statement ``direction``. The gradient of B in an adapted layer is s g (A a)^T: a trigger t with A t = 0 leaves A a as it
is, and where the clean samples' g (A a)^T span all that there is, no poisoned gradient has a part of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from lorantk import LayerFactors, LoRA
from lorantk.batches import check_choice, check_integer, check_real

from .alignment import Batch, Pair, full_gram, gradient_gram
from .training import gradient_descent


def null_part(A: Tensor, trigger: Tensor) -> Tensor:
    """A trigger (fan_in,) without its part in the rows of A (rank, fan_in), at the norm that it had.

    Raises
    ------
    ValueError
        If the rows of A span all: no direction is left.
    """
    rows = torch.linalg.qr(A.T).Q
    if rows.shape[0] <= rows.shape[1]:
        raise ValueError(f"A must have fewer rows than columns; got shape {tuple(A.shape)}")
    left = trigger
    for _ in range(2):  # the second pass takes off what rounding left of the first
        left = left - rows @ (rows.T @ left)
    return left * trigger.norm() / left.norm()


def triggers(model: nn.Module, lora: LoRA, layer: str, norm: float, seed: int) -> dict[str, Tensor]:
    """A Gaussian direction of a given norm ("random"), and the same in the null space of A in `layer` ("null")."""
    check_real("norm", norm, minimum=0.0, exclusive=True)
    check_choice("layer", layer, drawn := lora.sample(model, seed))
    A = drawn[layer]
    direction = torch.randn(A.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    random = (norm * direction / direction.norm()).to(A)
    return {"random": random, "null": null_part(A, random)}


def off_direction(first: Tensor, second: Tensor) -> Tensor:
    """Share of ``|second|^2`` that is off the direction of `first`, row by row: 1 - cos^2, without cancellation."""
    unit = nn.functional.normalize(first)
    off = second - (second * unit).sum(1, keepdim=True) * unit
    return off.square().sum(1) / second.square().sum(1)


def by_layer(model: nn.Module, x: Tensor, lora: LoRA, norm: float, seeds: Sequence[int]) -> pd.DataFrame:
    """How far a trigger on the input turns the activations of each layer, and what of it A lets through.

    Returns
    -------
    DataFrame
        A row a draw, kind of trigger, layer and sample: seed, trigger, layer, sample; full and lora, the share of the
        triggered activations a, and of A a, that is off the direction of the untriggered ones. The gradient of the
        layer's W, or B, has the same share off the rows of the untriggered sample's.
    """
    rows, before = [], LayerFactors.from_model(model, x)
    for seed in seeds:
        drawn = lora.sample(model, seed)
        for kind, trigger in triggers(model, lora, next(iter(drawn)), norm, seed).items():
            after = LayerFactors.from_model(model, x + trigger)
            for layer, A in drawn.items():
                a, b = before.activations[layer][:, 0], after.activations[layer][:, 0]
                shares = {"full": off_direction(a, b).numpy(), "lora": off_direction(a @ A.T, b @ A.T).numpy()}
                rows.append(
                    pd.DataFrame({"seed": seed, "trigger": kind, "layer": layer, "sample": range(len(x))} | shares)
                )
    return pd.concat(rows, ignore_index=True)


def own_share(gram: Tensor, clean: int) -> Tensor:
    """Share of each poisoned gradient, squared, outside the span of the first `clean` ones, from inner products."""
    values, vectors = torch.linalg.eigh(gram[:clean, :clean])
    kept = values > 1e-10 * values[-1]
    inside = (vectors[:, kept].T @ gram[:clean, clean:]).square() / values[kept][:, None]
    return (1 - inside.sum(0) / gram.diagonal()[clean:]).clamp(min=0)


def room(model: nn.Module, pairs: Mapping[str, Pair], ranks: Sequence[int], seeds: Sequence[int]) -> pd.DataFrame:
    """Mean `own_share` of poisoned gradients, under LoRA and under full fine-tuning.

    Returns
    -------
    DataFrame
        attack, layers ("all", "all, same variance", "last"; where it does not say, the variance is 1/n), rank, seed,
        lora, full.
    """
    rows = []
    for attack, pair in pairs.items():
        names, clean = list(pair.activations), len(pair.inner)
        cases: dict[str, tuple[list[str], str | float]] = {
            "all": (names, "1/n"), "all, same variance": (names, 1.0), "last": (names[-1:], "1/n")}  # fmt: skip
        for where, (layers, variance) in cases.items():
            full = own_share(full_gram(pair, layers), clean).mean().item()
            for rank, seed in itertools.product(ranks, seeds):
                drawn = LoRA(rank, variance).sample(model, seed)
                lora = own_share(gradient_gram(pair, {name: drawn[name] for name in layers}), clean).mean().item()
                rows.append({"attack": attack, "layers": where, "rank": rank, "seed": seed, "lora": lora, "full": full})
    return pd.DataFrame(rows)


def poisoned(clean: Batch, others: Tensor, trigger: Tensor, target: int) -> Batch:
    """Clean samples, and `others` with the trigger and the target label."""
    x, y = clean
    return torch.cat([x, others + trigger]), torch.cat([y, torch.full((len(others),), target)])


def along_training(
    model: nn.Module, clean: Batch, others: Tensor, fresh: Batch, lora: LoRA, norm: float, target: int,
    learning_rate: float, checkpoints: Sequence[int], seeds: Sequence[int],
) -> pd.DataFrame:  # fmt: skip
    """Gradient descent by LoRA on clean and triggered samples: what the first layer's update makes of the trigger.

    Parameters
    ----------
    clean, others : (inputs, labels), inputs
        What is learned: the clean samples, and `others` with trigger and target label.
    fresh : (inputs, labels)
        On which the attack's success is counted.
    norm : float
        Of the trigger.
    checkpoints : sequence of int
        Steps done, ascending, from 1.

    Returns
    -------
    DataFrame
        A row a draw, kind of trigger and checkpoint: seed, trigger, step; gain, ``|dW t| / |t|`` over the mean of
        ``|dW x| / |x|`` on clean inputs; success, share of fresh inputs of other classes that get the target.
    """
    for checkpoint in checkpoints:
        check_integer("checkpoints", checkpoint, 1)
    layer, rows = next(iter(lora.sample(model, 0))), []
    unseen = fresh[0][fresh[1] != target]
    for seed in seeds:
        for kind, trigger in triggers(model, lora, layer, norm, seed).items():
            batch, tuned, done = poisoned(clean, others, trigger, target), lora.attach(model, seed), 0
            for checkpoint in checkpoints:
                tuned = gradient_descent(tuned, *batch, learning_rate=learning_rate, steps=checkpoint - done)
                done = checkpoint
                B, A = (tuned.get_parameter(f"{layer}.{half}.weight").detach() for half in ("up", "down"))
                update = B @ A
                clean_gain = ((clean[0] @ update.T).norm(dim=1) / clean[0].norm(dim=1)).mean()
                with torch.no_grad():
                    success = (tuned(unseen + trigger).argmax(1) == target).double().mean().item()
                gain = ((update @ trigger).norm() / trigger.norm() / clean_gain).item()
                rows.append({"seed": seed, "trigger": kind, "step": done, "gain": gain, "success": success})
    return pd.DataFrame(rows)
