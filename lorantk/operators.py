"""The tangent kernel as a linear operator: products with vectors, diagonal, trace and leading eigenvalues.

A product K v = J1 (D (J2^T v)) needs no kernel, which has (n C)^2 entries:

====================  ===============  ======================================================
quantity              shape            made from
====================  ===============  ======================================================
v                     (n2, C)
J2^T v                one a parameter  layer factors: sum_i (v_i . g_i) a_i^T; else one vjp
J1 p                  (n1, C)          layer factors: g_i . (p a_i); else one jvp
====================  ===============  ======================================================

Statement ``eq-2``. Source: Jacot et al. (2018); the interface is that of scipy's LinearOperator and of curvlinops.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .batches import call, check_integer, size, take, undisturbed
from .factors import LayerFactors
from .kernels import Inputs, Problem, Selection, Weights, ntk
from .methods import Jacobian, Layerwise, Method, VectorProducts


class TangentKernel:
    """K of `lorantk.kernels.ntk` as an operator of shape (n1 C, n2 C); rows and columns run over inputs, then outputs.

    Parameters
    ----------
    model, x1, x2, layers, weights, method, select
        As in `lorantk.kernels.ntk`. "layerwise" keeps the factors of both batches; other methods keep the inputs only.
    max_memory : int or str, optional
        Of `dense` and of the chunks of `to_dask`; products need none of it.

    Attributes
    ----------
    shape : (int, int)
    dtype : torch.dtype

    Raises
    ------
    TypeError, ValueError
        As `lorantk.kernels.ntk`.

    Notes
    -----
    Statement ``eq-2``. ``kernel @ v`` takes a tensor (n2 C,) or (n2 C, k); ``kernel.T`` is the transpose.
    """

    def __init__(
        self,
        model: nn.Module,
        x1: Inputs,
        x2: Inputs | None = None,
        *,
        layers: str | Sequence[str] | None = None,
        weights: Weights | None = None,
        method: str = "auto",
        select: Selection | None = None,
        max_memory: int | str | None = None,
    ) -> None:
        self._keywords: dict[str, Any] = {
            "layers": layers, "weights": weights, "method": method, "select": select, "max_memory": max_memory,
        }  # fmt: skip
        self._model = model
        with undisturbed(model):
            self._problem = Problem(model, x1, x2, layers, weights, method, select)
            one, two = self._problem.x1, self._problem.x2
            self._symmetric = two is one
            self._side1, self._side2 = self._problem.solve(lambda way: _sides(way, one, two))
            with torch.no_grad():
                C = call(self._problem.model, take(one, slice(0, 1))).shape[1]
        self._transposed = False
        self._sizes = (size(one), size(two), C)
        self.shape = (size(one) * C, size(two) * C)
        self.dtype = next(iter(self._problem.parameters.values())).dtype

    @property
    def T(self) -> TangentKernel:
        """The transpose, of shape (n2 C, n1 C)."""
        other = copy.copy(self)
        other._side1, other._side2, other._transposed = self._side2, self._side1, not self._transposed
        other.shape = (self.shape[1], self.shape[0])
        return other

    def __matmul__(self, v: Tensor) -> Tensor:
        if not isinstance(v, Tensor) or v.ndim not in (1, 2) or len(v) != self.shape[1]:
            given = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
            raise ValueError(f"v must be a tensor of shape ({self.shape[1]},) or ({self.shape[1]}, k); got {given}")
        if v.ndim == 2:
            return torch.stack([self @ column for column in v.T], dim=1)
        with undisturbed(self._model):
            direction = self._side2.pull(v.to(self.dtype).reshape(-1, self._sizes[2]))
            return self._side1.push(direction).detach().reshape(-1)

    def diagonal(self) -> Tensor:
        """K of each input and output with itself, (n C,); ValueError if the two batches differ."""
        self._needs_one_batch("diagonal")
        with undisturbed(self._model):
            return self._side1.diagonal().to(self.dtype).diagonal(dim1=1, dim2=2).reshape(-1)

    def trace(self) -> Tensor:
        """The sum of the diagonal, a scalar tensor, in time O(n); ValueError if the two batches differ."""
        return self.diagonal().sum()

    def eigenvalues(self, k: int) -> Tensor:
        """The k largest eigenvalues, descending, in float64: Lanczos' method, scipy's eigsh.

        Raises
        ------
        TypeError, ValueError
            If k is not from 1 to n C - 1, or the two batches differ.
        ImportError
            Without scipy.
        """
        self._needs_one_batch("eigenvalues")
        check_integer("k", k, 1)
        if k >= self.shape[0]:
            raise ValueError(f"k must be below n C = {self.shape[0]}; got {k}: take eigvalsh of .dense()")
        scipy_linalg = _scipy("eigenvalues")
        start = torch.ones(self.shape[0], dtype=torch.float64).numpy()  # the same bytes every time
        found = scipy_linalg.eigsh(self.to_scipy(), k=k, v0=start, return_eigenvectors=False)
        return torch.from_numpy(found.copy()).flip(0)

    def to_scipy(self) -> Any:
        """scipy.sparse.linalg.LinearOperator in float64 around this operator."""
        device = next(iter(self._problem.parameters.values())).device

        def product(operator: TangentKernel) -> Any:
            def apply(v: Any) -> Any:
                return (operator @ torch.from_numpy(v.reshape(-1)).to(device, self.dtype)).double().cpu().numpy()

            return apply

        return _scipy("to_scipy").LinearOperator(
            self.shape, matvec=product(self), rmatvec=product(self.T), dtype="float64"
        )

    def dense(self) -> Tensor:
        """The kernel itself, of shape (n1 C, n2 C)."""
        x2 = None if self._symmetric else self._problem.x2
        matrix = ntk(self._model, self._problem.x1, x2, **self._keywords).flatten(2).flatten(0, 1)
        return matrix.T if self._transposed else matrix

    def to_dask(self, block: int) -> Any:
        """dask array (n1 C, n2 C) whose chunks are kernels of `block` inputs with `block` inputs.

        Each chunk is computed where the scheduler computes it, from the model and two slices of the batches, so a
        kernel may be larger than one machine; a chunk whose worker is lost is computed again. Needs the extra
        ``distributed``.

        Raises
        ------
        TypeError, ValueError, ImportError
            On a block below 1, or without the extra.

        Notes
        -----
        On a cluster under Slurm, dask-jobqueue starts the workers as jobs; the chunks go to a store that all of them
        reach, and never to one memory::

            cluster = dask_jobqueue.SLURMCluster(cores=8, processes=1, memory="32GB", walltime="01:00:00")
            cluster.adapt(maximum_jobs=50)
            with distributed.Client(cluster):
                TangentKernel(model, x).to_dask(block=256).to_zarr("kernel.zarr")

        A chunk of `block` inputs has (block C)^2 entries, and each worker needs that and the factors of two blocks.
        """
        check_integer("block", block, 1)
        try:
            import cloudpickle  # type: ignore[import-untyped]
            import dask.array as da
            from dask.delayed import delayed
        except ModuleNotFoundError as error:
            raise ImportError("to_dask needs the extra 'distributed': pip install 'lorantk[distributed]'") from error
        n1, n2, C = self._sizes
        x1, x2 = self._problem.x1, self._problem.x2
        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        # as bytes: dask would rebuild a module that it looks into, with plain dicts for its registers of hooks
        model, tile = delayed(cloudpickle.dumps(self._model)), delayed(_tile)
        rows = []
        for i in range(0, n1, block):
            row = []
            for j in range(0, n2, block):
                one, other = take(x1, slice(i, i + block)), take(x2, slice(j, j + block))
                shape = (size(one) * C, size(other) * C)
                row.append(da.from_delayed(tile(model, one, other, self._keywords), shape, dtype))
            rows.append(row)
        kernel = da.block(rows)
        return kernel.T if self._transposed else kernel

    def _needs_one_batch(self, what: str) -> None:
        if not self._symmetric:
            raise ValueError(f"{what} needs the kernel of one batch with itself: leave x2 out")


def _tile(model: bytes, one: Any, other: Any, keywords: dict[str, Any]) -> Any:
    return ntk(pickle.loads(model), one, other, **keywords).flatten(2).flatten(0, 1).cpu().numpy()


def _scipy(what: str) -> Any:
    try:
        import scipy.sparse.linalg
    except ModuleNotFoundError as error:
        raise ImportError(f"{what} needs scipy: pip install scipy") from error
    return scipy.sparse.linalg


def _sides(way: Method, x1: Any, x2: Any) -> tuple[_Side, _Side]:
    """Both batches, prepared and checked; a Jacobian is not kept, its products are made instead."""
    if isinstance(way, Jacobian):
        way = VectorProducts(way.model, way.parameters, way.weights)
    kind: type[_Side] = _FactorSide if isinstance(way, Layerwise) else _ProductSide
    first = kind(way, way.checked(x1))
    return first, first if x2 is x1 else kind(way, way.checked(x2))


class _Side:
    """One batch: D J^T v and J p."""

    def __init__(self, way: Any, block: Any) -> None:
        self.way, self.block = way, block

    def pull(self, v: Tensor) -> dict[str, Tensor]:
        """D J^T v by parameter, for v (n, C)."""
        raise NotImplementedError

    def push(self, direction: dict[str, Tensor]) -> Tensor:
        """J p (n, C) for a change p of the parameters."""
        raise NotImplementedError

    def diagonal(self) -> Tensor:
        """Kernel (n, C, C) of each input with itself, from what is held."""
        return self.way.diagonal(self.block, self.block)


class _ProductSide(_Side):
    """From the inputs, by vjp and jvp."""

    def pull(self, v: Tensor) -> dict[str, Tensor]:
        return self.way.pullback(self.block, v)

    def push(self, direction: dict[str, Tensor]) -> Tensor:
        return self.way.push(self.block, direction)


class _FactorSide(_Side):
    """From layer factors, one matrix product a parameter."""

    block: LayerFactors

    def pull(self, v: Tensor) -> dict[str, Tensor]:
        found = {}
        for name, (layer, which) in tqdm(self.way.uses.items(), "parameters", delay=5, leave=False):
            if layer in self.block.kinds:
                gradient = self.block.pull(self.way.owners[layer], layer, which, v)
                found[name] = self.way.weights.get(name, 1.0) * gradient
        return found

    def push(self, direction: dict[str, Tensor]) -> Tensor:
        total = torch.zeros(self.block.outputs.shape, dtype=self.way.dtype, device=self.block.outputs.device)
        for name, p in direction.items():
            layer, which = self.way.uses[name]
            a, g, kind = self.block.activations[layer], self.block.cotangents[layer], self.block.kinds[layer]
            if which == "bias":
                change = p.expand(g.shape[0], g.shape[2], -1)
            elif kind == "scale":
                change = a * p
            elif kind == "grouped":
                change = torch.einsum("ntki,kfi->ntkf", a.to(p.dtype), p.unflatten(0, (a.shape[2], -1))).flatten(2)
            elif kind == "embedding":
                change = torch.where((a >= 0)[..., None], p[a.clamp(min=0)], 0.0)
            else:
                change = a.to(p.dtype) @ p.T
            total += torch.einsum("ncto,nto->nc", g.to(p.dtype), change)
        return total
