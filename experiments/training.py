"""Full-batch gradient descent, the training that the tangent kernel describes.

Statements ``eq-2``, ``ntk-constant``.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lorantk.batches import Batch, call, check_integer, check_real, size
from lorantk.fisher import loss_cotangents


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
    optimizer = torch.optim.SGD(parameters, lr=learning_rate)
    for step in range(steps):
        optimizer.zero_grad()
        outputs = call(trained, x)
        if not bool(torch.isfinite(outputs).all()):
            raise FloatingPointError(f"outputs are not finite at step {step}: lower learning_rate = {learning_rate}")
        outputs.backward(loss_cotangents(outputs.detach(), y, loss) / size(x))
        optimizer.step()
    return trained
