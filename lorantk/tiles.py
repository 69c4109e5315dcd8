"""A kernel made tile by tile, in memory or in a file that is complete or absent.

Inputs are split into blocks; a block is prepared (factors or Jacobians) and each pair of blocks gives one tile. Where
both batches are the same, tiles below the diagonal are transposes. On disk the tiles go to ``<out>.partial``, beside a
record of the finished ones, so that an interrupted run resumes; the last tile renames the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

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
    fingerprint: Iterable[object] = (),
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
    fingerprint : iterable of tensors and strings
        What the kernel depends on; a partial file of another computation is refused.
    """
    rows, columns = ([slice(i, min(i + b, n)) for i in range(0, n, b)] for n, b in zip(sizes, blocks, strict=True))
    if len(rows) == len(columns) == 1 and out is None:
        first = prepare1(rows[0])
        return tile(first, first if symmetric else prepare2(columns[0]))
    pairs = [(i, j) for i in range(len(rows)) for j in range(i if symmetric else 0, len(columns))]
    store = _Memory() if out is None else _File(out, [*fingerprint, str(sizes), str(blocks)])
    current, first = -1, None
    for i, j in tqdm([pair for pair in pairs if pair not in store.done], "tiles", delay=2, leave=False):
        if i != current:
            current, first = i, prepare1(rows[i])
        part = tile(first, first if symmetric and i == j else prepare2(columns[j]))
        half = part.ndim // 2
        kernel = store.open((sizes[0], *part.shape[1:half], sizes[1], *part.shape[half + 1 :]), part)
        kernel[(rows[i], *[slice(None)] * (half - 1), columns[j])] = part
        if symmetric and i != j:
            kernel[(columns[j], *[slice(None)] * (half - 1), rows[i])] = part.permute(
                *range(half, 2 * half), *range(half)
            )
        store.finish((i, j))
    return store.close()


def describe(model: nn.Module) -> Iterator[str]:
    """What a model computes beside its tensors: class and plain attributes of each layer, in order."""
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str, tuple)) or v is None}
        yield f"{name} {type(module).__qualname__} {sorted(plain.items())} {module.extra_repr()}"


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


class _File(_Memory):
    """The kernel as a memory-mapped file, with a record of the tiles that are on disk."""

    def __init__(self, out: Path, fingerprint: Iterable[object]) -> None:
        super().__init__()
        if out.suffix != ".npy" or not out.parent.is_dir():
            raise ValueError(f"out must be a path ending in .npy in an existing directory; got {str(out)!r}")
        if out.exists():
            raise ValueError(f"out must not exist yet; {str(out)!r} does: delete it or name another file")
        digest = hashlib.sha256()
        for item in fingerprint:
            for part in item if isinstance(item, tuple) else (item,):
                tensor = isinstance(part, Tensor)
                digest.update(f"|{part.dtype} {tuple(part.shape)}|".encode() if tensor else f"|{part}|".encode())
                digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor else b"")
        self.out, self.id = out, digest.hexdigest()
        self.partial, self.record = Path(f"{out}.partial"), Path(f"{out}.partial.json")
        if self.record.exists():
            record = json.loads(self.record.read_text())
            if record["id"] != self.id:
                raise ValueError(
                    f"{str(self.partial)!r} belongs to another model, batch or setting; delete it to start afresh"
                )
            self.done = {(i, j) for i, j in record["done"]}

    def open(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        if self.kernel is None:
            if not self.done:
                np.lib.format.open_memmap(self.partial, "w+", torch.empty(0, dtype=like.dtype).numpy().dtype, shape)
            self.map = np.lib.format.open_memmap(self.partial, "r+")
            self.kernel = torch.from_numpy(self.map)
        return self.kernel

    def finish(self, pair: tuple[int, int]) -> None:
        super().finish(pair)
        self.map.flush()
        write_atomically(self.record, json.dumps({"id": self.id, "done": sorted(self.done)}))

    def close(self) -> Tensor:
        os.replace(self.partial, self.out)
        self.record.unlink(missing_ok=True)
        return torch.from_numpy(np.load(self.out, mmap_mode="c"))


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
