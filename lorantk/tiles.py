"""A kernel made tile by tile, in memory or in a file that is complete or absent.

Inputs are split into blocks; a block is prepared (factors or Jacobians) and each pair of blocks gives one tile. Where
both batches are the same, tiles below the diagonal are transposes. On disk the tiles go to ``<out>.partial``, beside a
record of the finished ones, so that an interrupted run resumes; the last tile renames the file. A lock keeps a second
process out, and a record or partial file that does not fit is an error, not a start.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from .fingerprints import fingerprint

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def in_bytes(memory: int | str) -> int:
    """Bytes meant by an int or by text such as "4GB" or "512MiB".

    Raises
    ------
    TypeError, ValueError
        If `memory` is neither, or not above 0.
    """
    if isinstance(memory, bool) or not isinstance(memory, (int, str)):
        raise TypeError(f"max_memory must be bytes or text such as '4GB'; got {memory!r}")
    value = 0 if isinstance(memory, str) else memory
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B)\s*", memory.upper())
        value = 0 if match is None else int(float(match[1]) * UNITS[match[2]])
    if value <= 0:
        raise ValueError(f"max_memory must be bytes above 0 or text such as '4GB'; got {memory!r}")
    return value


def assemble(
    prepare1: Callable[[slice], Any],
    prepare2: Callable[[slice], Any],
    tile: Callable[[Any, Any], Tensor],
    sizes: tuple[int, int],
    blocks: tuple[int, int],
    *,
    symmetric: bool,
    out: Path | None = None,
    depends_on: Callable[[], Iterable[object]] = tuple,
) -> Tensor:
    """The kernel (n1, ..., n2, ...) of tile(prepare1(rows), prepare2(columns)) over all pairs of blocks.

    Parameters
    ----------
    prepare1, prepare2 : functions of a slice of inputs
    tile : function of two prepared blocks
        Called with one object twice on the diagonal of a symmetric kernel.
    sizes, blocks : pairs of int
        Numbers of inputs and of inputs a block.
    symmetric : bool
    out : Path, optional
        The .npy file to write; the result is memory-mapped then.
    depends_on : function without arguments
        Gives all that the kernel depends on; a partial file of another computation is refused.
    """
    rows, columns = ([slice(i, min(i + b, n)) for i in range(0, n, b)] for n, b in zip(sizes, blocks, strict=True))
    if len(rows) == len(columns) == 1 and out is None:
        first = prepare1(rows[0])
        return tile(first, first if symmetric else prepare2(columns[0]))
    pairs = [(i, j) for i in range(len(rows)) for j in range(i if symmetric else 0, len(columns))]
    store = _Memory() if out is None else _File(out, fingerprint(sizes, blocks, *depends_on()))
    try:
        current, first = -1, None
        for i, j in tqdm([pair for pair in pairs if pair not in store.done], "tiles", delay=2, leave=False):
            if i != current:
                current, first = i, prepare1(rows[i])
            part = tile(first, first if symmetric and i == j else prepare2(columns[j]))
            half = part.ndim // 2
            within = [slice(None)] * (half - 1)  # all outputs
            kernel = store.open((sizes[0], *part.shape[1:half], sizes[1], *part.shape[half + 1 :]), part)
            kernel[(rows[i], *within, columns[j])] = part
            if symmetric and i != j:
                kernel[(columns[j], *within, rows[i])] = part.permute(*range(half, 2 * half), *range(half))
            store.finish((i, j))
        return store.close()
    finally:
        store.release()


class _Memory:
    """The kernel as a tensor."""

    def __init__(self) -> None:
        self.done: set[tuple[int, int]] = set()
        self.kernel: Tensor | None = None

    def open(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        self.kernel = like.new_empty(shape) if self.kernel is None else self.kernel
        return self.kernel

    def finish(self, pair: tuple[int, int]) -> None:
        self.done.add(pair)

    def close(self) -> Tensor:
        assert self.kernel is not None
        return self.kernel

    def release(self) -> None:
        """Let other processes write."""


class _File(_Memory):
    """The kernel as a memory-mapped file, with a record of the tiles that are on disk."""

    def __init__(self, out: Path, identity: str) -> None:
        super().__init__()
        if out.suffix != ".npy" or not out.parent.is_dir():
            raise ValueError(f"out must be a path ending in .npy in an existing directory; got {str(out)!r}")
        if out.exists():
            raise ValueError(f"out must not exist yet; {str(out)!r} does: delete it or name another file")
        self.out, self.id = out, identity
        self.partial, self.record = Path(f"{out}.partial"), Path(f"{out}.partial.json")
        self.lock = FileLock(f"{out}.lock", timeout=0, mode=0o644)
        try:
            self.lock.acquire()
        except Timeout:
            raise ValueError(f"out must be written by one process; another one writes {str(out)!r}") from None
        try:
            if out.exists():  # the other process has finished in between
                raise ValueError(f"out must not exist yet; {str(out)!r} does: delete it or name another file")
            if self.record.exists():
                self._resume()
        except ValueError:
            self.release()
            raise

    def _resume(self) -> None:
        """Take over the finished tiles, if the record and the file are of this kernel and whole."""
        afresh = f"delete {str(self.partial)!r} and {str(self.record)!r} to start afresh"
        try:
            record = json.loads(self.record.read_text())
            found, done = record["id"], {(int(i), int(j)) for i, j in record["done"]}
            wanted = (tuple(record["shape"]), record["dtype"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"out cannot be resumed: {str(self.record)!r} is no record of tiles; {afresh}") from error
        if found != self.id:
            raise ValueError(f"{str(self.partial)!r} belongs to another model, batch or setting; {afresh}")
        try:
            stored = np.load(self.partial, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"out cannot be resumed: {str(self.partial)!r} is missing or cut off; {afresh}") from error
        if (stored.shape, str(stored.dtype)) != wanted:
            raise ValueError(f"out cannot be resumed: {str(self.partial)!r} is another array; {afresh}")
        self.done = done

    def open(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        if self.kernel is None:
            if like.dtype == torch.bfloat16:
                raise ValueError("out must have a dtype that .npy has; the kernel is bfloat16: make the model float32")
            if not self.done:
                np.lib.format.open_memmap(self.partial, "w+", torch.empty(0, dtype=like.dtype).numpy().dtype, shape)
            self.map = np.lib.format.open_memmap(self.partial, "r+")
            self.kernel = torch.from_numpy(self.map)
        return self.kernel

    def finish(self, pair: tuple[int, int]) -> None:
        super().finish(pair)
        self.map.flush()
        record = {"id": self.id, "done": sorted(self.done), "shape": self.map.shape, "dtype": str(self.map.dtype)}
        write_atomically(self.record, json.dumps(record))

    def close(self) -> Tensor:
        os.replace(self.partial, self.out)
        self.record.unlink(missing_ok=True)
        return torch.from_numpy(np.load(self.out, mmap_mode="c"))

    def release(self) -> None:
        with suppress(OSError):  # while it is held, so that no other process is in it; Windows removes it afterwards
            Path(self.lock.lock_file).unlink()
        self.lock.release()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to a temporary file beside `path`, then rename it: readers see the old file or the new one."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with ExitStack() as undo:
        undo.callback(os.unlink, temporary)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        undo.pop_all()
