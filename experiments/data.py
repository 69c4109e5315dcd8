"""What a page reads: the 8 x 8 handwritten digits of scikit-learn, and the tables committed with this source tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evidence.artifacts import committed, table_rows
from lorantk.batches import check_integer

if TYPE_CHECKING:
    import pandas


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
    if seed >= 2**63:
        raise ValueError(f"seed must be below 2**63, as torch's generators take it; got {seed}")
    bunch = load_digits()
    if n > len(bunch.target):
        raise ValueError(f"n must be at most {len(bunch.target)}, the number of digits; got {n}")
    chosen = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(seed))[:n]
    x = torch.as_tensor(bunch.data, dtype=torch.float64)[chosen]
    y = torch.as_tensor(bunch.target, dtype=torch.int64)[chosen]
    return x * (x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True)), y


def recorded(name: str) -> pandas.DataFrame:
    """A table of runs that is committed with this source tree: ``experiments/<name>.csv``.

    Parameters
    ----------
    name : str
        E.g. "published/figures" or "results/digits". On a page, write it literally: the table is then part of what
        the chapter's hash covers.

    Raises
    ------
    FileNotFoundError
        If there is no such table, as in an installation without the source tree.
    CorruptFile
        If a row of it is no row, or an id stands there twice.
    ImportError
        If the extra ``book`` is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ImportError("recorded needs the extra 'book': pip install 'lorantk[book]'") from error
    text = {"variance": str, "scaling": str}  # rules such as "1/r", some of which look like numbers
    path = committed("experiments", name, ".csv")
    table_rows(path, path.read_text(encoding="utf-8"))
    return pandas.read_csv(path, dtype=text)
