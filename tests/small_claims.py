"""Every claim of chapters 1 to 10 and 15 to 17 at a size that takes a second or so, as a function of the seed."""

from functools import lru_cache

from checks import (
    alignment,
    attention,
    data_order,
    definitions,
    entropy,
    fisher_information,
    infinite_width,
    information_order,
    lazy,
    lora_kernel,
    matrix_m,
    optimizer,
    training_order,
)

CORNER = [54, 55, 62, 63]


@lru_cache(1)
def attacks(seed):
    return alignment.claims(seed, 32, 16, [1, 16], 4, 240, 10, 0, CORNER)


@lru_cache(1)
def wide(seed):
    return infinite_width.claims(seed, 3, 2.0, [32, 64, 256], 8, 4, 1)


@lru_cache(1)
def information(seed):
    return information_order.claims(information_order.random_cases(40, seed))


def lazy_or_not(seed):
    runs = lazy.fine_tune(seed, [32, 256], [1, 4], 6, 1, 0.1, 50)
    return lazy.ntk_constant_lora(seed, runs, [32, 256], [1, 4], [32, 128, 512])


DETERMINED = {
    "eq-1": lambda seed: definitions.eq_1(seed, 32, 4, 6),
    "eq-2": lambda seed: definitions.eq_2(seed, 32, 4, 8),
    "eq-3": lambda seed: attacks(seed)["eq-3"],
    "eq-4": lambda seed: attacks(seed)["eq-4"],
    "thm-fisher": lambda seed: fisher_information.thm_fisher(seed, 2, [2, 8], 6, 4),
    "eq-6": lambda seed: entropy.eq_6(seed, 32, 12),
    "eq-7": lambda seed: entropy.eq_7(seed, 32, 12),
    "thm-relation": lambda seed: lora_kernel.thm_relation(seed, 32, 4, 2.0),
    "thm-relation-attention": lambda seed: attention.thm_relation_attention(seed, 2, 2.0, 16, 2, 3),
    "order-in-training": lambda seed: training_order.order_in_training(seed, 16, 4, 20, 1, [0, 10]),
    "adam-kernel": lambda seed: optimizer.adam_kernel(seed, 16, 4, [1e-3, 1e-5]),
}
"""Claims whose checks leave nothing to chance but round-off."""

CHANCE = {
    "thm-nsd": lambda seed: matrix_m.thm_nsd(seed, 256, 0.99, [64, 256], 120),
    "cor-ideal": lambda seed: matrix_m.cor_ideal(seed, [32, 64, 128]),
    "premise": lambda seed: matrix_m.premise(seed, 256, [1, 4, 8, 64, 256]),
    "lem-lora-ntk": lambda seed: lora_kernel.lem_lora_ntk(seed, 32, 8, 2.0, 128, 60),
    "ntk-limit-lora": lambda seed: lora_kernel.ntk_limit_lora(seed, [64, 512], [4, 16], 60),
    "eq-8": lambda seed: wide(seed)[0],
    "ntk-limit": lambda seed: wide(seed)[1],
    "eq-9": lambda seed: infinite_width.eq_9(seed, [64, 256], 12, 2.0),
    "ntk-constant": lambda seed: infinite_width.ntk_constant(seed, 4, 3, [32, 128, 512], 2.0, 0.5, 40, 2),
    "ntk-constant-lora": lazy_or_not,
    "direction": lambda seed: attacks(seed)["direction"],
    "why-it-matters": lambda seed: attacks(seed)["why-it-matters"],
    "thm-ib": lambda seed: information(seed)[0],
    "thm-renyi": lambda seed: information(seed)[1],
    "order-on-data": lambda seed: data_order.order_on_data(seed, 24, 0.99, 8, 3, 4, [1024], [4]),
    "kernel-scale": lambda seed: optimizer.kernel_scale_claim(seed, 16, 4, 8.0, 5, [1, 16]),
}
"""Claims with a draw in them, whose checks may miss by chance."""

CLAIMS = DETERMINED | CHANCE

RANDOM = [("eq-8", "ntk-limit"), ("direction", "why-it-matters"), ("thm-ib", "thm-renyi")]
RANDOM += [(id,) for id in CHANCE if not any(id in ids for ids in RANDOM)]
"""The random claims; those that are computed together stand together."""
