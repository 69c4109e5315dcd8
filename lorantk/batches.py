"""Batches, how a model is called on them, and checks of arguments.

A batch of n inputs is a tensor (n, ...), given to the model as its argument, or a mapping such as
``{"input_ids": ..., "attention_mask": ...}`` whose tensors all have n rows, given by keyword. The model returns a
tensor (n, C), or an object that holds it as ``logits``, as the models of transformers do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import vmap
from tqdm import tqdm

Batch: TypeAlias = "Tensor | Mapping[str, Tensor]"


DROPOUT_RATES = ("dropout", "dropout_prob", "attention_dropout")
"""Where attention layers of PyTorch and transformers keep the rate of a dropout that is no module of its own."""


def tensors(x: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by name; the name of a lone tensor is empty."""
    return {"": x} if isinstance(x, Tensor) else dict(x)


def size(x: Batch) -> int:
    """Number of inputs n."""
    return len(next(iter(tensors(x).values())))


def take(x: Batch, rows: slice | list[int]) -> Batch:
    """The inputs in `rows`, as a batch."""
    return x[rows] if isinstance(x, Tensor) else {name: t[rows] for name, t in x.items()}


def ends(n: int) -> list[int]:
    """Rows of the first and the last of n inputs, at which what is made for a batch is compared."""
    return [0, -1][:n]


def join(x1: Batch, x2: Batch) -> Batch:
    """Both batches as one."""
    if isinstance(x1, Tensor):
        return torch.cat([x1, tensors(x2)[""]])
    return {name: torch.cat([t, tensors(x2)[name]]) for name, t in x1.items()}


def collect(x: Any) -> Any:
    """A batch as it is; batches from an iterable, such as a DataLoader, as one.

    Tensors made in inference mode, which autograd refuses, are copied.
    """
    if isinstance(x, Tensor):
        return x.clone() if x.is_inference() else x
    if isinstance(x, Mapping):
        made = [name for name, t in x.items() if isinstance(t, Tensor) and t.is_inference()]
        return {**x, **{name: x[name].clone() for name in made}} if made else x
    if isinstance(x, str) or not isinstance(x, Iterable):
        return x
    batches = [b[0] if isinstance(b, (list, tuple)) and len(b) == 1 else b for b in x]
    if not batches or not all(isinstance(b, (Tensor, Mapping)) for b in batches):
        return x  # refused by check_batch
    parts = [tensors(b) for b in batches]
    if any(p.keys() != parts[0].keys() for p in parts):
        raise ValueError(f"batches must hold the same tensors; got {[sorted(p) for p in parts]}")
    joined = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
    return joined.get("", joined)


def map_inputs(function: Callable[..., dict[str, Tensor]], x: Batch, *labels: Tensor) -> dict[str, Tensor]:
    """`function` of each input, as a batch of one, and of its labels: its tensors stacked along a new first axis.

    By vmap for a tensor; one after another for a mapping, since models called by keyword look at the values of their
    masks, which vmap forbids.
    """
    if isinstance(x, Tensor):
        return vmap(lambda row, *rest: function(row[None], *rest))(x, *labels)
    rows = tqdm(range(size(x)), "inputs", delay=2, leave=False)
    found = [function(take(x, slice(i, i + 1)), *(label[i] for label in labels)) for i in rows]
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}


def call(model: nn.Module, x: Batch, values: Mapping[str, Tensor] | None = None) -> Tensor:
    """Outputs (n, C) of `model` on a batch, with the parameters in `values` in place of its own.

    Raises
    ------
    ValueError
        If the outputs are not a tensor of shape (n, C).
    """
    args, kwargs = ((x,), {}) if isinstance(x, Tensor) else ((), dict(x))
    with nullcontext() if values is None else substituted(model, values):
        outputs = model(*args, **kwargs)
    outputs = getattr(outputs, "logits", outputs)
    n = size(x)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != n:
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"model must map {n} inputs to a tensor of shape ({n}, C); got {given}")
    return outputs


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Context after which `model` holds the tensors that it held before, in every layer, whatever happened inside.

    Layers that write into themselves when they are called, such as those with weight_norm or PEFT's attention, would
    keep what a failed or transformed call wrote. In training mode buffers, such as running means, get their values
    back too.
    """
    layers = list(model.modules())
    values = [(b, b.clone()) for m in layers if m.training for b in m._buffers.values() if b is not None]
    parameters, buffers = [dict(m._parameters) for m in layers], [dict(m._buffers) for m in layers]
    attributes = [{k: v for k, v in vars(m).items() if isinstance(v, Tensor)} for m in layers]
    try:
        yield
    finally:
        for module, own, buffer, kept in zip(layers, parameters, buffers, attributes, strict=True):
            for key in [k for k, v in vars(module).items() if isinstance(v, Tensor) and k not in kept]:
                del vars(module)[key]
            vars(module).update(kept)
            pairs: list[tuple[Any, Any]] = [(module._parameters, own), (module._buffers, buffer)]
            for held, before in pairs:
                if held.keys() != before.keys() or any(held[k] is not v for k, v in before.items()):
                    held.clear()
                    held.update(before)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)


@contextmanager
def undisturbed(model: object) -> Iterator[None]:
    """Gradients are on, whatever the caller's context, and the model holds its own tensors afterwards.

    Autocast keeps no casts of parameters: they would outlive the graph that they belong to.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    frozen = [name for name, p in model.named_parameters() if p.is_inference()]
    if frozen:
        raise ValueError(f"model must be made outside of torch.inference_mode(); {frozen[0]!r} was made inside")
    caching = torch.is_autocast_cache_enabled()
    try:
        torch.set_autocast_cache_enabled(False)
        with torch.inference_mode(False), torch.enable_grad(), restored(model):
            yield
    finally:
        torch.set_autocast_cache_enabled(caching)


@contextmanager
def substituted(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Context in which `model` has the tensors in `values` in place of its parameters of these names.

    A parameter or layer that is shared, under whatever names, is substituted once and for all of them.
    (torch.func.functional_call leaves substitutes behind in a layer with two names: pytorch issue 164759.)
    """
    named = dict(model.named_parameters())
    new: dict[int, Any] = {id(named[name]): value for name, value in values.items()}
    with restored(model):
        for module in model.modules():
            module._parameters.update({key: new[id(p)] for key, p in module._parameters.items() if id(p) in new})
        yield


def tolerance(dtype: torch.dtype) -> float:
    """Relative difference between round-off and a wrong value: sqrt(eps), autocast's if it is on, but 1e-5 in float64.

    Models such as T5 and Llama compute parts in float32 whatever their dtype: 1e-7 to 1e-6 is their round-off.
    """
    cast = [torch.get_autocast_dtype(device) for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    return max(1e-5, *(float(torch.finfo(each).eps ** 0.5) for each in [dtype, *cast]))


@contextmanager
def uncast() -> Iterator[None]:
    """Context, or decorator, in which products of ours are not rounded by the caller's autocast."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def check_alone(model: nn.Module, x: Batch) -> None:
    """Raise ValueError unless outputs are the same when asked twice, and for one input alone as in the batch.

    The first and the last input are asked alone. Sixteen inputs are tried, eight times more where the model draws
    random numbers: dropout outside of modules, noise and models that mix the inputs of a batch are seen.
    """
    with torch.no_grad():
        few = take(x, slice(0, 16))
        state = torch.get_rng_state()
        try:
            first, again = call(model, few), call(model, few)
            alone = torch.cat([call(model, take(few, [row])) for row in ends(size(few))])
            draws = 0 if torch.equal(state, torch.get_rng_state()) else 8
            repeated = [again, *(call(model, few) for _ in range(draws))]
        except (RuntimeError, IndexError) as error:  # wrong width, integers for numbers, tokens it does not know
            raise ValueError(f"model must accept the batch and one input of it; it raised: {error}") from error
    for outputs in repeated:
        check_agree("gives other outputs when called again", outputs, first)
    check_agree("gives an input other outputs alone than in a batch", alone, first[ends(len(first))])


def check_agree(fault: str, outputs: Tensor, before: Tensor) -> None:
    """Raise ValueError, which says what the model does, where outputs are not those before, up to round-off."""
    gap, largest = (outputs - before).abs().max().item(), before.abs().max().item()
    if not gap <= tolerance(before.dtype) * largest:
        raise ValueError(
            f"model must be deterministic, input by input: it {fault} (by {gap:.1e}, outputs reach {largest:.1e}); "
            "is it in training mode? Call model.eval() first"
        )


def check_deterministic(model: nn.Module) -> None:
    """Raise ValueError if `model` holds dropout or batch norm in training mode: it has no kernel per input then."""
    for name, module in model.named_modules():
        rates = [getattr(module, attribute, 0.0) for attribute in DROPOUT_RATES]
        rates += [module.p] if isinstance(module, nn.modules.dropout._DropoutNd) else []
        random = any(isinstance(rate, (int, float)) and rate > 0 for rate in rates)
        coupled = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if module.training and (random or coupled):
            raise ValueError(f"model must be deterministic, input by input: {name!r} is a {type(module).__name__} "
                             "in training mode; call model.eval() first")  # fmt: skip


def check_batch(name: str, x: object, model: nn.Module) -> None:
    """Raise unless `x` is a non-empty finite batch in the dtype and on the device of `model`.

    Raises
    ------
    TypeError
        On a wrong type, dtype or device, or a model that is spread over several devices.
    ValueError
        On NaN, Inf, no rows, or tensors with different numbers of rows.
    """
    devices = {str(p.device) for p in model.parameters()}
    if len(devices) > 1:
        raise TypeError(f"model must be on one device; its parameters are on {', '.join(sorted(devices))}")
    if isinstance(x, Mapping) and not x:
        raise ValueError(f"{name} must hold at least one tensor; got an empty mapping")
    if not isinstance(x, (Tensor, Mapping)):
        raise TypeError(f"{name} must be a torch.Tensor or a mapping of names to tensors; got {type(x).__name__}")
    floating = [p for p in model.parameters() if p.is_floating_point()]
    reference = next(iter(floating), None)
    rows = set()
    for key, tensor in tensors(x).items():
        label = f"{name}[{key!r}]" if key else name
        rows.add(len(check_tensor(label, tensor, floating=False)))
        if reference is not None and tensor.is_floating_point():
            same = next((p for p in floating if p.dtype == tensor.dtype), reference)  # PEFT mixes dtypes
            check_same_kind(label, tensor, "the model", same)
        elif reference is not None and tensor.device != reference.device:
            raise TypeError(f"{label} is on {tensor.device} but the model is on {reference.device}: use one device")
    if len(rows) > 1:
        raise ValueError(f"{name} must hold tensors with one number of rows; got {sorted(rows)}")


def check_pair(model: nn.Module, x1: Batch, x2: Batch | None, names: tuple[str, str] = ("x1", "x2")) -> Batch:
    """Check both batches against each other and against the model; return x2, or x1 where x2 is None."""
    check_batch(names[0], x1, model)
    if x2 is None:
        return x1
    check_batch(names[1], x2, model)
    first, second = tensors(x1), tensors(x2)
    if first.keys() != second.keys():
        raise ValueError(f"{names[1]} must hold the same tensors as {names[0]}, {list(first)}; got {list(second)}")
    for key, tensor in first.items():
        label1, label2 = (f"{name}[{key!r}]" if key else name for name in names)
        check_same_kind(label2, second[key], label1, tensor)
        if second[key].shape[1:] != tensor.shape[1:]:
            raise ValueError(
                f"{label2} must match {label1} past the first axis, {tuple(tensor.shape[1:])}; "
                f"got {tuple(second[key].shape[1:])}"
            )
    return x2


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of the strings in `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def check_integer(name: str, value: object, minimum: int) -> None:
    """Raise TypeError unless `value` is an int, ValueError unless it is at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")


def check_seed(seed: object) -> None:
    """Raise TypeError unless `seed` is an int, ValueError unless it is from 0 to 2^63 - 1."""
    check_integer("seed", seed, 0)
    if isinstance(seed, int) and seed >= 2**63:
        raise ValueError(f"seed must be below 2**63; got {seed}")


def check_real(name: str, value: object, *, minimum: float, exclusive: bool = False) -> None:
    """Raise unless `value` is a finite real number that is at least (if `exclusive`: above) `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a real number; got {value!r} of type {type(value).__name__}")
    if not math.isfinite(value) or value < minimum or (exclusive and value == minimum):
        bound = "above" if exclusive else "at least"
        raise ValueError(f"{name} must be finite and {bound} {minimum}; got {value}")


def check_tensor(name: str, value: object, *, ndim: int | None = None, floating: bool = True) -> Tensor:
    """Return `value` if it is a non-empty, finite tensor of the given dimension; raise otherwise."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(value).__name__}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s); got shape {tuple(value.shape)}")
    if value.ndim == 0 or value.numel() == 0:
        raise ValueError(f"{name} must hold at least one entry along each axis; got shape {tuple(value.shape)}")
    if floating and not value.is_floating_point():
        raise TypeError(f"{name} must be a floating point tensor; got dtype {value.dtype}")
    if value.is_floating_point() and not is_finite(value):
        raise ValueError(f"{name} must be finite; got NaN or Inf among its {value.numel()} entries")
    return value


def is_finite(value: Tensor) -> bool:
    """Whether no entry is NaN or Inf: by one sum, which is finite then unless it overflows."""
    return bool(torch.isfinite(value.detach().sum())) or bool(torch.isfinite(value).all())


def check_same_kind(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise TypeError unless both tensors share dtype and device."""
    if value.dtype != other.dtype:
        raise TypeError(f"{name} has dtype {value.dtype} but {other_name} has {other.dtype}: use one dtype")
    if value.device != other.device:
        raise TypeError(f"{name} is on {value.device} but {other_name} is on {other.device}: use one device")


def check_square(name: str, value: object) -> Tensor:
    """Return `value` if it is a finite symmetric matrix; raise otherwise."""
    matrix = check_tensor(name, value, ndim=2)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be square; got shape {tuple(matrix.shape)}")
    asymmetry = (matrix - matrix.T).abs().max()
    if asymmetry > 100 * torch.finfo(matrix.dtype).eps * matrix.abs().max():
        raise ValueError(f"{name} must be symmetric; it differs from its transpose by {asymmetry.item():.3g}")
    return matrix
