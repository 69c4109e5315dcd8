"""Low-rank adapters: y = W a becomes y = (W + s B A) a with W frozen, A random and B = 0 at the start.

Statement ``eq-1``. Source: Hu et al. (2022), "LoRA: Low-Rank Adaptation of Large Language Models". In NTK
parametrisation the adapter shares the layer's prefactor: y = sqrt(weight_variance / fan_in) (W + s B A) a.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .batches import check_integer, check_real, check_same_kind, check_seed, check_tensor
from .layers import adaptable_layers, fans, prefactor


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

    def __getattr__(self, name: str) -> Any:
        """What the model looks up in its layer, such as ``weight.dtype`` in T5, is found in the frozen one."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def get_base_layer(self) -> nn.Module:
        """The frozen layer below, under the name that PEFT's layers use too."""
        return self.base

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
            "model is a PEFT model, whose adapters are there already: give it to lorantk.ntk as it is, or attach "
            "to the model before get_peft_model"
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


@dataclass(frozen=True)
class LoRA:
    """How adapters are drawn: rank, variance of the entries of A, scaling, and which layers get one.

    Parameters
    ----------
    rank : int
        r, from 1 to the fan-in of every adapted layer.
    variance : float or str
        Of the entries of A, and how they are drawn, n being the fan-in:

        - a number, ``"k/n"`` such as ``"0.5/n"``, or ``"1/r"``: Gaussian entries of this variance;
        - ``"peft"``: uniform on (-1/sqrt(n), 1/sqrt(n)), variance 1/(3 n); for an embedding A = 0 and B ~ N(0, 1);
        - ``"gaussian"``: Gaussian with standard deviation 1/r, as PEFT's ``init_lora_weights="gaussian"``;
        - ``"orthonormal"``: orthonormal rows, uniformly distributed; variance 1/n.
    scaling : float
        s in W + s B A; PEFT takes alpha/r, or alpha/sqrt(r) for rank-stabilised LoRA.
    layers : str or sequence of str, optional
        Which layers are adapted: names, a regular expression or "all-linear", as in `lorantk.layers.adaptable_layers`;
        None for all linear and convolutional ones.

    Raises
    ------
    TypeError, ValueError
        On a rank below 1, a negative or unreadable variance, a scaling that is not above 0.

    Notes
    -----
    Statement ``eq-1``. Source: Hu et al. (2022); Kalajdzievski (2023) for alpha/sqrt(r).
    """

    rank: int
    variance: float | str = "peft"
    scaling: float = 1.0
    layers: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_integer("rank", self.rank, 1)
        check_real("scaling", self.scaling, minimum=0.0, exclusive=True)
        self.entry_variance(1)
        if self.layers is not None and not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))

    def entry_variance(self, fan_in: int) -> float:
        """Variance sigma_a^2 of one entry of A in a layer of this fan-in (dimensionless)."""
        if not isinstance(self.variance, str):
            check_real("variance", self.variance, minimum=0.0)
            return float(self.variance)
        named = {
            "peft": 1 / (3 * fan_in),
            "gaussian": 1 / self.rank**2,
            "orthonormal": 1 / fan_in,
            "1/r": 1 / self.rank,
        }
        if self.variance in named:
            return named[self.variance]
        match = re.fullmatch(r"\s*([^/]+)/\s*n\s*", self.variance)
        try:
            value = float(match[1]) if match else math.nan
        except ValueError:
            value = math.nan
        if match is None or math.isnan(value):
            raise ValueError(
                f"variance must be a number, 'k/n' such as '0.5/n', or one of {', '.join(map(repr, named))}; "
                f"got {self.variance!r}"
            )
        check_real("variance", value, minimum=0.0)
        return value / fan_in

    @property
    def law(self) -> str:
        """How the entries of A are distributed, "uniform", "orthonormal" or "gaussian"; beside it their variance."""
        return {"peft": "uniform", "orthonormal": "orthonormal"}.get(str(self.variance), "gaussian")

    def sample(self, model: nn.Module, seed: int) -> dict[str, Tensor]:
        """Draw A of shape (rank, fan_in) for each adapted layer, in the layer's dtype and on its device.

        The draw of a layer depends on (seed, layer name) only: adapting fewer layers leaves the others' A as is.

        Raises
        ------
        ValueError
            If a layer cannot be adapted or its fan-in is below the rank.
        """
        return self.sample_nested(model, seed, self.rank)

    def sample_nested(self, model: nn.Module, seed: int, rank: int) -> dict[str, Tensor]:
        """The first rows of a draw at `rank`: one common draw for all ranks up to it."""
        check_seed(seed)
        matrices = {}
        for name, layer in adaptable_layers(model, self.layers).items():
            fan_in = fans(layer)[0]
            if rank > fan_in:
                raise ValueError(f"rank must be at most the fan-in {fan_in} of layer {name!r}; got {rank}")
            assert isinstance(layer.weight, Tensor)
            A = self._draw(rank, fan_in, _generator(seed, name))
            if self.variance == "peft" and isinstance(layer, nn.Embedding):
                A = torch.zeros_like(A)
            matrices[name] = A[: self.rank].to(dtype=layer.weight.dtype, device=layer.weight.device)
        return matrices

    def _draw(self, rank: int, fan_in: int, generator: torch.Generator) -> Tensor:
        """A (rank, fan_in) in float64."""
        deviation = math.sqrt(self.entry_variance(fan_in))
        if self.law == "uniform":
            uniform = torch.rand(rank, fan_in, generator=generator, dtype=torch.float64)
            return uniform.mul_(2.0).sub_(1.0).mul_(math.sqrt(3.0) * deviation)
        gaussian = torch.randn(rank, fan_in, generator=generator, dtype=torch.float64)
        if self.law == "gaussian":
            return gaussian.mul_(deviation)
        Q, R = torch.linalg.qr(gaussian.T)
        return (Q * R.diagonal().sign()).T  # with these signs Q is uniformly distributed

    def attach(self, model: nn.Module, seed: int = 0) -> nn.Module:
        """Copy of `model` with freshly drawn adapters, B = 0 but for PEFT's embeddings: see `lorantk.lora.attach`."""
        adapters = {}
        for name, A in self.sample(model, seed).items():
            layer, B = model.get_submodule(name), None
            if self.variance == "peft" and isinstance(layer, nn.Embedding):
                generator = _generator(seed, f"{name}/B")
                B = torch.randn(layer.embedding_dim, self.rank, generator=generator, dtype=torch.float64).to(A)
            adapters[name] = Adapter(A, B, self.scaling)
        return attach(model, adapters)


def _generator(seed: int, name: str) -> torch.Generator:
    """A generator of its own for each seed and layer."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def read_peft(model: nn.Module | str | Path, adapter_name: str = "default") -> dict[str, Adapter]:
    """Adapters of a model made by ``peft.get_peft_model``, keyed by layer name of the model that was wrapped.

    Parameters
    ----------
    model : peft.PeftModel, or a saved one: str or Path
        With LoRA on linear, Conv1D, convolutional or embedding layers; or the folder that ``save_pretrained`` wrote, or
        a .safetensors file as `lorantk.adapter_files.read_adapter` takes it.
    adapter_name : str
        Which of its adapters to read; one with a name of its own is saved in a folder of this name.

    Raises
    ------
    TypeError, ValueError
        If the model is not a PeftModel, holds no such adapter, one that is merged or no plain LoRA, or one whose
        convolution is not that of its layer: PEFT leaves dilation and padding modes out.
    ImportError
        If the extra ``hf`` is not installed.

    Notes
    -----
    Statement ``eq-1``. A and B are the live parameters' values, detached; scaling is PEFT's (alpha/r or alpha/sqrt(r)).
    """
    if isinstance(model, (str, Path)):
        from .adapter_files import read_adapter

        saved = read_adapter(model if adapter_name == "default" else Path(model) / adapter_name)
        return {name: Adapter(*halves) for name, halves in saved.adapters.items()}
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ImportError("read_peft needs the extra 'hf': pip install 'lorantk[hf]'") from error
    if not isinstance(model, peft.PeftModel):
        raise TypeError(f"model must be a peft.PeftModel or the path of a saved one; got {type(model).__name__}")
    adapters = {}
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, peft.tuners.lora.LoraLayer) or adapter_name not in module.scaling:
            continue
        if module.use_dora.get(adapter_name) or module.merged:
            raise ValueError(f"model must hold plain, unmerged LoRA; layer {name!r} uses DoRA or is merged")
        if adapter_name in module.lora_embedding_A:
            A, B = module.lora_embedding_A[adapter_name], module.lora_embedding_B[adapter_name]
        else:
            A, B = (getattr(module, side)[adapter_name].weight for side in ("lora_A", "lora_B"))
            _check_geometry(name, module.get_base_layer(), module.lora_A[adapter_name])
        adapters[name] = Adapter(A.detach().flatten(1), B.detach().flatten(1), module.scaling[adapter_name])
    if not adapters:
        raise ValueError(f"model holds no LoRA adapter named {adapter_name!r}")
    return adapters


def _check_geometry(name: str, base: nn.Module, down: nn.Module) -> None:
    """Raise ValueError if a PEFT adapter on a convolution sees other patches than its layer does."""
    for key in ("stride", "padding", "dilation", "padding_mode"):
        if getattr(base, key, None) != getattr(down, key, None):
            raise ValueError(
                f"model must hold adapters that see what their layers see; in layer {name!r} {key} is "
                f"{getattr(base, key)!r}, but PEFT gave its adapter {getattr(down, key)!r}: call ntk on the PEFT model"
            )
