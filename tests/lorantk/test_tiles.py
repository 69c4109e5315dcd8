"""Kernels on disk: one process at a time, and nothing resumed that is not whole and of this kernel."""

import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from filelock import FileLock
from strategies import gaussian
from torch import nn

import lorantk.methods
from lorantk import mlp, ntk

X = gaussian(6, 3, seed=0)
MEMORY = 2000  # bytes: blocks of less than six inputs


def network():
    return mlp([3, 4, 2], seed=1).double()


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A kernel of which three tiles are on disk, and its path."""
    path, calls = tmp_path / "kernel.npy", []
    real = lorantk.methods.gram

    def failing(*arguments):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(lorantk.methods, "gram", failing)
        with pytest.raises(KeyboardInterrupt):
            ntk(network(), X, max_memory=MEMORY, out=path)
    return path


def resume(path, model=None):
    return ntk(model or network(), X, max_memory=MEMORY, out=path)


def test_an_interrupted_kernel_is_resumed_and_leaves_one_file(interrupted):
    assert json.loads(interrupted.with_suffix(".npy.partial.json").read_text())["done"] == [[0, 0], [0, 1], [0, 2]]
    assert torch.equal(resume(interrupted), ntk(network(), X, max_memory=MEMORY))
    assert [p.name for p in interrupted.parent.iterdir()] == ["kernel.npy"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.with_suffix(".npy.partial").unlink(), "missing or cut off"),
        (lambda path: path.with_suffix(".npy.partial").write_bytes(b"\x93NUMPY"), "missing or cut off"),
        (lambda path: _cut(path.with_suffix(".npy.partial")), "missing or cut off"),
        (lambda path: np.save(_open(path), np.zeros((2, 2))), "is another array"),
        (lambda path: path.with_suffix(".npy.partial.json").write_text("{"), "is no record of tiles"),
        (lambda path: path.with_suffix(".npy.partial.json").write_text("[1]"), "is no record of tiles"),
        (lambda path: path.with_suffix(".npy.partial.json").write_text("{}"), "is no record of tiles"),
    ],
)
def test_what_is_not_whole_is_an_error_and_not_a_kernel(interrupted, damage, message):
    damage(interrupted)
    with pytest.raises(ValueError, match=f"out cannot be resumed.*{message}.*delete"):
        resume(interrupted)
    assert not interrupted.exists()
    for suffix in (".npy.partial", ".npy.partial.json"):
        interrupted.with_suffix(suffix).unlink(missing_ok=True)
    assert torch.equal(resume(interrupted), ntk(network(), X, max_memory=MEMORY))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def _open(path):
    return path.with_suffix(".npy.partial").open("wb")


def test_another_activation_is_another_kernel(interrupted):
    erf = mlp([3, 4, 2], activation="erf", seed=1).double()
    with pytest.raises(ValueError, match="belongs to another model, batch or setting"):
        resume(interrupted, erf)


class Scaled(nn.Module):
    """Outputs times what a function held as an attribute says."""

    def __init__(self, factor):
        super().__init__()
        self.inner, self.factor = network(), factor

    def forward(self, x):
        return self.inner(x) * self.factor()


def factor(value):
    return lambda: value


def columns(values):
    return lambda outputs: outputs[:, values]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"model": Scaled(factor(1.0))}, {"model": Scaled(factor(2.0))}),
        ({"model": Scaled(partial(float, "1"))}, {"model": Scaled(partial(float, "2"))}),
        ({"select": columns([0, 1])}, {"select": columns([1, 0])}),
        ({"select": lambda outputs: outputs[:, :1]}, {"select": lambda outputs: outputs[:, 1:]}),
        ({"weights": {".*": 1.0}}, {"weights": {".*": 2.0}}),
    ],
)
def test_another_closure_attribute_or_selection_is_another_kernel(tmp_path, monkeypatch, before, after):
    path, calls, real = tmp_path / "kernel.npy", [], lorantk.methods.gram

    def failing(*arguments):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(*arguments)

    def run(changed):
        return ntk(x1=X, max_memory=MEMORY, out=path, **{"model": network(), **changed})

    with monkeypatch.context() as patch:
        patch.setattr(lorantk.methods, "gram", failing)
        with pytest.raises(KeyboardInterrupt):
            run(before)
    with pytest.raises(ValueError, match="belongs to another model, batch or setting"):
        run(after)
    assert run(before).shape[0] == len(X)


def test_fingerprints_are_those_of_another_process():
    code = (
        "import torch; from lorantk import mlp; from lorantk.fingerprints import fingerprint;"
        "print(fingerprint(mlp([3, 4, 2]), {'b', 'a', 'c'}, torch.ones(2), lambda v: v + 1))"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                       env=os.environ | {"PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


def test_a_second_process_is_refused(interrupted):
    with FileLock(interrupted.with_suffix(".npy.lock")), pytest.raises(ValueError, match="another one writes"):
        resume(interrupted)
    assert torch.equal(resume(interrupted), ntk(network(), X, max_memory=MEMORY))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_dtype_of_npy_can_be_written(tmp_path, dtype):
    model = nn.Linear(3, 2).to(dtype)
    stored = ntk(model, X.to(dtype), out=tmp_path / "kernel.npy")
    assert stored.dtype == dtype
    assert torch.equal(stored, ntk(model, X.to(dtype)))


def test_a_dtype_that_npy_lacks_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="bfloat16"):
        ntk(nn.Linear(3, 2).bfloat16(), X.bfloat16(), out=tmp_path / "kernel.npy")
    assert not list(tmp_path.iterdir())
