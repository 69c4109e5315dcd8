"""Low-rank adapters: y = W a becomes y = (W + s B A) a with W frozen, A random and B = 0 at the start.

Statement ``eq-1``. Source: Hu et al. (2022), "LoRA: Low-Rank Adaptation of Large Language Models". In NTK
parametrisation the adapter shares the layer's prefactor: y = sqrt(weight_variance / fan_in) (W + s B A) a.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .layers import linear_layers, prefactor
from .validation import check_integer, check_real, check_same_kind, check_tensor


class Adapter(NamedTuple):
    """One layer's adapter: A of shape (rank, fan_in), B of shape (fan_out, rank) or None for 0, scaling s."""

    A: Tensor
    B: Tensor | None = None
    scaling: float = 1.0


class LoRALinear(nn.Module):
    """A frozen linear layer with its adapter: base(a) + up(down(s * prefactor * a))."""

    def __init__(self, base: nn.Linear, adapter: Adapter) -> None:
        super().__init__()
        rank, fan_in = adapter.A.shape
        self.base = base
        self.scaling = adapter.scaling * prefactor(base)
        with torch.device("meta"):  # torch's own initialisation would draw from the global random state
            self.down = nn.Linear(fan_in, rank, bias=False)
            self.up = nn.Linear(rank, base.out_features, bias=False)
        up = base.weight.new_zeros(base.out_features, rank) if adapter.B is None else adapter.B
        self.down.weight = nn.Parameter(adapter.A.detach().clone())
        self.up.weight = nn.Parameter(up.detach().clone())

    def forward(self, a: Tensor) -> Tensor:
        return self.base(a) + self.up(self.down(self.scaling * a))


@dataclass(frozen=True)
class LoRA:
    """How adapters are drawn: rank, variance of the entries of A, scaling, and which layers get one.

    Parameters
    ----------
    rank : int
        r, from 1 to the fan-in of every adapted layer.
    variance : float or str
        sigma_a^2 of the Gaussian entries of A; or ``"k/n"`` such as ``"0.5/n"``, n being the fan-in; or
        ``"peft"``: uniform on (-1/sqrt(n), 1/sqrt(n)), whose variance is 1/(3 n), as the PEFT library draws.
    scaling : float
        s in W + s B A; PEFT takes alpha/r, or alpha/sqrt(r) for rank-stabilised LoRA.
    layers : sequence of str, optional
        Names of the linear layers that are adapted; all of them when None.

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
    layers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_integer("rank", self.rank, 1)
        check_real("scaling", self.scaling, minimum=0.0, exclusive=True)
        self.entry_variance(1)
        if isinstance(self.layers, str):
            raise TypeError(f"layers must be a sequence of names, such as ({self.layers!r},); got a single string")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))

    def entry_variance(self, fan_in: int) -> float:
        """Variance sigma_a^2 of one entry of A in a layer of this fan-in (dimensionless)."""
        if self.variance == "peft":
            return 1.0 / (3.0 * fan_in)
        if isinstance(self.variance, str):
            numerator, slash, denominator = self.variance.partition("/")
            try:
                value = float(numerator)
            except ValueError:
                slash = ""
            if slash != "/" or denominator.strip() != "n":
                raise ValueError(f"variance must be a number, 'peft' or 'k/n' such as '0.5/n'; got {self.variance!r}")
            check_real("variance", value, minimum=0.0)
            return value / fan_in
        check_real("variance", self.variance, minimum=0.0)
        return float(self.variance)

    def sample(self, model: nn.Module, seed: int) -> dict[str, Tensor]:
        """Draw A of shape (rank, fan_in) for each adapted layer, in the layer's dtype and on its device.

        The draw of a layer depends on (seed, layer name) only: adapting fewer layers leaves the others' A as is.

        Raises
        ------
        ValueError
            If a layer cannot be adapted or its fan-in is below the rank.
        """
        check_integer("seed", seed, 0)
        matrices = {}
        for name, layer in linear_layers(model, self.layers).items():
            fan_in = layer.in_features
            if self.rank > fan_in:
                raise ValueError(f"rank must be at most the fan-in {fan_in} of layer {name!r}; got {self.rank}")
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            deviation = math.sqrt(self.entry_variance(fan_in))
            if self.variance == "peft":
                uniform = torch.rand(self.rank, fan_in, generator=generator, dtype=torch.float64)
                A = math.sqrt(3.0) * deviation * (2.0 * uniform - 1.0)
            else:
                A = deviation * torch.randn(self.rank, fan_in, generator=generator, dtype=torch.float64)
            matrices[name] = A.to(dtype=layer.weight.dtype, device=layer.weight.device)
        return matrices

    def attach(self, model: nn.Module, seed: int = 0) -> nn.Module:
        """Copy of `model` with freshly drawn adapters, B = 0, ready to be trained: see `attach`."""
        return attach(model, {name: Adapter(A, None, self.scaling) for name, A in self.sample(model, seed).items()})


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
    layers = linear_layers(model, list(adapters))
    frozen = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    adapted = copy.deepcopy(model, memo=dict(frozen))
    for name, entry in adapters.items():
        adapter = entry if isinstance(entry, Adapter) else Adapter(entry)
        _check_adapter(name, adapter, layers[name])
        base = adapted.get_submodule(name)
        assert isinstance(base, nn.Linear)
        if not name:
            return LoRALinear(base, adapter)
        adapted.set_submodule(name, LoRALinear(base, adapter))
    return adapted


def adapted(
    model: nn.Module,
    *,
    lora: LoRA | None = None,
    seed: int = 0,
    adapters: Mapping[str, Tensor | Adapter] | None = None,
    layers: Sequence[str] | None = None,
) -> nn.Module:
    """`model` with the adapters that a caller of `lorantk.ntk` means, or `model` itself if it names none.

    Given `adapters` win over drawing from `lora`; beside plain A, `lora` supplies the scaling. `layers` keeps the
    adapters of these layers only.

    Raises
    ------
    TypeError, ValueError
        As `attach`; also if `lora` stands beside an `Adapter` with its own scaling, or its rank is not that of A.
    """
    if lora is None and adapters is None:
        return model
    scaling = 1.0 if lora is None else lora.scaling
    if adapters is None:
        assert lora is not None
        adapters = lora.sample(model, seed)
    chosen = {}
    for name, entry in adapters.items():
        if isinstance(entry, Adapter) and lora is not None:
            raise ValueError(f"lora must be None where adapters carry their own scaling, as adapters[{name!r}] does")
        chosen[name] = entry if isinstance(entry, Adapter) else Adapter(entry, None, scaling)
        if lora is not None and len(chosen[name].A) != lora.rank:
            raise ValueError(f"adapters[{name!r}] must have lora.rank = {lora.rank} rows; got {len(chosen[name].A)}")
    if layers is not None:
        linear_layers(model, layers)
        missing = [name for name in layers if name not in chosen]
        if missing:
            raise ValueError(f"layers must name adapted layers among {list(chosen)}; got {missing}")
        chosen = {name: adapter for name, adapter in chosen.items() if name in layers}
    return attach(model, chosen)


def read_peft(model: nn.Module, adapter_name: str = "default") -> dict[str, Adapter]:
    """Adapters of a model made by ``peft.get_peft_model``, keyed by layer name of the model that was wrapped.

    Parameters
    ----------
    model : peft.PeftModel
        A model with plain LoRA layers on ``nn.Linear`` modules.
    adapter_name : str
        Which of its adapters to read.

    Raises
    ------
    TypeError
        If the model is not a PeftModel.
    ImportError
        If the extra ``hf`` is not installed.

    Notes
    -----
    Statement ``eq-1``. A and B are the live parameters' values, detached; scaling is PEFT's (alpha/r or alpha/sqrt(r)).
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ImportError("read_peft needs the extra 'hf': pip install 'lorantk[hf]'") from error
    if not isinstance(model, peft.PeftModel):
        raise TypeError(f"model must be a peft.PeftModel; got {type(model).__name__}")
    adapters = {}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, peft.tuners.lora.Linear) and adapter_name in module.lora_A:
            A, B = (getattr(module, side)[adapter_name].weight.detach() for side in ("lora_A", "lora_B"))
            adapters[name] = Adapter(A, B, module.scaling[adapter_name])
    if not adapters:
        raise ValueError(f"model holds no LoRA adapter named {adapter_name!r} on a linear layer")
    return adapters


def _check_adapter(name: str, adapter: Adapter, layer: nn.Linear) -> None:
    """Shapes, dtype and device of one adapter against its layer."""
    check_tensor(f"adapters[{name!r}].A", adapter.A, ndim=2)
    check_same_kind(f"adapters[{name!r}].A", adapter.A, "the layer's weight", layer.weight)
    check_real(f"adapters[{name!r}].scaling", adapter.scaling, minimum=0.0, exclusive=True)
    rank, fan_in = adapter.A.shape
    if fan_in != layer.in_features:
        raise ValueError(f"adapters[{name!r}].A must have shape (rank, {layer.in_features}); got {(rank, fan_in)}")
    if rank > fan_in:
        raise ValueError(f"adapters[{name!r}].A has rank {rank}, above the fan-in {fan_in} of its layer")
    if adapter.B is not None:
        check_tensor(f"adapters[{name!r}].B", adapter.B, ndim=2)
        check_same_kind(f"adapters[{name!r}].B", adapter.B, "A", adapter.A)
        if tuple(adapter.B.shape) != (layer.out_features, rank):
            raise ValueError(
                f"adapters[{name!r}].B must have shape {(layer.out_features, rank)}; got {tuple(adapter.B.shape)}"
            )
