"""Fisher information through the tangent kernel: no parameter-sized matrix is ever formed.

The empirical Fisher I = (1/N) sum_i grad L_i grad L_i^T over N labelled inputs has the gradient of the loss
grad L_i = J(x_i)^T d_i with d_i = dL/dF. So tr I = (1/N) sum_i d_i^T K(x_i, x_i) d_i, and the nonzero eigenvalues of
I are those of the N x N Gram matrix (1/N) d_i^T K(x_i, x_j) d_j: at every width, with no limit taken.

Statement ``thm-fisher``. Source: Jacot et al. (2018) for K; Kunstner et al. (2019) on empirical against true Fisher.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import grad

from .batches import (
    Batch,
    call,
    check_batch,
    check_choice,
    check_same_kind,
    check_tensor,
    collect,
    map_inputs,
    restored,
    size,
    take,
    tensors,
)
from .kernels import Inputs, Selected, Selection, ntk
from .layers import layers_with_adapters
from .spectra import nonzero

Layers: TypeAlias = "str | Sequence[str] | None"

LOSSES = ("cross_entropy", "squared_error")


def loss_cotangents(outputs: Tensor, y: Tensor, loss: str = "cross_entropy") -> Tensor:
    """d = dL/dF for each input: softmax(F) - onehot(y) for "cross_entropy", F - y for "squared_error".

    Parameters
    ----------
    outputs : Tensor (n, C)
    y : Tensor
        (n,) int64 class indices for "cross_entropy"; (n, C) in the dtype of `outputs` for "squared_error", which is
        half the squared distance between F and y.

    Returns
    -------
    Tensor (n, C)

    Raises
    ------
    TypeError, ValueError
        On an unknown loss, or labels of the wrong shape, dtype or range.
    """
    outputs = check_tensor("outputs", outputs, ndim=2)
    check_labels(y, len(outputs), outputs[0], loss)
    return _cotangents(outputs, y, loss)


def _cotangents(outputs: Tensor, y: Tensor, loss: str) -> Tensor:
    if loss == "squared_error":
        return outputs - y
    hot = y[:, None] == torch.arange(outputs.shape[1], device=y.device)
    return torch.softmax(outputs, dim=1) - hot.to(outputs.dtype)


def check_labels(y: object, n: int, output: Tensor, loss: str) -> None:
    """Raise TypeError or ValueError unless y holds n labels for outputs like the one given, of shape (C,)."""
    check_choice("loss", loss, LOSSES)
    C = len(output)
    if loss == "squared_error":
        y = check_tensor("y", y, ndim=2)
        check_same_kind("y", y, "outputs", output)
        if y.shape != (n, C):
            raise ValueError(f"y must have shape {(n, C)} for 'squared_error'; got {tuple(y.shape)}")
        return
    y = check_tensor("y", y, ndim=1, floating=False)
    if y.dtype != torch.int64:
        raise TypeError(f"y must be int64 class indices for 'cross_entropy'; got dtype {y.dtype}")
    if len(y) != n or bool(((y < 0) | (y >= C)).any()):
        raise ValueError(f"y must hold {n} class indices from 0 to {C - 1}; got {len(y)} from {y.min()} to {y.max()}")
    if C == 1:
        raise ValueError("loss 'cross_entropy' needs two outputs or more; with one output its gradient is always 0")


class Contracted(nn.Module):
    """A model whose only output is d . F(x): its Jacobian J^T d is the gradient of the loss, its kernel is d^T K d'.

    The cotangents d = dL/dF are made from the outputs of the same pass, as constants.
    """

    def __init__(self, model: nn.Module, loss: str, select: Selection | None = None) -> None:
        super().__init__()
        self.model = model if select is None else Selected(model, select)
        self.loss = loss
        self.train(model.training)

    def forward(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        x = {name.removeprefix("input "): t for name, t in inputs.items()}  # no name of a tensor is "labels" then
        outputs = call(self.model, x.get("", x))
        return (_cotangents(outputs.detach(), labels, self.loss) * outputs).sum(1, keepdim=True)

    def kernel(self, x: Batch, y: Tensor, output: str, layers: Layers, method: str, memory: int | str | None) -> Tensor:
        """The kernel of the contracted outputs; `layers` are those of the model inside."""
        if layers is not None:
            inner = self.model.model if isinstance(self.model, Selected) else self.model
            prefix = "model.model" if isinstance(self.model, Selected) else "model"
            named = layers_with_adapters(inner, layers)
            layers = "|".join(re.escape(f"{prefix}.{name}".rstrip(".")) for name in named)
        floating = [p.dtype for p in self.parameters() if p.is_floating_point()]
        cast = y.is_floating_point() and y.dtype not in floating  # as outputs under autocast are
        labelled = {
            "labels": y.to(floating[0]) if cast else y,
            **{f"input {name}": t for name, t in tensors(x).items()},
        }
        return ntk(self, labelled, layers=layers, method=method, output=output, max_memory=memory)


def loss_gradients(model: nn.Module, x: Batch, y: Tensor, loss: str = "cross_entropy") -> Tensor:
    """Gradient of the loss of each input by the trainable parameters of `model`, by torch.func and without a kernel.

    The second route to all that this module computes; memory n times the number of parameters.

    Parameters
    ----------
    model : nn.Module
    x : Tensor (n, ...) or mapping of Tensor
    y : Tensor
        Labels as in `loss_cotangents`.
    loss : {"cross_entropy", "squared_error"}

    Returns
    -------
    Tensor (n, P)

    Raises
    ------
    TypeError, ValueError
        On an unknown loss, bad labels or a batch that does not fit the model.
    """
    with torch.no_grad(), restored(model):
        loss_cotangents(call(model, x), y, loss)  # checks the labels
    values = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def single(values: dict[str, Tensor], one: Batch, label: Tensor) -> Tensor:
        outputs = call(model, one, values)
        if loss == "cross_entropy":
            return nn.functional.cross_entropy(outputs, label[None])
        return 0.5 * (outputs[0] - label).square().sum()

    gradients = map_inputs(lambda one, label: grad(single)(values, one, label), x, y)
    return torch.cat([g.flatten(1) for g in gradients.values()], dim=1).detach()


def loss_gram(
    model: nn.Module,
    x: Inputs,
    y: Tensor,
    loss: str = "cross_entropy",
    *,
    layers: Layers = None,
    method: str = "auto",
    select: Selection | None = None,
    max_memory: int | str | None = None,
) -> Tensor:
    """Inner products of loss gradients, d_i^T K(x_i, x_j) d_j, between all pairs of labelled inputs.

    Parameters
    ----------
    model, layers, method, select, max_memory
        As in `lorantk.kernels.ntk`.
    x : Tensor (n, ...) or mapping of Tensor
    y : Tensor
        Labels as in `loss_cotangents`.
    loss : {"cross_entropy", "squared_error"}

    Returns
    -------
    Tensor (n, n), symmetric positive semi-definite

    Raises
    ------
    TypeError, ValueError
        As `lorantk.kernels.ntk` and `loss_cotangents`.

    Notes
    -----
    Statements ``eq-3``, ``eq-4``, ``thm-fisher``.
    """
    contracted, x = _contracted(model, x, y, loss, select)
    gram = contracted.kernel(x, y, "trace", layers, method, max_memory)
    return (gram + gram.T) / 2


def _contracted(
    model: nn.Module, x: Inputs, y: Tensor, loss: str, select: Selection | None
) -> tuple[Contracted, Batch]:
    """The model contracted with its loss cotangents, and the batch as one; all arguments checked."""
    check_choice("loss", loss, LOSSES)
    batch = collect(x)
    check_batch("x", batch, model)
    contracted = Contracted(model, loss, select)
    with torch.no_grad(), restored(model):
        check_labels(y, size(batch), call(contracted.model, take(batch, [0]))[0], loss)
    return contracted, batch


def fisher_spectrum(
    model: nn.Module,
    x: Inputs,
    y: Tensor,
    loss: str = "cross_entropy",
    *,
    layers: Layers = None,
    method: str = "auto",
    select: Selection | None = None,
    max_memory: int | str | None = None,
) -> Tensor:
    """Nonzero eigenvalues of the empirical Fisher information (1/N) sum_i grad L_i grad L_i^T, descending.

    Parameters and errors as in `loss_gram`.

    Returns
    -------
    Tensor (k,), k <= N
        Eigenvalues above N eps times the largest, in squared units of the loss gradient.

    Notes
    -----
    Statement ``thm-fisher``, spectrum form.
    """
    gram = loss_gram(model, x, y, loss, layers=layers, method=method, select=select, max_memory=max_memory)
    return _spectrum(gram / len(gram))


def _spectrum(matrix: Tensor) -> Tensor:
    """Nonzero eigenvalues, descending: computed in float64, cut at the precision of the entries, and in their dtype."""
    values = torch.linalg.eigvalsh(matrix.double())
    return nonzero(values, len(values) * torch.finfo(matrix.dtype).eps).flip(0).to(matrix.dtype)


def fisher_trace(
    model: nn.Module,
    x: Inputs,
    y: Tensor,
    loss: str = "cross_entropy",
    *,
    layers: Layers = None,
    method: str = "auto",
    select: Selection | None = None,
    max_memory: int | str | None = None,
) -> Tensor:
    """Trace of the empirical Fisher information: the mean over inputs of d^T K(x, x) d, a scalar tensor.

    Parameters and errors as in `loss_gram`.

    Notes
    -----
    Statement ``thm-fisher``: what is printed is a scalar, hence the trace.
    """
    contracted, x = _contracted(model, x, y, loss, select)
    return contracted.kernel(x, y, "diagonal", layers, method, max_memory).mean()


def true_fisher_spectrum(
    model: nn.Module,
    x: Inputs,
    loss: str = "cross_entropy",
    *,
    layers: Layers = None,
    method: str = "auto",
    select: Selection | None = None,
    max_memory: int | str | None = None,
) -> Tensor:
    """Nonzero eigenvalues of the true Fisher information, whose labels are drawn from the model itself, descending.

    The average of d d^T over such labels is the matrix S = diag(p) - p p^T for "cross_entropy" (p the softmax) and
    the identity for "squared_error" (unit Gaussian noise). So the nonzero eigenvalues of (1/N) sum_i J_i^T S_i J_i
    are those of (1/N) S_i^(1/2) K(x_i, x_j) S_j^(1/2), exactly and without sampling.

    Parameters and errors as in `loss_gram`, but no labels.

    Returns
    -------
    Tensor (k,), k <= N C

    Notes
    -----
    Statement ``thm-fisher``. Source: Kunstner et al. (2019) on why the two differ.
    """
    check_choice("loss", loss, LOSSES)
    batch: Batch = collect(x)
    kernel = ntk(model, batch, layers=layers, method=method, select=select, max_memory=max_memory)
    n, C = kernel.shape[:2]
    if loss == "cross_entropy":
        with torch.no_grad():
            p = torch.softmax(call(model if select is None else Selected(model, select), batch), dim=1)
        values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
        root = vectors * values.clamp(min=0.0).sqrt()[:, None, :]  # root root^T = S
        kernel = torch.einsum("nca,ncmd,mdb->namb", root, kernel, root)
    matrix = kernel.reshape(n * C, n * C) / n
    return _spectrum((matrix + matrix.T) / 2)
