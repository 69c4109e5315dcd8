"""Low-rank adapters: y = W a becomes y = (W + s B A) a with W frozen, A random and B = 0 at the start.

Statement ``eq-1``. Source: Hu et al. (2022), "LoRA: Low-Rank Adaptation of Large Language Models". In NTK
parametrisation the adapter shares the layer's prefactor: y = sqrt(weight_variance / fan_in) (W + s B A) a.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from .adapters import Adapter, attach
from .layers import adaptable_layers, fans
from .validation import check_integer, check_real

__all__ = ["Adapter", "LoRA", "adapted", "attach", "read_peft"]


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
    layers : str or sequence of str, optional
        Which layers are adapted: names, a regular expression or "all-linear", as in `lorantk.layers.adaptable_layers`;
        None for all linear and convolutional ones.
    drawn : mapping of layer name to `Adapter`, optional
        Adapters that exist already, as `from_peft` reads them: they take the place of a draw.

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
    drawn: Mapping[str, Adapter] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_integer("rank", self.rank, 1)
        check_real("scaling", self.scaling, minimum=0.0, exclusive=True)
        self.entry_variance(1)
        if self.layers is not None and not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))

    @classmethod
    def from_peft(cls, model: nn.Module, adapter_name: str = "default") -> LoRA:
        """The adapters of a PEFT model as they are: rank, scaling, layers, and the A and B actually there.

        Parameters
        ----------
        model : peft.PeftModel
            With LoRA on linear, Conv1D, convolutional or embedding layers.
        adapter_name : str

        Returns
        -------
        LoRA
            ``ntk(base, x, lora=LoRA.from_peft(model))`` is the kernel of the adapters on the model before
            ``get_peft_model``, whatever B has become. Layers whose rank or scaling differs keep their own.

        Raises
        ------
        TypeError, ValueError, ImportError
            As `read_peft`.
        """
        drawn = read_peft(model, adapter_name)
        config: Any = cast(Any, model).peft_config[adapter_name]
        gaussian = config.init_lora_weights == "gaussian"  # PEFT then draws with standard deviation 1/rank
        scaling = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        return cls(config.r, 1.0 / config.r**2 if gaussian else "peft", scaling, tuple(drawn), drawn)

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
        With `drawn`, its A are returned and the seed is not used.

        Raises
        ------
        ValueError
            If a layer cannot be adapted or its fan-in is below the rank.
        """
        if self.drawn is not None:
            return {name: adapter.A for name, adapter in self.drawn.items()}
        return self.sample_nested(model, seed, self.rank)

    def sample_nested(self, model: nn.Module, seed: int, rank: int) -> dict[str, Tensor]:
        """The first rows of a draw at `rank`: one common draw for all ranks up to it."""
        check_integer("seed", seed, 0)
        matrices = {}
        for name, layer in adaptable_layers(model, self.layers).items():
            fan_in = fans(layer)[0]
            if rank > fan_in:
                raise ValueError(f"rank must be at most the fan-in {fan_in} of layer {name!r}; got {rank}")
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            deviation = math.sqrt(self.entry_variance(fan_in))
            if self.variance == "peft":
                uniform = torch.rand(rank, fan_in, generator=generator, dtype=torch.float64)
                A = math.sqrt(3.0) * deviation * (2.0 * uniform - 1.0)
            else:
                A = deviation * torch.randn(rank, fan_in, generator=generator, dtype=torch.float64)
            assert isinstance(layer.weight, Tensor)
            matrices[name] = A[: self.rank].to(dtype=layer.weight.dtype, device=layer.weight.device)
        return matrices

    def attach(self, model: nn.Module, seed: int = 0) -> nn.Module:
        """Copy of `model` with freshly drawn adapters, B = 0, ready to be trained: see `attach`."""
        return attach(model, self.adapters(model, seed))

    def adapters(self, model: nn.Module, seed: int = 0) -> Mapping[str, Adapter]:
        """The adapters at their start, A drawn and B = 0, or those in `drawn`."""
        if self.drawn is not None:
            return self.drawn
        return {name: Adapter(A, None, self.scaling) for name, A in self.sample(model, seed).items()}


def adapted(
    model: nn.Module,
    *,
    lora: LoRA | None = None,
    seed: int = 0,
    adapters: Mapping[str, Tensor | Adapter] | None = None,
    layers: str | Sequence[str] | None = None,
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
    chosen = dict(lora.adapters(model, seed)) if lora is not None and adapters is None else {}
    for name, entry in (adapters or {}).items():
        if isinstance(entry, Adapter) and lora is not None:
            raise ValueError(f"lora must be None where adapters carry their own scaling, as adapters[{name!r}] does")
        chosen[name] = entry if isinstance(entry, Adapter) else Adapter(entry, None, scaling)
        if lora is not None and len(chosen[name].A) != lora.rank:
            raise ValueError(f"adapters[{name!r}] must have lora.rank = {lora.rank} rows; got {len(chosen[name].A)}")
    if layers is not None:
        missing = [name for name in adaptable_layers(model, layers) if name not in chosen]
        if missing:
            raise ValueError(f"layers must name adapted layers among {list(chosen)}; got {missing}")
        chosen = {name: chosen[name] for name in adaptable_layers(model, layers)}
    return attach(model, chosen)


def read_peft(model: nn.Module, adapter_name: str = "default") -> dict[str, Adapter]:
    """Adapters of a model made by ``peft.get_peft_model``, keyed by layer name of the model that was wrapped.

    Parameters
    ----------
    model : peft.PeftModel
        A model with plain LoRA layers, as `LoRA.from_peft`.
    adapter_name : str
        Which of its adapters to read.

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
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ImportError("read_peft needs the extra 'hf': pip install 'lorantk[hf]'") from error
    if not isinstance(model, peft.PeftModel):
        raise TypeError(f"model must be a peft.PeftModel; got {type(model).__name__}")
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
