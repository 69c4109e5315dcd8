"""How LoRA changes the alignment of clean and poisoned gradients. Statements ``eq-3``, ``eq-4``, ``direction``."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lorantk import LoRA, gradient_alignment

Batch = tuple[Tensor, Tensor]


def full_alignment(model: nn.Module, clean: Batch, poisoned: Batch) -> dict[str, Tensor]:
    """Inner products ("inner") and cosines ("cosine") of clean and poisoned gradients, (n_c, n_p), trained in full."""
    return {name: gradient_alignment(model, clean, poisoned, cosine=name == "cosine") for name in ("inner", "cosine")}


def relative_alignment(
    model: nn.Module, clean: Batch, poisoned: Batch, full: Mapping[str, Tensor], rank: int, variance: float, seed: int
) -> dict[str, float]:
    """Alignment under one draw of LoRA, relative to that of full fine-tuning.

    Parameters
    ----------
    model : nn.Module
    clean, poisoned : (inputs, labels)
    full : mapping
        Of `full_alignment`.
    rank, seed : int
    variance : float
        Times fan-in, for the inner products; cosines are taken at variance 1/n ("cosine") and 1 ("cosine_equal").

    Returns
    -------
    dict
        inner, cosine, cosine_equal: ratios of means; error, error_equal: root mean square error of the cosines.
    """

    def align(rule: str | float, cosine: bool) -> Tensor:
        return gradient_alignment(LoRA(rank, rule).attach(model, seed), clean, poisoned, cosine=cosine)

    inner, by_fan_in, equal = align(f"{variance}/n", False), align("1/n", True), align(1.0, True)
    return {
        "inner": (inner.mean() / full["inner"].mean()).item(),
        "cosine": (by_fan_in.mean() / full["cosine"].mean()).item(),
        "cosine_equal": (equal.mean() / full["cosine"].mean()).item(),
        "error": (by_fan_in - full["cosine"]).square().mean().sqrt().item(),
        "error_equal": (equal - full["cosine"]).square().mean().sqrt().item(),
    }
