"""Full-batch gradient descent, the training that the tangent kernel describes.

Statements ``eq-2``, ``ntk-constant``.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lorantk.batches import Batch, call, check_integer, check_real, size
from lorantk.fisher import check_labels


def gradient_descent(
    model: nn.Module,
    x: Batch,
    y: Tensor,
    loss: str = "cross_entropy",
    *,
    learning_rate: float,
    steps: int = 1,
) -> nn.Module:
    """Copy of `model` after `steps` steps of gradient descent on the mean loss, over its trainable parameters.

    Parameters
    ----------
    model : nn.Module
        Left as it is.
    x : Tensor (n, ...) or mapping of Tensor
    y : Tensor
        Labels as in `lorantk.fisher.loss_cotangents`.
    loss : {"cross_entropy", "squared_error"}
    learning_rate : float
        Above 0.
    steps : int
        0 or more.

    Raises
    ------
    TypeError, ValueError
        On bad labels or hyperparameters, or if nothing is trainable.
    FloatingPointError
        If the outputs stop being finite: the learning rate is too large.
    """
    check_real("learning_rate", learning_rate, minimum=0.0, exclusive=True)
    check_integer("steps", steps, 0)
    trained = copy.deepcopy(model)
    parameters = [p for p in trained.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("model must have a trainable parameter (requires_grad=True)")
    for step in range(steps):
        outputs = call(trained, x)
        if not bool(torch.isfinite(outputs).all()):
            raise FloatingPointError(f"outputs are not finite at step {step}: lower learning_rate = {learning_rate}")
        if step == 0:
            check_labels(y, len(outputs), outputs[0], loss)
        entropy = loss == "cross_entropy"
        total = nn.functional.cross_entropy(outputs, y) if entropy else (outputs - y).square().sum() / (2 * size(x))
        gradients = torch.autograd.grad(total, parameters, materialize_grads=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=learning_rate)
    return trained
