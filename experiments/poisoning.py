"""Poison by exact count: which samples an attack takes, and what labels flips give them.

A count is of samples whose label changes. The samples of a smaller count are among those of a larger one, so that doses
are nested. (`lorantk.attacks.flip_labels` and `lorantk.attacks.insert_trigger` draw with a probability, as the paper
does.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorantk.batches import check_integer, check_seed


def victims(labels: Tensor, count: int, seed: int, target: int | None = None) -> Tensor:
    """Which samples (n,) are poisoned, bool: `count` of them, none that has the label `target` already.

    Raises
    ------
    TypeError, ValueError
        If count is no integer from 0 to the number of samples that can be poisoned.
    """
    check_integer("count", count, 0)
    check_seed(seed)
    free = torch.ones(len(labels), dtype=torch.bool) if target is None else labels != target
    if count > int(free.sum()):
        raise ValueError(f"count must be at most {int(free.sum())}, the samples whose label can change; got {count}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[order[free[order]][:count]] = True
    return chosen


def attacked(labels: Tensor, attack: str, share: float, classes: int, seed: int, target: int) -> tuple[Tensor, Tensor]:
    """Which samples (n,) carry the trigger, bool, and the labels (n,), after an attack on an exact share of samples."""
    count, unmarked = round(share * len(labels)), torch.zeros(len(labels), dtype=torch.bool)
    if attack == "untargeted":
        return unmarked, flipped(labels, classes, count, seed)
    if attack == "backdoor":
        chosen = victims(labels, count, seed, target)
        return chosen, labels.masked_fill(chosen, target)
    return unmarked, labels


def flipped(labels: Tensor, classes: int, count: int, seed: int) -> Tensor:
    """Labels (n,) of which exactly `count` are replaced by another of `classes` classes, drawn uniformly.

    Raises
    ------
    TypeError, ValueError
        If count is no integer from 0 to the number of labels, or a label is none of the classes.
    """
    check_integer("classes", classes, 2)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}; got {labels.min()} to {labels.max()}")
    shift = torch.randint(1, classes, labels.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(victims(labels, count, seed), (labels + shift) % classes, labels)
