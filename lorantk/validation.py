"""Errors that tell you how to fix your call: each names the argument, the value given and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of the strings in `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def check_integer(name: str, value: object, minimum: int) -> None:
    """Raise TypeError unless `value` is an int, ValueError unless it is at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")


def check_real(name: str, value: object, *, minimum: float, exclusive: bool = False) -> None:
    """Raise unless `value` is a finite real number that is at least (if `exclusive`: above) `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a real number; got {value!r} of type {type(value).__name__}")
    if not math.isfinite(value) or value < minimum or (exclusive and value == minimum):
        bound = "above" if exclusive else "at least"
        raise ValueError(f"{name} must be finite and {bound} {minimum}; got {value}")


def check_tensor(name: str, value: object, *, ndim: int | None = None, floating: bool = True) -> Tensor:
    """Return `value` if it is a non-empty, finite tensor of the given dimension; raise otherwise."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(value).__name__}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s); got shape {tuple(value.shape)}")
    if value.ndim == 0 or value.numel() == 0:
        raise ValueError(f"{name} must hold at least one entry along each axis; got shape {tuple(value.shape)}")
    if floating and not value.is_floating_point():
        raise TypeError(f"{name} must be a floating point tensor; got dtype {value.dtype}")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} must be finite; got NaN or Inf among its {value.numel()} entries")
    return value


def check_same_kind(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise TypeError unless both tensors share dtype and device."""
    if value.dtype != other.dtype:
        raise TypeError(f"{name} has dtype {value.dtype} but {other_name} has {other.dtype}: use one dtype")
    if value.device != other.device:
        raise TypeError(f"{name} is on {value.device} but {other_name} is on {other.device}: use one device")


def check_square(name: str, value: object) -> Tensor:
    """Return `value` if it is a finite symmetric matrix; raise otherwise."""
    matrix = check_tensor(name, value, ndim=2)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be square; got shape {tuple(matrix.shape)}")
    asymmetry = (matrix - matrix.T).abs().max()
    if asymmetry > 100 * torch.finfo(matrix.dtype).eps * matrix.abs().max():
        raise ValueError(f"{name} must be symmetric; it differs from its transpose by {asymmetry.item():.3g}")
    return matrix
