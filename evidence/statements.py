"""What the companion checks: the poster's statements, each of which needs a claim, and its empirical findings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Statement(NamedTuple):
    """One line in our own words, the function that computes it, and a test for it ("package.module.name" each).

    A statement with several conclusions names each as a part, which gets a verdict of its own.
    """

    text: str
    code: str
    test: str
    parts: Mapping[str, str] = MappingProxyType({})


STATEMENTS: dict[str, Statement] = {
    "eq-1": Statement(
        "LoRA adds a scaled product of two thin matrices to a frozen weight",
        "lorantk.lora.attach",
        "lorantk.lora.test_same_function_gradient_and_merged_weight_as_peft",
    ),
    "eq-2": Statement(
        "The tangent kernel is the inner product of output gradients",
        "lorantk.kernels.ntk",
        "lorantk.kernels.test_three_methods_agree_with_brute_force",
    ),
    "ntk-limit": Statement(
        "At infinite width the tangent kernel of full fine-tuning is deterministic",
        "lorantk.kernels.ntk",
        "lorantk.search.test_recursion_and_determinism_survive",
    ),
    "ntk-limit-lora": Statement(
        "At infinite width the tangent kernel of LoRA is deterministic",
        "lorantk.sweeps.lora_ntk_sweep",
        "lorantk.counterexamples.test_ntk_limit_lora_one_row_is_as_random_at_any_width",
    ),
    "ntk-constant": Statement(
        "At infinite width the tangent kernel stays constant while full fine-tuning trains",
        "experiments.training.gradient_descent",
        "lorantk.search.test_full_fine_tuning_moves_its_kernel_less_in_a_wide_network",
    ),
    "ntk-constant-lora": Statement(
        "At infinite width the tangent kernel of LoRA stays constant while it trains",
        "experiments.training.gradient_descent",
        "lorantk.counterexamples.test_ntk_constant_lora_the_kernel_of_A_does_not_depend_on_the_width",
    ),
    "eq-3": Statement(
        "Untargeted poisoning maximises the alignment of clean and poisoned gradients",
        "lorantk.attacks.gradient_alignment",
        "lorantk.attacks.test_alignment_is_the_inner_product_of_gradients",
    ),
    "eq-4": Statement(
        "Backdoor poisoning minimises the alignment of clean and triggered gradients, both of which have influence",
        "lorantk.attacks.gradient_alignment",
        "lorantk.attacks.test_alignment_is_the_inner_product_of_gradients",
    ),
    "thm-fisher": Statement(
        "Fisher information is the kernel weighted by loss derivatives",
        "lorantk.fisher.fisher_spectrum",
        "lorantk.search.test_fisher_is_the_weighted_kernel_at_every_width",
        {
            "trace": "The expectation is the trace of the Fisher information",
            "spectrum": "The nonzero spectrum is that of the weighted kernel between samples",
        },
    ),
    "eq-6": Statement(
        "Information bits are half the sum of the nonzero eigenvalues",
        "lorantk.spectra.information_bits",
        "lorantk.counterexamples.test_eq_6_the_printed_sum_is_not_half_the_log_determinant",
    ),
    "eq-7": Statement(
        "Rényi entropy has Shannon's entropy at order 1 and the largest eigenvalue at infinity",
        "lorantk.spectra.renyi_entropy",
        "lorantk.counterexamples.test_eq_7_infinity_gives_minus_the_logarithm_and_order_one_diverges",
        {
            "shannon": "At order 1 it is Shannon's entropy",
            "infinity": "At infinite order it is the largest eigenvalue",
        },
    ),
    "eq-8": Statement(
        "The infinite-width kernel obeys a recursion over layers",
        "lorantk.limits.infinite_width_ntk",
        "lorantk.search.test_recursion_and_determinism_survive",
    ),
    "eq-9": Statement(
        "Σ is the Gaussian expectation, and the sum over neurons, of products of activations",
        "lorantk.limits.infinite_width_ntk",
        "lorantk.limits.test_closed_forms_agree_with_quadrature",
    ),
    "lem-lora-ntk": Statement(
        "LoRA's kernel is the recursion with A between the activations",
        "lorantk.factors.LayerFactors",
        "lorantk.kernels.test_sweep_equals_draw_by_draw",
    ),
    "thm-relation": Statement(
        "LoRA's kernel is full fine-tuning's plus Δᵣ",
        "lorantk.spectra.delta_matrix",
        "lorantk.search.test_relation_and_loewner_order_survive",
    ),
    "thm-relation-attention": Statement(
        "The relation and its order hold in the projections of a self-attention block",
        "lorantk.models.SelfAttentionBlock",
        "lorantk.search.test_relation_and_loewner_order_survive_in_attention",
        {
            "relation": "The kernels differ by the sum over positions of a·M a' times cotangents",
            "order": "Where M ≤ 0 in every adapted projection, LoRA's kernel is below full fine-tuning's",
        },
    ),
    "thm-nsd": Statement(
        "M is negative semi-definite when σₐ² < 1/n and r ≤ n, and has r eigenvalues σₐ² n, the others 0",
        "lorantk.spectra.nsd_variance_bound",
        "lorantk.counterexamples.test_thm_nsd_one_by_one",
        {
            "order": "M is negative semi-definite when σₐ² < 1/n and r ≤ n",
            "eigenvalues": "M has r eigenvalues σₐ² n, and the others are 0",
        },
    ),
    "cor-ideal": Statement(
        "At r = n and σₐ² = 1/n the matrix M converges to 0, and LoRA's kernel to full fine-tuning's",
        "lorantk.spectra.delta_matrix",
        "lorantk.counterexamples.test_cor_ideal_the_matrix_stays_away_from_zero",
        {
            "norm": "M converges to 0 as a matrix, in operator norm",
            "entries": "Every entry of M converges to 0",
            "kernel": "LoRA's kernel converges to full fine-tuning's",
        },
    ),
    "order-on-data": Statement(
        "At B = 0, on data of dimension d, a layer's LoRA kernel is below its full one if s² σₐ² (√r + √d)² < 1, "
        "but for chance",
        "lorantk.spectra.order_interval",
        "experiments.order.test_one_layer_stays_inside_the_interval_of_the_law",
        {
            "interval": "LoRA's kernel is between s² σₐ² (√r ∓ √d)² times the full one, but for chance (0 if r ≤ d)",
            "order": "Where c₊ is below 1 beyond fluctuations, LoRA's kernel is below full fine-tuning's",
        },
    ),
    "order-in-training": Statement(
        "At every step LoRA's kernel is below the full one at the same weights where s²(‖A‖² + ‖B‖²) is at most 1",
        "lorantk.spectra.order_certificate",
        "experiments.certificate.test_the_ratio_never_exceeds_the_certificate",
    ),
    "kernel-scale": Statement(
        "At B = 0, in the mean over A, a layer's LoRA kernel is s² r σₐ² times its full one",
        "lorantk.spectra.kernel_scale",
        "experiments.adam.test_the_mean_kernel_over_draws_has_the_scale_of_the_law",
        {
            "mean": "At B = 0, in the mean over A, a layer's LoRA kernel is s² r σₐ² times its full one",
            "steps": "The first step lowers the loss as s² r σₐ² under SGD and as s r σₐ under Adam",
        },
    ),
    "adam-kernel": Statement(
        "Adam's step moves the outputs by a preconditioned kernel, its first step by signs, with s once",
        "experiments.adam.predicted_movement",
        "experiments.adam.test_the_next_step_of_adamw_is_predicted_to_first_order",
        {
            "step": "Adam's next step moves the outputs by the preconditioned kernel and the first moment",
            "signs": "Its first step is that of sign descent",
            "scaling": "s enters the first step once under Adam and twice under SGD",
        },
    ),
    "thm-ib": Statement(
        "LoRA has no more information bits than full fine-tuning where M ≤ 0",
        "lorantk.spectra.information_bits",
        "lorantk.counterexamples.test_thm_ib_more_bits_with_fewer_eigenvalues",
        {
            "sum": "With half the sum of the eigenvalues, as printed last",
            "bits": "With half the logarithm of the pseudo-determinant, as printed first",
            "training": "At every B, as 'always' says",
        },
    ),
    "thm-renyi": Statement(
        "LoRA has no more Rényi entropy than full fine-tuning where M ≤ 0",
        "lorantk.spectra.renyi_entropy",
        "lorantk.counterexamples.test_thm_renyi_is_reversed_above_order_one",
        {
            "below": "At orders below 1",
            "above": "At orders above 1",
            "shannon": "At order 1, for normalised spectra",
        },
    ),
    "premise": Statement(
        "PEFT's defaults meet the premise of the theorems, the paper's own configuration does not",
        "lorantk.spectra.nsd_variance_bound",
        "lorantk.spectra.test_probability_of_semidefiniteness_matches_draws",
        {
            "default": "Under PEFT's defaults M is negative semi-definite, in wide layers",
            "paper": "At the paper's r = 8, α = 16 it is not",
        },
    ),
    "direction": Statement(
        "Where M ≤ 0, LoRA's gradients move the way that both of the paper's conclusions require",
        "lorantk.attacks.gradient_alignment",
        "lorantk.counterexamples.test_direction_smaller_inner_products_for_every_adversary",
        {
            "untargeted": "LoRA's inner products with untargeted poison are larger, as its weakness there requires",
            "backdoor": "LoRA's inner products with a backdoor's samples are larger, as its strength there requires",
            "influence": "A backdoor's samples have less influence under LoRA, which it needs for its effect",
            "search": "In the last layer at rank 1 clean gradients leave a poisoned one no part of its own",
            "null": "A trigger in a null direction of A stays out of that layer's gradient of B at the start",
            "unseen": "A trigger shows less under LoRA than under full fine-tuning, next to the input that carries it",
        },
    ),
    "why-it-matters": Statement(
        "LoRA's gradients are random projections: cosines gain noise of order 1/√r",
        "lorantk.attacks.gradient_alignment",
        "lorantk.search.test_cosines_of_orthogonal_pairs_follow_the_exact_law",
        {
            "law": "The cosine of an orthogonal pair has the mean absolute value Γ(r/2)/(√π Γ((r+1)/2))",
            "digits": "On digits the error of the cosine falls as 1/√r if all layers share r σₐ² s²",
            "cotangents": "At rank 1 a layer's gradients may be orthogonal all the same, through their cotangents",
        },
    ),
}
"""Every statement that must carry a claim, in the order of the poster; ours come last."""

FINDINGS = {
    "finding-1": "Against full fine-tuning, LoRA loses more to untargeted poisoning and gives less way to backdoors",
    "finding-2": "A higher rank resists untargeted poisoning better and backdoors worse",
    "finding-3": "The variance that A starts with changes how robust LoRA is",
    "finding-4": "Against backdoors the lowest rank is best, as long as clean accuracy holds",
    "finding-5": "A smaller variance of A makes LoRA more robust",
}
"""Id -> the finding in our words, in the order of the poster."""

HALVES = {id: ("backdoor",) if id == "finding-4" else ("flips", "backdoor") for id in FINDINGS}
"""Id -> the attacks that the finding speaks of."""

SOURCES = ("published", "digits", "text")
"""Sources of evidence on a finding: the paper's numbers, our networks on digits, our encoder on text."""
