"""Activations and cotangents of every linear layer, from one forward and one backward pass per output.

A linear layer y = p W a + b (p the NTK prefactor, 1 elsewhere) has the gradient dF_c/dW = p g_c a^T with the
cotangent g_c = dF_c/dy. So the layer's share of the tangent kernel is a Gram matrix of activations times a Gram
matrix of cotangents, and no gradient of the size of W is ever stored. Where a layer is applied at several
positions (tokens of a sequence, repeated calls), gradients add over positions t: dF_c/dW = p sum_t g_ct a_t^T.

Statements ``eq-2``, ``lem-lora-ntk``. Source: Jacot et al. (2018), appendix; Novak et al. (2022) for the contraction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .validation import check_choice, check_same_kind, check_tensor


def linear_layers(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, nn.Linear]:
    """Linear layers of `model` by name, in order: all of them, or exactly those in `names`.

    Raises
    ------
    TypeError
        If `model` is not a module or `names` is a single string.
    ValueError
        If there are none, or a name is unknown or names a layer that is not linear.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if isinstance(names, str):
        raise TypeError(f"layers must be a sequence of names, such as ({names!r},); got a single string")
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
    }
    if not found:
        raise ValueError("model has no nn.Linear layer, so there is none to adapt or to read factors from")
    if names is None:
        return found
    unknown = [name for name in names if name not in found]
    if unknown or not names:
        modules = dict(model.named_modules())
        kinds = [f"{n!r} ({type(modules[n]).__name__})" if n in modules else f"{n!r} (no such layer)" for n in unknown]
        raise ValueError(f"layers must name nn.Linear layers among {list(found)}; got {', '.join(kinds) or 'none'}")
    return {name: found[name] for name in found if name in names}


def prefactor(layer: nn.Linear) -> float:
    """The factor p in y = p W a: sqrt(weight_variance / fan_in) for `NTKLinear`, 1 for a plain ``nn.Linear``."""
    return float(getattr(layer, "prefactor", 1.0))


def check_deterministic(model: nn.Module) -> None:
    """Raise ValueError if `model` holds dropout or batch norm in training mode: it has no kernel per input then."""
    for name, module in model.named_modules():
        random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        coupled = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if module.training and (random or coupled):
            raise ValueError(f"model must be deterministic, input by input: {name!r} is a {type(module).__name__} "
                             "in training mode; call model.eval() first")  # fmt: skip


@dataclass(frozen=True)
class LayerFactors:
    """Activations a and cotangents g of the linear layers of one model on one batch.

    Attributes
    ----------
    outputs : Tensor (n, C)
        The model's outputs F.
    activations : dict of Tensor (n, T, fan_in)
        Input of each layer times its prefactor, over T positions.
    cotangents : dict of Tensor (n, C, T, fan_out)
        dF_c / dy at each position.

    Notes
    -----
    Statement ``lem-lora-ntk``: every rank, variance, seed and layer subset is a cheap Gram matrix of these factors.
    """

    outputs: Tensor
    activations: dict[str, Tensor]
    cotangents: dict[str, Tensor]

    @classmethod
    def from_model(cls, model: nn.Module, x: Tensor, layers: Sequence[str] | None = None) -> LayerFactors:
        """Run `model` on `x` (n, ...) once forward and once backward per output, for the named layers (or all).

        Raises
        ------
        TypeError, ValueError
            On a bad batch, outputs that are not (n, C), an unknown layer, or a layer that the model never calls.
        """
        check_tensor("x", x, floating=False)
        check_deterministic(model)
        modules = linear_layers(model, layers)
        inputs: dict[str, list[Tensor]] = {name: [] for name in modules}
        probes: dict[str, list[Tensor]] = {name: [] for name in modules}

        def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
            def hook(_: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
                probe = torch.zeros_like(y, requires_grad=True)  # dF/dprobe is dF/dy, whether or not W is frozen
                inputs[name].append(args[0].detach())
                probes[name].append(probe)
                return y + probe

            return hook

        handles = [module.register_forward_hook(record(name)) for name, module in modules.items()]
        try:
            with torch.enable_grad():
                outputs = check_outputs(model(x), len(x))
        finally:
            for handle in handles:
                handle.remove()
        never = [name for name in modules if not probes[name]]
        if never:
            raise ValueError(f"layers must be called by the model's forward pass; never called: {never}")

        flat = [probe for name in modules for probe in probes[name]]
        columns = range(outputs.shape[1])
        grads = [torch.autograd.grad(outputs[:, c].sum(), flat, retain_graph=True) for c in columns]
        per_probe = iter([torch.stack(g, dim=1) for g in zip(*grads, strict=True)])
        cotangents = {name: _positions([next(per_probe) for _ in probes[name]], 2) for name in modules}
        activations = {name: prefactor(m) * _positions(inputs[name], 1) for name, m in modules.items()}
        return cls(outputs.detach(), activations, cotangents)

    def weight_gram(self, other: LayerFactors, name: str, output: str = "full") -> Tensor:
        """Share of the weight of layer `name` in the kernel.

        Returns
        -------
        Tensor (n1, C, n2, C), or (n1, n2) summed over outputs for ``output="trace"``
        """
        pair = (self.activations[name], other.activations[name])
        return _contract([pair], self.cotangents[name], other.cotangents[name], output)[0]

    def adapter_grams(self, other: LayerFactors, name: str, matrices: Sequence[Tensor], output: str = "full") -> Tensor:
        """Share of B in W + B A at B = 0, for each A (rank, fan_in) in `matrices`; scaling belongs into A.

        Returns
        -------
        Tensor (len(matrices), n1, C, n2, C), or (len(matrices), n1, n2) for ``output="trace"``
        """
        pairs = [(self.activations[name] @ A.T, other.activations[name] @ A.T) for A in matrices]
        return _contract(pairs, self.cotangents[name], other.cotangents[name], output)

    def bias_gram(self, other: LayerFactors, name: str, output: str = "full") -> Tensor:
        """Share of the bias of layer `name`: as `weight_gram` with the constant activation 1."""
        g1, g2 = self.cotangents[name], other.cotangents[name]
        ones = (g1.new_ones(len(g1), g1.shape[2], 1), g2.new_ones(len(g2), g2.shape[2], 1))
        return _contract([ones], g1, g2, output)[0]


def check_outputs(outputs: Tensor, n: int) -> Tensor:
    """Return the model's outputs if they have shape (n, C); raise ValueError otherwise."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != n:
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"model must map {n} inputs to a tensor of shape ({n}, C); got {given}")
    return outputs


def check_inputs(model: nn.Module, x1: Tensor, x2: Tensor | None) -> Tensor:
    """Check both batches against each other and against the model; return x2, or x1 where x2 is None."""
    check_tensor("x1", x1, floating=False)
    if x1.is_floating_point():
        check_same_kind("x1", x1, "the model", next(model.parameters()))
    if x2 is None:
        return x1
    check_tensor("x2", x2, floating=False)
    check_same_kind("x2", x2, "x1", x1)
    if x2.shape[1:] != x1.shape[1:]:
        raise ValueError(f"x2 must match x1 past the first axis, {tuple(x1.shape[1:])}; got {tuple(x2.shape[1:])}")
    return x2


def check_output_name(output: str) -> None:
    """Raise ValueError unless `output` is "full" or "trace"."""
    check_choice("output", output, ("full", "trace"))


def _positions(tensors: list[Tensor], lead: int) -> Tensor:
    """Join calls and positions into one axis: list of (*lead, ..., width) to (*lead, T, width)."""
    return torch.cat([t.reshape(*t.shape[:lead], -1, t.shape[-1]) for t in tensors], dim=lead)


def _contract(pairs: list[tuple[Tensor, Tensor]], g1: Tensor, g2: Tensor, output: str) -> Tensor:
    """sum_{t,u} (a1_nt . a2_mu) (g1_nct . g2_mdu) for each pair (a1, a2), stacked, without forming any gradient.

    With one position this is an outer product of two Gram matrices; with more, one input at a time.
    """
    if g1.shape[2] == g2.shape[2] == 1:
        activation_grams = torch.stack([a1[:, 0] @ a2[:, 0].T for a1, a2 in pairs])
        if output == "trace":
            return activation_grams * (g1.flatten(1) @ g2.flatten(1).T)
        cotangent_gram = torch.einsum("nco,mdo->ncmd", g1[:, :, 0], g2[:, :, 0])
        return activation_grams[:, :, None, :, None] * cotangent_gram
    pattern = "tmu,ctmcu->m" if output == "trace" else "tmu,ctmdu->cmd"
    rows = []
    for n, g in enumerate(g1):
        cotangent_gram = torch.einsum("cto,mduo->ctmdu", g, g2)
        position_grams = [torch.einsum("ti,mui->tmu", a1[n], a2) for a1, a2 in pairs]
        rows.append(torch.stack([torch.einsum(pattern, gram, cotangent_gram) for gram in position_grams]))
    return torch.stack(rows, dim=1)
