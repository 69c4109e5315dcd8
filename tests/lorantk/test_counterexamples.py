"""The smallest counterexample to each statement that fails as it is printed, small enough to be checked by hand."""

import math

import pytest
import torch

from experiments.training import gradient_descent
from lorantk import (
    Adapter,
    LoRA,
    attach,
    delta_matrix,
    gradient_alignment,
    information_bits,
    is_negative_semidefinite,
    mlp,
    ntk,
    renyi_entropy,
)


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def spectrum(*values):
    return torch.tensor(values, dtype=torch.float64)


TWO_INPUTS = matrix([1.0, 0.0], [0.0, 0.1])  # orthogonal, squared norms 1 and 0.01
LINEAR = mlp([2, 1], "linear", "standard").double()


def kernels(A):
    """Kernels of one linear layer on the two inputs: full fine-tuning's is diag(1, 0.01)."""
    assert is_negative_semidefinite(delta_matrix(A), 1e-12)
    return ntk(LINEAR, TWO_INPUTS, output="trace"), ntk(attach(LINEAR, {"0": A}), TWO_INPUTS, output="trace")


def test_eq_6_the_printed_sum_is_not_half_the_log_determinant():
    assert information_bits(spectrum(1.0)).item() == 0.0
    assert 0.5 * spectrum(1.0).sum().item() == 0.5


def test_eq_7_infinity_gives_minus_the_logarithm_and_order_one_diverges():
    assert renyi_entropy(spectrum(2.0), math.inf).item() == pytest.approx(-math.log(2))
    assert renyi_entropy(spectrum(2.0), 1 - 1e-9).item() > 1e8


def test_thm_nsd_one_by_one():
    assert delta_matrix(matrix([1.2])).item() > 0  # |A| > 1 has probability 0.31 at variance 0.99, n = r = 1


def test_cor_ideal_the_matrix_stays_away_from_zero():
    n = 64
    M = delta_matrix(LoRA(n, "1/n").sample(mlp([n, 1]).double(), 0)["0"])
    # E |M|_F^2 / n = 1 + 1/n at r = n, variance 1/n; its relative standard deviation is about 3 / n
    assert M.square().sum().item() / n == pytest.approx(1 + 1 / n, rel=0.2)


def test_ntk_limit_lora_one_row_is_as_random_at_any_width():
    for n in (4, 4096):
        x = torch.ones(1, n, dtype=torch.float64)
        values = torch.stack([ntk(LoRA(1, 1.0).attach(mlp([n, 1]).double(), s), x)[0, 0, 0, 0] for s in range(200)])
        # chi-square with one degree of freedom: relative deviation sqrt(2), known to sqrt(14 / (4 * 200)) = 0.13 of it
        assert (values.std() / values.mean()).item() == pytest.approx(2**0.5, rel=0.4)


def test_ntk_constant_lora_the_kernel_of_A_does_not_depend_on_the_width():
    shares = []
    for n in (2, 512):
        x = torch.zeros(1, n, dtype=torch.float64)
        x[0, 0] = n**0.5
        model = mlp([n, 1]).double()
        model[0].weight.data.zero_()
        A = torch.eye(1, n, dtype=torch.float64)
        start = attach(model, {"0": A})
        after = gradient_descent(start, x, matrix([1.0]), "squared_error", learning_rate=0.3)
        shares.append((ntk(after, x, layers=["0.down"]) / ntk(start, x)).item())
    assert shares[0] == pytest.approx(2 * 0.3**2)  # weight variance times learning rate squared, by hand
    assert shares[1] == pytest.approx(shares[0])


def test_thm_ib_more_bits_with_fewer_eigenvalues():
    full, lora = kernels(matrix([1.0, 0.0]))
    assert torch.allclose(lora, torch.diag(spectrum(1.0, 0.0)))
    bits = [information_bits(torch.linalg.eigvalsh(K)).item() for K in (full, lora)]
    assert bits == pytest.approx([0.5 * math.log(0.01), 0.0])


def test_thm_renyi_a_flat_spectrum_wins_once_normalised():
    full, lora = kernels(torch.diag(spectrum(0.1, 1.0)))
    assert torch.allclose(lora, torch.diag(spectrum(0.01, 0.01)))
    entropies = [renyi_entropy(torch.linalg.eigvalsh(K), 1, normalize=True).item() for K in (full, lora)]
    assert entropies[1] == pytest.approx(math.log(2))
    assert entropies[0] < 0.1


def test_thm_renyi_is_reversed_above_order_one():
    full, lora = kernels(torch.diag(spectrum(0.5, 0.5)))
    two = [renyi_entropy(torch.linalg.eigvalsh(K), 2).item() for K in (full, lora)]
    assert two[1] == pytest.approx(two[0] + 2 * math.log(4))  # eigenvalues a quarter: sum of squares a sixteenth


def test_direction_smaller_inner_products_for_every_adversary():
    model, x = mlp([2, 2], "linear").double(), matrix([1.0, 0.0])
    clean, poisoned = (x, torch.tensor([0])), (x, torch.tensor([1]))
    adapters = {"0": Adapter(matrix([0.5, 0.0]))}
    full, lora = (gradient_alignment(m, clean, poisoned).item() for m in (model, attach(model, adapters)))
    assert lora == pytest.approx(full / 4)
    cosines = [gradient_alignment(m, clean, poisoned, cosine=True).item() for m in (model, attach(model, adapters))]
    assert cosines[0] == pytest.approx(cosines[1])
