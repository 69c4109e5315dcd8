"""Three ways to the tangent kernel of two batches, which share no derivative code; each is checked before it is used.

=================  ==================================================================  ===========================
method             what is kept of a block of inputs                                   memory
=================  ==================================================================  ===========================
"layerwise"        activations and cotangents of every layer (`LayerFactors`)          n C width
"jacobian"         Jacobians by each parameter, torch.func (vmap of jacrev)            n C parameters
"vector_products"  the inputs; columns K v = J1 (D (J2^T v)) by one vjp and one jvp    n C, some parameter vectors
=================  ==================================================================  ===========================

Statements ``eq-2``, ``lem-lora-ntk``. Sources: Jacot et al. (2018); Novak et al. (2022).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacrev, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from .batches import Batch, call, ends, map_inputs, size, take, tolerance, uncast
from .factors import LayerFactors, NotLayerwise, along, disagreements, factors_of, gradient
from .grams import accumulator, diagonal_gram, gram
from .layers import kind

logger = logging.getLogger("lorantk")

COLUMNS = 2**24
"""Entries of the parameter vectors that "vector_products" holds at once, where one vector does not exceed it."""


@dataclass
class Method(ABC):
    """One way to the kernel J1 D J2^T of a model's parameters.

    Attributes
    ----------
    model : nn.Module
    parameters : dict of Tensor
        The trainable ones that count, by name.
    weights : dict of Tensor or float
        D: a non-negative factor, or one for each entry, of each parameter that has one; 1 elsewhere.
    """

    model: nn.Module
    parameters: dict[str, Tensor]
    weights: Mapping[str, Tensor | float]

    def __post_init__(self) -> None:
        self.values = {name: p.detach() for name, p in self.parameters.items()}

    @abstractmethod
    def prepare(self, x: Batch) -> Any:
        """What is kept of a block of inputs."""

    @abstractmethod
    def check(self, x: Batch, block: Any) -> None:
        """Compare with the gradient of the first and last input by autograd; raise ValueError where it differs."""

    def checked(self, x: Batch) -> Any:
        """What `prepare` makes of a batch, after its check."""
        block = self.prepare(x)
        self.check(x, block)
        return block

    @abstractmethod
    def tile(self, one: Any, other: Any, output: str) -> Tensor:
        """Kernel of two prepared blocks: (n1, C, n2, C), or (n1, n2) for "trace"."""

    @abstractmethod
    def diagonal(self, one: Any, other: Any) -> Tensor:
        """Kernel of each input of one block with the same input of the other: (n, C, C)."""

    @property
    def dtype(self) -> torch.dtype:
        """The finest of the parameters, and so that of the kernel."""
        return reduce(torch.promote_types, (p.dtype for p in self.parameters.values()))

    def refuse(self, made: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
        """Raise ValueError where a gradient differs from autograd's beyond round-off."""

        def compared(name: str, directions: Tensor | None) -> Tensor:
            grad = made[name].reshape(wanted[name].shape)
            return grad if directions is None else along(grad, directions)

        for name, gap, norm in disagreements(compared, wanted):
            raise ValueError(f"model must be differentiable by torch.func; its gradient by {name!r} there "
                             f"differs from autograd's by {gap:.1e}, of {norm:.1e}")  # fmt: skip


class Layerwise(Method):
    """Gram matrices of activations times Gram matrices of cotangents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        modules = dict(self.model.named_modules())
        self.owners: dict[str, nn.Module] = {}
        self.uses: dict[str, tuple[str, str]] = {}
        shared: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            shared.setdefault(id(parameter), []).append(name)
        for name, p in self.parameters.items():
            layer, _, which = name.rpartition(".")
            reason = None
            if kind(modules[layer]) is None or which not in ("weight", "bias"):
                reason = f"{name!r} belongs to a {type(modules[layer]).__name__}"
            elif len(shared[id(p)]) > 1:
                reason = f"{' and '.join(map(repr, shared[id(p)]))} are tied"
            elif isinstance(self.weights.get(name, 1.0), Tensor):
                reason = f"{name!r} has a weight for each of its entries"
            if reason:
                raise NotLayerwise(
                    "method 'layerwise' needs every trainable parameter to be the untied weight or bias of a linear, "
                    f"convolutional, embedding or normalisation layer; {reason}"
                )
            self.owners[layer] = modules[layer]
            self.uses[name] = (layer, which)

    def prepare(self, x: Batch) -> LayerFactors:
        return factors_of(self.model, x, self.owners)

    def check(self, x: Batch, block: LayerFactors) -> None:
        block.check(self.model, x, self.uses)

    def groups(self, one: LayerFactors) -> dict[float, list[tuple[str, str]]]:
        """The uses of layers that the model calls, by their weight in D."""
        groups: dict[float, list[tuple[str, str]]] = {}
        for name, use in self.uses.items():
            if use[0] in one.kinds:
                groups.setdefault(float(self.weights.get(name, 1.0)), []).append(use)
        return groups or {1.0: []}

    def tile(self, one: LayerFactors, other: LayerFactors, output: str) -> Tensor:
        shares = {weight: gram(one, other, uses, output) for weight, uses in self.groups(one).items()}
        first, *others = (share if weight == 1 else share.mul_(weight) for weight, share in shares.items())
        return sum(others, first)

    def diagonal(self, one: LayerFactors, other: LayerFactors) -> Tensor:
        shares = [diagonal_gram(one, other, uses) * weight for weight, uses in self.groups(one).items()]
        return sum(shares[1:], shares[0])


class Jacobian(Method):
    """Jacobians of every input by torch.func, or by autograd where a model does not go through it."""

    def prepare(self, x: Batch) -> dict[str, Tensor]:
        try:
            with sdpa_kernel(SDPBackend.MATH):
                found = map_inputs(lambda one: jacrev(lambda v: call(self.model, one, v)[0])(self.values), x)
        except RuntimeError as error:  # torch.func refuses custom autograd functions, writes to .data, and the like
            logger.info("jacobian: one input at a time by autograd, since torch.func says %.200s", error)
            found = self._by_autograd(x)
        return self._scaled(found)

    def _scaled(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = accumulator(self.dtype)
        return {name: self._root(name) * j.detach().to(dtype).flatten(2) for name, j in found.items()}

    def _root(self, name: str) -> Tensor | float:
        """D^(1/2), for one row of the Jacobian by this parameter."""
        weight = self.weights.get(name, 1.0)
        return weight.flatten().sqrt().to(accumulator(self.dtype)) if isinstance(weight, Tensor) else weight**0.5

    def _by_autograd(self, x: Batch) -> dict[str, Tensor]:
        wanted = list(self.parameters.values())
        rows = []
        for i in tqdm(range(size(x)), "inputs", delay=2, leave=False):
            outputs = call(self.model, take(x, slice(i, i + 1)))[0]
            none = (None,) * len(wanted)  # outputs that depend on no parameter
            grads = [torch.autograd.grad(o, wanted, retain_graph=True, allow_unused=True) if o.requires_grad else none
                     for o in outputs]  # fmt: skip
            rows.append([[torch.zeros_like(p) if g is None else g for p, g in zip(wanted, row, strict=True)]
                         for row in grads])  # fmt: skip
        return {
            name: torch.stack([torch.stack([output[k] for output in row]) for row in rows])
            for k, name in enumerate(self.parameters)
        }

    def check(self, x: Batch, block: dict[str, Tensor]) -> None:
        _, cotangent, wanted = gradient(self.model, take(x, ends(size(x))), self.parameters)
        v = cotangent.to(accumulator(self.dtype))
        weighted = {name: (self._root(name) * g.to(v.dtype).flatten()).reshape(g.shape) for name, g in wanted.items()}
        wanted = {name: g.to(wanted[name]) for name, g in weighted.items()}
        try:
            self.refuse(self._combined(block, v), wanted)
        except ValueError as error:  # parameters that the model holds elsewhere too, such as in a list
            logger.info("jacobian: one input at a time by autograd; %s", error)
            block.update(self._scaled(self._by_autograd(x)))
            self.refuse(self._combined(block, v), wanted)

    @staticmethod
    @uncast()
    def _combined(block: dict[str, Tensor], v: Tensor) -> dict[str, Tensor]:
        """sum_i v_i J_i over the ends of the batch."""
        return {name: torch.einsum("nc,ncp->p", v, j[ends(len(j))]) for name, j in block.items()}

    def tile(self, one: dict[str, Tensor], other: dict[str, Tensor], output: str) -> Tensor:
        return self._sum("ncp,mdp->ncmd" if output == "full" else "ncp,mcp->nm", one, other)

    def diagonal(self, one: dict[str, Tensor], other: dict[str, Tensor]) -> Tensor:
        return self._sum("ncp,ndp->ncd", one, other)

    @uncast()
    def _sum(self, pattern: str, one: dict[str, Tensor], other: dict[str, Tensor]) -> Tensor:
        first, *rest = self.parameters
        total = torch.einsum(pattern, one[first], other[first])
        for name in rest:
            total += torch.einsum(pattern, one[name], other[name])
        return total


class NoProducts(ValueError):
    """Products with vectors do not go through a model, or give other gradients; Jacobians may."""


class VectorProducts(Method):
    """Columns of the kernel, K v = J1 (D (J2^T v)): one vjp and one jvp each, as many at once as COLUMNS allows."""

    def prepare(self, x: Batch) -> Batch:
        return x

    def pullback(self, x: Batch, cotangents: Tensor) -> dict[str, Tensor]:
        """D J^T v for v of shape (n, C)."""
        with sdpa_kernel(SDPBackend.MATH):
            (found,) = vjp(lambda v: call(self.model, x, v), self.values)[1](cotangents)
        return {name: self.weights.get(name, 1.0) * t for name, t in found.items()}

    def push(self, x: Batch, direction: dict[str, Tensor]) -> Tensor:
        """J p, of shape (n, C), for a change p of the parameters."""
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no forward derivative
            return jvp(lambda v: call(self.model, x, v), (self.values,), (direction,))[1].detach()

    def check(self, x: Batch, block: Batch) -> None:
        pair = take(x, ends(size(x)))
        _, cotangent, wanted = gradient(self.model, pair, self.parameters)
        plain = replace(self, weights={})
        norm = sum(g.double().square().sum().item() for g in wanted.values())
        try:
            self.refuse(plain.pullback(pair, cotangent), wanted)
            pushed = (plain.push(pair, wanted).double() * cotangent.double()).sum().item()
        except (RuntimeError, ValueError) as error:
            raise NoProducts(
                f"method 'vector_products' needs a model that torch.func differentiates; {error}"
            ) from error
        if not abs(pushed - norm) <= 10 * tolerance(self.dtype) * norm:
            raise NoProducts(
                f"model must have a forward derivative; along its gradient it is {pushed:.3g}, not {norm:.3g}"
            )

    def tile(self, one: Batch, other: Batch, output: str) -> Tensor:
        with torch.no_grad():
            outputs = call(self.model, take(other, slice(0, 1)))
        n1, n2, C = size(one), size(other), outputs.shape[1]
        basis = torch.eye(n2 * C, dtype=outputs.dtype, device=outputs.device)
        count = max(1, min(32, COLUMNS // sum(p.numel() for p in self.parameters.values())))
        chunks = tqdm(basis.reshape(n2 * C, n2, C).split(count), "columns", delay=2, leave=False)

        def column(cotangents: Tensor) -> Tensor:
            return self.push(one, self.pullback(other, cotangents))

        columns = torch.cat([(vmap(column)(c) if len(c) > 1 else column(c[0])[None]).detach() for c in chunks])
        kernel = columns.reshape(n2, C, n1, C).permute(2, 3, 0, 1)
        return kernel.contiguous() if output == "full" else torch.einsum("ncmc->nm", kernel)

    def diagonal(self, one: Batch, other: Batch) -> Tensor:
        pairs = ((take(one, slice(i, i + 1)), take(other, slice(i, i + 1))) for i in range(size(one)))
        return torch.stack([self.tile(first, second, "full")[0, :, 0] for first, second in pairs])


METHODS: dict[str, type[Method]] = {
    "layerwise": Layerwise,
    "jacobian": Jacobian,
    "vector_products": VectorProducts,
}
