"""One layer's adapter, as a value, as a module, and set into a model: y = (W + s B A) a with W frozen.

Statement ``eq-1``. Source: Hu et al. (2022). In NTK parametrisation the adapter shares the layer's prefactor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .layers import adaptable_layers, fans, prefactor
from .validation import check_real, check_same_kind, check_tensor


class Adapter(NamedTuple):
    """One layer's adapter: A of shape (rank, fan_in), B of shape (fan_out, rank) or None for 0, scaling s."""

    A: Tensor
    B: Tensor | None = None
    scaling: float = 1.0


class LoRALayer(nn.Module):
    """A frozen layer with its adapter: base(a) + up(s * prefactor * down(a)).

    Both halves are layers of the same family as `base`: for a convolution, `down` has its patches and `up` is 1 x 1;
    for an embedding, `down` looks up columns of A.
    """

    def __init__(self, base: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        assert isinstance(base.weight, Tensor)
        rank, (fan_in, fan_out) = len(adapter.A), fans(base)
        A, B = adapter.A.detach(), base.weight.new_zeros(fan_out, rank) if adapter.B is None else adapter.B.detach()
        self.base = base
        self.scaling = adapter.scaling * prefactor(base)
        with torch.device("meta"):  # torch's own initialisation would draw from the global random state
            self.down: Any = nn.Linear(fan_in, rank, bias=False)
            self.up: Any = nn.Linear(rank, fan_out, bias=False)
            if isinstance(base, nn.Embedding):
                self.down = nn.Embedding(fan_in, rank, padding_idx=base.padding_idx)
                A = A.T
            elif isinstance(base, (nn.Conv1d, nn.Conv2d)):
                family: Any = type(base)
                geometry = {key: getattr(base, key) for key in ("stride", "padding", "dilation", "padding_mode")}
                self.down = family(base.in_channels, rank, base.kernel_size, bias=False, **geometry)
                self.up = family(rank, fan_out, 1, bias=False)
                A, B = A.reshape(self.down.weight.shape), B.reshape(self.up.weight.shape)
        self.down.weight = nn.Parameter(A.clone(memory_format=torch.contiguous_format))
        self.up.weight = nn.Parameter(B.clone(memory_format=torch.contiguous_format))

    def forward(self, a: Tensor) -> Tensor:
        return self.base(a) + self.up(self.scaling * self.down(a))


def attach(model: nn.Module, adapters: Mapping[str, Tensor | Adapter]) -> nn.Module:
    """Copy of `model` in which the named linear layers carry trainable adapters and all else is frozen.

    Parameters
    ----------
    model : nn.Module
        Left as it is; the copy shares the storage of its (frozen) parameters.
    adapters : mapping of layer name to A of shape (rank, fan_in), or to `Adapter`
        A plain A means B = 0 and scaling 1.

    Raises
    ------
    TypeError, ValueError
        On an unknown layer, a layer that cannot be adapted, or an A or B of the wrong shape, dtype or device.

    Notes
    -----
    Statement ``eq-1``. Source: Hu et al. (2022), section 4.1.
    """
    if not adapters:
        raise ValueError("adapters must name at least one layer; got an empty mapping")
    if hasattr(model, "peft_config"):
        raise ValueError(
            "model is a PEFT model, whose adapters are there already: leave lora and adapters out, or give the model "
            "as it was before get_peft_model"
        )
    modules = adaptable_layers(model, list(adapters))
    frozen = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    adapted = copy.deepcopy(model, memo=dict(frozen))
    for name, entry in adapters.items():
        adapter = entry if isinstance(entry, Adapter) else Adapter(entry)
        if name not in modules:
            raise ValueError(f"adapters must be keyed by whole layer names; got {name!r}")
        _check_adapter(name, adapter, modules[name])
        base = adapted.get_submodule(name)
        if not name:
            return LoRALayer(base, adapter)
        adapted.set_submodule(name, LoRALayer(base, adapter))
    return adapted


def _check_adapter(name: str, adapter: Adapter, layer: nn.Module) -> None:
    """Shapes, dtype and device of one adapter against its layer."""
    assert isinstance(layer.weight, Tensor)
    width, height = fans(layer)
    check_tensor(f"adapters[{name!r}].A", adapter.A, ndim=2)
    check_same_kind(f"adapters[{name!r}].A", adapter.A, "the layer's weight", layer.weight)
    check_real(f"adapters[{name!r}].scaling", adapter.scaling, minimum=0.0, exclusive=True)
    rank, fan_in = adapter.A.shape
    if fan_in != width:
        raise ValueError(f"adapters[{name!r}].A must have shape (rank, {width}); got {(rank, fan_in)}")
    if rank > fan_in:
        raise ValueError(f"adapters[{name!r}].A has rank {rank}, above the fan-in {fan_in} of its layer")
    if adapter.B is not None:
        check_tensor(f"adapters[{name!r}].B", adapter.B, ndim=2)
        check_same_kind(f"adapters[{name!r}].B", adapter.B, "A", adapter.A)
        if tuple(adapter.B.shape) != (height, rank):
            raise ValueError(f"adapters[{name!r}].B must have shape {(height, rank)}; got {tuple(adapter.B.shape)}")
