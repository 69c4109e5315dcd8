"""Saved adapters, read safely: PEFT's, diffusers' and kohya's names, from safetensors only, never from a pickle.

Statement ``eq-1``. Everything that the header of a file can tell is checked before a tensor is read.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .batches import check_integer, check_real, check_tensor

HEADER_LIMIT = 2**25
"""Largest header in bytes that is read; a thousand layers need less than one hundredth of it."""

NAMINGS = {
    "PEFT": r"(?P<layer>.+)\.lora_(?P<embedding>embedding_)?(?P<side>A|B)(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?",
    "kohya": r"(?P<layer>.+)\.lora_(?P<side>down|up)\.weight",
    "diffusers": r"(?P<layer>.+)[._]lora\.(?P<side>down|up)\.weight",
}
"""How the two halves of a layer's adapter are called: a regular expression for each library's names."""

ALPHA = r"(?P<layer>.+?)(?:[._]lora)?\.alpha"
FOREIGN = re.compile(r"lora|dora|hada|lokr|vera_|ia3|oft_|boft|prompt|diff_b|diff$|on_input")
NO_PICKLE = (
    "path must be safetensors; {} is a pickle, which can run code when it is read. Save the adapter again with "
    "model.save_pretrained(folder), which writes safetensors"
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
VARIANTS = ("use_dora", "use_qalora", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config")
"""Keys of a PEFT configuration under which a layer is not W + s B A."""


@dataclass(frozen=True)
class SavedAdapter:
    """A saved adapter.

    Attributes
    ----------
    path : Path
        The safetensors file.
    naming : {"PEFT", "diffusers", "kohya"}
    config : dict
        PEFT's adapter_config.json, empty if there is none.
    scaling_from : str
        Where s comes from: "adapter_config.json", "lora_adapter_metadata", "alpha tensors" or "--alpha".
    adapters : dict of Adapter
        By layer name.
    embeddings : set of str
        Layers where A starts at 0 and B is drawn, as PEFT does it for an embedding.
    others : tuple of str
        Tensors that belong to no adapter: layers saved as a whole, such as a classifier.
    """

    path: Path
    naming: str
    config: dict[str, Any]
    scaling_from: str
    adapters: dict[str, tuple[Tensor, Tensor, float]] = field(repr=False)
    embeddings: frozenset[str]
    others: tuple[str, ...]


def read_adapter(path: str | Path, alpha: float | None = None) -> SavedAdapter:
    """Read a saved adapter: a folder that PEFT's ``save_pretrained`` wrote, or a .safetensors file.

    Parameters
    ----------
    path : str or Path
        The file may use PEFT's, diffusers' or kohya's names.
    alpha : float, optional
        For a file that does not say it: s = alpha / rank. Nothing is assumed in its place.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        On a missing or damaged file, a pickle, halves that are missing, double or do not fit, NaN or Inf, a method
        other than LoRA, or a scaling that the file does not give and `alpha` does not either.
    ImportError
        If neither the extra ``cli`` nor ``hf`` is installed.

    Notes
    -----
    Statement ``eq-1``.
    """
    if alpha is not None:
        check_real("alpha", alpha, minimum=0.0, exclusive=True)
    file = _locate(Path(path))
    header = _header(file)
    metadata = header.pop("__metadata__", {})
    names = _sort(file, header)
    ranks = {layer: _rank(layer, header, halves) for layer, halves in names.halves.items()}
    beside = file.with_name("adapter_config.json")
    config = read_config(beside) if names.naming == "PEFT" and beside.is_file() else {}
    adapters: dict[str, tuple[Tensor, Tensor, float]] = {}
    sources = Counter[str]()
    with _safe_open(file) as tensors:
        for layer, rank in ranks.items():
            key = names.alphas.get(layer)
            stored = None if key is None else float(_finite(tensors.get_tensor(key), key).max())
            own = config or _component_config(metadata, layer)
            scaling = _scaling(layer, rank, own, stored, alpha)
            check_real(f"scaling of layer {layer!r}", scaling, minimum=0.0, exclusive=True)
            halves = names.halves[layer]
            A, B = (_finite(tensors.get_tensor(halves[side]), halves[side]).flatten(1) for side in ("A", "B"))
            adapters[layer] = (A, B, scaling)
            said = "adapter_config.json" if config else "lora_adapter_metadata" if own else "--alpha"
            sources["alpha tensors" if stored is not None else said] += 1
    said = " and ".join(sorted(sources))
    return SavedAdapter(file, names.naming, config, said, adapters, frozenset(names.embeddings), tuple(names.others))


def read_config(path: Path) -> dict[str, Any]:
    """An adapter_config.json of PEFT: a plain LoRA with a rank, an alpha and patterns that can be used.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        If it is missing, no JSON object, of another method, or a value has the wrong type.
    """
    return _check_config(_json(path.read_bytes(), str(path)), str(path))


def _check_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{where} must have peft_type 'LORA'; got {config.get('peft_type')!r}")
    used = [key for key in VARIANTS if config.get(key)]
    if used:
        raise ValueError(f"{where} sets {used[0]}: such a layer is not W + s B A, and the laws here do not cover it")
    check_integer(f"r in {where}", config.get("r"), 1)
    check_real(f"lora_alpha in {where}", config.get("lora_alpha"), minimum=0.0, exclusive=True)
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise TypeError(f"{key} in {where} must map layer names to numbers; got {type(patterns).__name__}")
        for name, value in patterns.items():
            check_real(f"{key}[{name!r}] in {where}", value, minimum=0.0, exclusive=True)
            try:
                re.compile(name)
            except re.error as error:
                raise ValueError(f"{key}[{name!r}] in {where} must be a regular expression; {error}") from error
    return config


def _json(text: str | bytes, where: str) -> dict[str, Any]:
    """One JSON object without a name that stands there twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        double = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
        if double:
            raise ValueError(f"the name {double[0]!r} stands there twice")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} must hold JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold one JSON object; got {type(value).__name__}")
    return value


def _locate(path: Path) -> Path:
    """The one safetensors file that `path` means."""
    if not path.exists():
        raise FileNotFoundError(f"path must be a folder or a .safetensors file; {path} does not exist")
    if path.is_file():
        if path.suffix == ".safetensors":
            return path
        raise ValueError(
            NO_PICKLE.format(path) if path.suffix in PICKLES else f"path must end in .safetensors; got {path}"
        )
    found = sorted(path.glob("*.safetensors"))
    usual = [f for f in found if f.name in ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")]
    if len(usual or found) == 1:
        return (usual or found)[0]
    pickles = sorted(f for f in path.iterdir() if f.suffix in PICKLES)
    if not found and pickles:
        raise ValueError(NO_PICKLE.format(pickles[0]))
    raise ValueError(f"path must hold one .safetensors; {path} has {len(found)}: give the file of the adapter itself")


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: tensor name to dtype and shape."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise ValueError(
                f"{path} is no safetensors file or a truncated one: its first 8 bytes announce a header of {length} "
                f"bytes; the file has {size}, and at most {HEADER_LIMIT} are read"
            )
        header = _json(file.read(length), f"the header of {path}")
    with _safe_open(path):  # the library checks dtypes, shapes and offsets against the file
        return header


@contextmanager
def _safe_open(path: Path) -> Iterator[Any]:
    """safetensors.safe_open, with the library's own errors turned into ValueError."""
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise ImportError("reading saved adapters needs the extra 'cli' or 'hf': pip install 'lorantk[cli]'") from error
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _finite(tensor: Tensor, name: str) -> Tensor:
    """The tensor, if it is floating point and finite; float8 has no test of its own, so the test is in float32."""
    check_tensor(f"tensor {name!r}", (tensor.float() if tensor.is_floating_point() else tensor).reshape(-1))
    return tensor


@dataclass
class _Names:
    """The tensors of a file, sorted by what their names say."""

    naming: str = ""
    halves: dict[str, dict[str, str]] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    alphas: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def _sort(path: Path, header: dict[str, Any]) -> _Names:
    """Which tensor is which layer's A, B or alpha; every name is used, or known to be no part of an adapter."""
    found = _Names()
    for name in sorted(header, key=lambda name: [p.zfill(9) for p in re.split(r"(\d+)", name)]):  # layer 2 before 10
        if not name.isprintable():
            raise ValueError(f"{path} must have printable tensor names; got {name!r}")
        matches = {naming: match for naming, pattern in NAMINGS.items() if (match := re.fullmatch(pattern, name))}
        alpha = re.fullmatch(ALPHA, name)
        if matches:
            found.naming, match = next(iter(matches.items()))
            layer, side = _layer(match["layer"]), "A" if match["side"] in ("A", "down") else "B"
            other = found.halves.setdefault(layer, {}).setdefault(side, name)
            if other != name:
                raise ValueError(f"{path} must hold one {side} for layer {layer!r}; got {other!r} and {name!r}")
            if match.groupdict().get("embedding"):
                found.embeddings.add(layer)
        elif alpha:
            found.alphas[_layer(alpha["layer"])] = name
        elif FOREIGN.search(name):
            raise ValueError(f"{path} must hold plain LoRA; tensor {name!r} belongs to another method or variant")
        else:
            found.others.append(name)
    if not found.halves:
        shown = ", ".join(map(repr, found.others[:3])) or "no tensor"
        raise ValueError(f"{path} must hold a LoRA adapter, named as PEFT, diffusers or kohya do; it holds {shown}")
    return found


def _layer(name: str) -> str:
    """The layer's name in the model, without what PEFT and old diffusers put around it."""
    return name.removeprefix("base_model.model.").replace(".processor.", ".")


def _rank(layer: str, header: dict[str, Any], halves: dict[str, str]) -> int:
    """The rank that both halves agree on, from the header alone."""
    if missing := {"A", "B"} - halves.keys():
        raise ValueError(f"layer {layer!r} must have both A and B; {missing.pop()} is missing")
    A, B = (list(header[halves[side]]["shape"]) for side in ("A", "B"))
    if min(len(A), len(B)) < 2 or 0 in A + B:
        raise ValueError(
            f"layer {layer!r} must have A of shape (rank, fan_in) and B of shape (fan_out, rank), none of them 0; got "
            f"{A} and {B}. Flat or empty halves are left where a sharded model was saved without gathering it"
        )
    if A[0] != math.prod(B[1:]):
        raise ValueError(f"layer {layer!r} must have as many rows in A as columns in B; got shapes {A} and {B}")
    return int(A[0])


def _component_config(metadata: dict[str, str], layer: str) -> dict[str, Any]:
    """What diffusers wrote into the file about this layer's component, such as "unet"; empty if nothing."""
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return {}
    packed = _json(text, "lora_adapter_metadata")
    prefix = layer.split(".")[0] + "."
    config = {key.removeprefix(prefix): value for key, value in packed.items() if key.startswith(prefix)} or packed
    return _check_config({"peft_type": "LORA"} | config, "lora_adapter_metadata")


def _scaling(layer: str, rank: int, config: dict[str, Any], stored: float | None, alpha: float | None) -> float:
    """s of one layer: from its alpha tensor, from the configuration, or from the caller's alpha; never assumed."""
    if alpha is not None and (config or stored is not None):
        raise ValueError("alpha is for adapters that do not say theirs; this one does: leave alpha out")
    if stored is not None:
        return stored / rank
    if config:
        expected = _pattern(config, "rank_pattern", layer, config["r"])
        if rank != expected:
            raise ValueError(f"layer {layer!r} has rank {rank} in the file but {expected} in its configuration")
        alpha = _pattern(config, "alpha_pattern", layer, config["lora_alpha"])
        return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    if alpha is None:
        raise ValueError(
            f"layer {layer!r} has rank {rank} and no alpha: neither an adapter_config.json beside the file, nor an "
            "alpha in it. Give alpha (--alpha), the numerator of s = alpha / rank; diffusers and kohya's scripts take "
            f"alpha = rank where nothing is said, so that --alpha {rank} gives s = 1"
        )
    return alpha / rank


def _pattern(config: dict[str, Any], key: str, layer: str, default: float) -> float:
    """PEFT's rule: the first pattern that matches the end of the layer's name, from a dot on."""
    patterns = config.get(key) or {}
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer)), default)
