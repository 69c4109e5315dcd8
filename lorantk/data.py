"""What a page reads: the 8 x 8 handwritten digits of scikit-learn, and the tables committed with this source tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .validation import check_integer

if TYPE_CHECKING:
    import pandas

SOURCE_TREE = Path(__file__).resolve().parent.parent
"""Root of the tree that an editable install points to."""


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
    ImportError
        If the extra ``book`` is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ImportError("recorded needs the extra 'book': pip install 'lorantk[book]'") from error
    text = {"variance": str, "scaling": str}  # rules such as "1/r", some of which look like numbers
    return pandas.read_csv(_committed("experiments", name, ".csv"), dtype=text)


def benchmark(name: str) -> dict[str, Any]:
    """A committed measurement of speed and memory: ``benchmarks/results/<name>.json``; see `recorded`."""
    content: dict[str, Any] = json.loads(_committed("benchmarks/results", name, ".json").read_text())
    return content


def _committed(folder: str, name: str, suffix: str) -> Path:
    """Path of a committed file of this source tree."""
    path = SOURCE_TREE / folder / f"{name}{suffix}"
    if not path.is_file():
        known = sorted(
            p.relative_to(SOURCE_TREE / folder).with_suffix("").as_posix()
            for p in (SOURCE_TREE / folder).rglob(f"*{suffix}")
        )
        raise FileNotFoundError(
            f"name must be a table among {known} in {SOURCE_TREE / folder}; got {name!r}. "
            "Recorded runs come with the source tree: clone it and install it with pip install -e ."
        )
    return path
