"""A fingerprint of all that a value holds: tensors, containers, modules and their hooks, functions and their closures.

Two values with one fingerprint give one kernel. What cannot be looked into counts by its class, so a value that has
changed in such a place only is not told apart; a value that differs in what does not matter, such as a counter of
calls, is another one: a run is then refused, not resumed with a wrong kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, type(...))


def fingerprint(*values: object) -> str:
    """Hexadecimal digest of the values."""
    reader = _Reader()
    reader.read(values)
    return reader.digest.hexdigest()


class _Reader:
    """Writes a value into a digest, each object once."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.seen: dict[int, tuple[int, object]] = {}  # what was read is kept, so that no other object has its id

    def read(self, value: Any) -> None:
        if isinstance(value, PLAIN):
            return self.write(f"{type(value).__name__} {value!r}")
        if id(value) in self.seen:
            return self.write(f"again {self.seen[id(value)][0]}")
        self.seen[id(value)] = (len(self.seen), value)
        self.write(f"{type(value).__module__}.{type(value).__qualname__}")
        for kinds, rule in _RULES:
            if isinstance(value, kinds):
                return rule(self, value)
        return self.items(_state(value))

    def write(self, text: str) -> None:
        self.digest.update(f"|{text}|".encode())

    def tensor(self, value: Tensor) -> None:
        self.write(f"{value.dtype} {tuple(value.shape)} {value.requires_grad}")
        self.digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())

    def array(self, value: np.ndarray[Any, Any]) -> None:
        self.write(f"{value.dtype} {value.shape}")
        self.digest.update(repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes())

    def items(self, value: Mapping[Any, Any]) -> None:
        for key, item in value.items():
            self.read(key)
            self.read(item)

    def sequence(self, value: Iterable[Any]) -> None:
        for item in value:
            self.read(item)
        self.write("end")

    def unordered(self, value: Iterable[Any]) -> None:
        for digest in sorted(fingerprint(item) for item in value):
            self.write(digest)

    def module(self, value: nn.Module) -> None:
        hooks = {k: v for k, v in vars(value).items() if k.endswith("_hooks")}
        self.items({k: v for k, v in vars(value).items() if k not in hooks})
        self.sequence(list(registered.values()) for registered in hooks.values() if registered)  # keys count up
        forward = type(value).forward
        if not forward.__module__.startswith(("torch.", "transformers.", "peft.")):
            self.read(forward)

    def function(self, value: FunctionType) -> None:
        self.code(value.__code__)
        cells = [_content(cell) for cell in value.__closure__ or ()]
        self.sequence([value.__defaults__, value.__kwdefaults__, *cells])
        for name in value.__code__.co_names:
            found = value.__globals__.get(name)
            own = isinstance(found, FunctionType) and found.__module__ == value.__module__
            if own or isinstance(found, (*PLAIN, Tensor, np.ndarray, list, tuple, dict)):
                self.read(found)

    def code(self, value: CodeType) -> None:
        self.digest.update(value.co_code)
        self.sequence([value.co_names, *value.co_consts])

    def bound(self, value: MethodType) -> None:
        self.sequence([value.__self__, value.__func__])

    def partial(self, value: partial[Any]) -> None:
        self.sequence([value.func, value.args, value.keywords])

    def name(self, value: Any) -> None:
        self.write(
            f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"
        )


_RULES: list[tuple[Any, Callable[[_Reader, Any], None]]] = [
    (Tensor, _Reader.tensor),
    (np.ndarray, _Reader.array),
    (nn.Module, _Reader.module),
    (Mapping, _Reader.items),
    ((list, tuple), _Reader.sequence),
    ((set, frozenset), _Reader.unordered),
    (FunctionType, _Reader.function),
    (MethodType, _Reader.bound),
    (CodeType, _Reader.code),
    (partial, _Reader.partial),
    ((type, ModuleType, type(len)), _Reader.name),
]


def _state(value: object) -> dict[str, Any]:
    """The attributes of an object of some class, in __dict__ or in slots."""
    slots = [name for c in type(value).__mro__ for name in getattr(c, "__slots__", ()) if isinstance(name, str)]
    return {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
