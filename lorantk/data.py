"""Real inputs that ship with a library: the 8 x 8 handwritten digits of scikit-learn."""

from __future__ import annotations

import torch
from torch import Tensor

from .validation import check_integer


def digits(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`n` of the 1797 digit images, drawn without replacement, each scaled to norm sqrt(64).

    Parameters
    ----------
    n : int
        1 to 1797.
    seed : int
        Seed of the explicit generator that draws the subset.

    Returns
    -------
    x : Tensor (n, 64), float64
        Pixels, 0 or above; with this norm Sigma^(1)(x, x) is the weight variance.
    y : Tensor (n,), int64
        The digit, 0 to 9.

    Raises
    ------
    ValueError
        If n is outside 1..1797.
    ImportError
        If the extra ``book`` is not installed.

    Notes
    -----
    Source: Alpaydin and Kaynak (1998), as distributed with scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ImportError("digits needs the extra 'book': pip install 'lorantk[book]'") from error
    check_integer("n", n, 1)
    check_integer("seed", seed, 0)
    bunch = load_digits()
    if n > len(bunch.target):
        raise ValueError(f"n must be at most {len(bunch.target)}, the number of digits; got {n}")
    chosen = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(seed))[:n]
    x = torch.as_tensor(bunch.data, dtype=torch.float64)[chosen]
    y = torch.as_tensor(bunch.target, dtype=torch.int64)[chosen]
    return x * (x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True)), y
