"""The statements that the companion checks: every one must end in a claim."""

from __future__ import annotations

from typing import NamedTuple


class Statement(NamedTuple):
    """One line in our own words, the function that computes it ("module.name"), and the module of tests for it."""

    text: str
    code: str
    test: str


STATEMENTS: dict[str, Statement] = {
    "eq-1": Statement("LoRA adds a scaled product of two thin matrices to a frozen weight", "adapters.attach", "lora"),
    "eq-2": Statement("The tangent kernel is the inner product of output gradients", "kernels.ntk", "kernels"),
    "ntk-limit": Statement(
        "At infinite width the tangent kernel of full fine-tuning is deterministic", "kernels.ntk", "limits"
    ),
    "ntk-limit-lora": Statement(
        "At infinite width the tangent kernel of LoRA is deterministic", "sweeps.lora_ntk_sweep", "counterexamples"
    ),
    "ntk-constant": Statement(
        "At infinite width the tangent kernel stays constant while full fine-tuning trains",
        "training.gradient_descent",
        "search",
    ),
    "ntk-constant-lora": Statement(
        "At infinite width the tangent kernel of LoRA stays constant while it trains",
        "training.gradient_descent",
        "counterexamples",
    ),
    "eq-3": Statement(
        "Untargeted poisoning maximises the alignment of clean and poisoned gradients",
        "attacks.gradient_alignment",
        "attacks",
    ),
    "eq-4": Statement(
        "Backdoor poisoning minimises the alignment of clean and triggered gradients",
        "attacks.gradient_alignment",
        "attacks",
    ),
    "thm-fisher": Statement(
        "Fisher information is the kernel weighted by loss derivatives", "fisher.fisher_spectrum", "fisher"
    ),
    "eq-6": Statement(
        "Information bits are half the sum of the nonzero eigenvalues", "spectra.information_bits", "counterexamples"
    ),
    "eq-7": Statement(
        "Rényi entropy has Shannon's entropy at order 1 and the largest eigenvalue at infinity",
        "spectra.renyi_entropy",
        "counterexamples",
    ),
    "eq-8": Statement("The infinite-width kernel obeys a recursion over layers", "limits.infinite_width_ntk", "limits"),
    "eq-9": Statement(
        "Σ is the Gaussian expectation, and the sum over neurons, of products of activations",
        "limits.infinite_width_ntk",
        "limits",
    ),
    "lem-lora-ntk": Statement(
        "LoRA's kernel is the recursion with A between the activations", "layers.LayerFactors", "kernels"
    ),
    "thm-relation": Statement("LoRA's kernel is full fine-tuning's plus Δᵣ", "spectra.delta_matrix", "kernels"),
    "thm-relation-attention": Statement(
        "The relation and its order hold in the projections of a self-attention block",
        "networks.SelfAttentionBlock",
        "search",
    ),
    "thm-nsd": Statement(
        "M is negative semi-definite when σₐ² < 1/n and r ≤ n", "spectra.nsd_variance_bound", "spectra"
    ),
    "cor-ideal": Statement(
        "At r = n and σₐ² = 1/n the matrix M converges to 0", "spectra.delta_matrix", "counterexamples"
    ),
    "thm-ib": Statement(
        "LoRA has no more information bits than full fine-tuning where M ≤ 0", "spectra.information_bits", "search"
    ),
    "thm-renyi": Statement(
        "LoRA has no more Rényi entropy than full fine-tuning where M ≤ 0", "spectra.renyi_entropy", "search"
    ),
    "premise": Statement(
        "Under PEFT's defaults the premise of the theorems is met", "spectra.nsd_variance_bound", "spectra"
    ),
    "direction": Statement(
        "Clean and poisoned gradients have larger inner products under LoRA, as both conclusions require",
        "attacks.gradient_alignment",
        "counterexamples",
    ),
    "why-it-matters": Statement(
        "LoRA's gradients are random projections: cosines gain noise of order 1/√r",
        "attacks.gradient_alignment",
        "search",
    ),
}
"""Every statement that must carry a claim, in the order of the poster; ours come last."""
