"""Spectra and their summaries against textbook formulas and other libraries."""

import itertools
import math

import mpmath
import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import gaussian, seeds

from lorantk import (
    LoRA,
    cosine_law,
    delta_matrix,
    information_bits,
    is_negative_semidefinite,
    kernel_scale,
    marchenko_pastur_edges,
    mlp,
    nsd_variance_bound,
    order_certificate,
    order_interval,
    renyi_entropy,
)
from lorantk.spectra import marchenko_pastur_density, nsd_probability, order_doubt

spectra = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12).map(lambda v: torch.tensor(v, dtype=torch.float64))


@given(seeds, st.integers(1, 6), st.integers(0, 4), st.floats(0.2, 3))
def test_delta_matrix_has_the_singular_values_of_A(seed, rank, extra, scaling):
    A = gaussian(rank, rank + extra, seed=seed)
    expected = torch.cat([-torch.ones(extra, dtype=A.dtype), (scaling * torch.linalg.svdvals(A)).flip(0) ** 2 - 1])
    assert torch.allclose(torch.linalg.eigvalsh(delta_matrix(A, scaling)), expected.sort().values, atol=1e-11)


@pytest.mark.parametrize("share", [1 / 16, 1 / 2, 1])
def test_spectrum_fills_the_marchenko_pastur_interval(share):
    n = 800
    A = LoRA(int(share * n), 0.7 / n, layers=["0"]).sample(mlp([n, 1]).double(), 0)["0"]
    spectrum = torch.linalg.svdvals(A) ** 2
    low, high = marchenko_pastur_edges(len(A), n, 0.7 / n)
    # edges fluctuate on the scale n^(-2/3) = 0.012 relative to the interval
    assert abs(spectrum.max() - high) < 0.03 * high
    assert abs(spectrum.min() - low) < 0.03 * high

    def cdf(t):
        return scipy.integrate.quad(
            lambda u: marchenko_pastur_density(torch.tensor([u]), len(A), n, 0.7 / n).item(),
            low,
            max(low, min(t, high)),
        )[0]

    # eigenvalues are rigid: the median is off by about one spacing, 1 / r; the lower of two middle ones by half of one
    assert abs(cdf(spectrum.median().item()) - 0.5) < 2 / len(A)
    assert abs(cdf(high) - 1) < 1e-3


@given(st.integers(1, 500), st.integers(0, 500))
def test_variance_bound_puts_the_upper_edge_at_one(rank, extra):
    width = rank + extra
    assert marchenko_pastur_edges(rank, width, nsd_variance_bound(rank, width))[1] == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(("rank", "width"), [(20, 40), (5, 60)])
def test_probability_of_semidefiniteness_matches_draws(rank, width):
    tops = torch.stack([torch.linalg.svdvals(gaussian(rank, width, seed=s))[0] ** 2 for s in range(1000)])
    for quantile in (0.2, 0.5, 0.8):
        variance = 1 / tops.quantile(quantile).item()
        # binomial error 0.016, four of them; the limit law is off by up to about 0.03 at these sizes
        assert abs(nsd_probability(rank, width, variance) - quantile) < 0.1


def test_probability_is_never_below_the_guarantee():
    for ratio in (0.5, 0.8, 0.95):
        variance = ratio * nsd_variance_bound(64, 128)
        t = variance**-0.5 - 128**0.5 - 64**0.5
        assert nsd_probability(64, 128, variance) >= 1 - math.exp(-(t**2) / 2)


def test_printed_theorem_has_its_counterexamples():
    A = LoRA(512, "0.99/n", layers=["0"]).sample(mlp([1024, 1]).double(), 0)["0"]
    M = delta_matrix(A)
    assert 1.7 < torch.linalg.eigvalsh(M)[-1] < 2.0
    assert not is_negative_semidefinite(M, 0.1)
    by_hand = delta_matrix(torch.tensor([[1.2]], dtype=torch.float64))  # n = r = 1, a draw of N(0, 0.99)
    assert by_hand.item() == pytest.approx(0.44)


def test_negative_semidefiniteness_uses_the_tolerance():
    M = torch.diag(torch.tensor([-1.0, 0.5e-8], dtype=torch.float64))
    assert is_negative_semidefinite(M, 1e-8)
    assert not is_negative_semidefinite(M, 1e-9)


@given(seeds, st.integers(1, 6), st.floats(1e-3, 10))
def test_information_bits_are_half_a_log_determinant(seed, n, tau):
    G = gaussian(n, n + 2, seed=seed)
    K = G @ G.T
    eigenvalues = torch.linalg.eigvalsh(K)
    assert information_bits(eigenvalues).item() == pytest.approx(
        0.5 * torch.linalg.slogdet(K)[1].item(), rel=1e-7, abs=1e-7
    )
    regularised = 0.5 * torch.linalg.slogdet(torch.eye(n, dtype=K.dtype) + K / tau)[1]
    assert information_bits(eigenvalues, regularization=tau).item() == pytest.approx(
        regularised.item(), rel=1e-9, abs=1e-9
    )


def test_threshold_decides_what_counts_as_zero():
    eigenvalues = torch.tensor([1.0, 1e-6, 1e-20], dtype=torch.float64)
    assert information_bits(eigenvalues).item() == pytest.approx(0.5 * math.log(1e-6))
    assert information_bits(eigenvalues, rtol=1e-3).item() == 0
    assert information_bits(torch.zeros(3, dtype=torch.float64)).item() == -math.inf
    assert information_bits(torch.zeros(3, dtype=torch.float64), regularization=1.0).item() == 0


@given(spectra)
def test_entropy_at_its_special_orders_is_the_limit(eigenvalues):
    p = eigenvalues / eigenvalues.sum()
    shannon = renyi_entropy(eigenvalues, 1, normalize=True).item()
    assert shannon == pytest.approx(scipy.stats.entropy(p.numpy()), abs=1e-12)
    for beside in (1 - 1e-6, 1 + 1e-6):
        assert renyi_entropy(eigenvalues, beside, normalize=True).item() == pytest.approx(shannon, abs=1e-4)
    assert renyi_entropy(eigenvalues, 0).item() == pytest.approx(math.log(len(eigenvalues)))
    assert renyi_entropy(eigenvalues, math.inf).item() == pytest.approx(-math.log(eigenvalues.max().item()))
    assert renyi_entropy(eigenvalues, 1e4, normalize=True).item() == pytest.approx(
        renyi_entropy(eigenvalues, math.inf, normalize=True).item(), abs=2e-3
    )


@given(spectra)
def test_normalised_entropy_falls_with_its_order(eigenvalues):
    values = [renyi_entropy(eigenvalues, a, normalize=True).item() for a in (0, 0.3, 1, 2, 7.5, math.inf)]
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(values))


@given(spectra)
def test_unnormalised_formula_diverges_at_order_one_unless_the_sum_is_one(eigenvalues):
    total = eigenvalues.sum().item()
    value = renyi_entropy(eigenvalues, 1).item()
    if abs(total - 1) > 1e-9:
        assert value == math.copysign(math.inf, total - 1)
    assert renyi_entropy(eigenvalues / total, 1).item() == pytest.approx(
        renyi_entropy(eigenvalues, 1, normalize=True).item(), abs=1e-12
    )


@given(st.integers(1, 30), st.floats(1e-3, 1e3), st.sampled_from((0, 0.5, 1, 2, math.inf)))
def test_flat_spectrum_has_log_rank(rank, level, alpha):
    flat = torch.full((rank,), level, dtype=torch.float64)
    assert renyi_entropy(flat, alpha, normalize=True).item() == pytest.approx(math.log(rank), abs=1e-10)


GOOD = torch.tensor([1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: delta_matrix(gaussian(3, 2, seed=0)), ValueError, "A must have rank at most its fan-in 2"),
        (lambda: delta_matrix(GOOD), ValueError, "A must have 2 dimension"),
        (lambda: delta_matrix(gaussian(2, 3, seed=0), -1.0), ValueError, "scaling must be finite and above 0"),
        (lambda: marchenko_pastur_edges(5, 4, 1.0), ValueError, "rank must be at most width = 4"),
        (lambda: marchenko_pastur_edges(2, 4, -1.0), ValueError, "variance must be finite and at least 0"),
        (lambda: marchenko_pastur_density(GOOD, 2, 4, 0.0), ValueError, "variance must be finite and above 0"),
        (lambda: nsd_probability(1, 1, 1.0), ValueError, "width must be at least 2"),
        (lambda: nsd_probability(2, 4, 0.0), ValueError, "variance must be finite and above 0"),
        (lambda: nsd_variance_bound(0, 4), ValueError, "rank must be at least 1"),
        (lambda: is_negative_semidefinite(gaussian(2, 3, seed=0), 0.0), ValueError, "M must be square"),
        (lambda: is_negative_semidefinite(gaussian(2, 2, seed=0), 0.0), ValueError, "M must be symmetric"),
        (lambda: is_negative_semidefinite(torch.eye(2), -1.0), ValueError, "tol must be finite and at least 0"),
        (lambda: information_bits(-GOOD), ValueError, "eigenvalues must not be negative"),
        (lambda: information_bits(GOOD, rtol=-1.0), ValueError, "rtol must be finite"),
        (lambda: information_bits(GOOD, rtol=0.1, regularization=1.0), ValueError, "rtol must be None"),
        (lambda: information_bits(GOOD, regularization=0.0), ValueError, "regularization must be finite and above 0"),
        (lambda: information_bits(torch.tensor([1, 2])), TypeError, "eigenvalues must be a floating point"),
        (lambda: information_bits(GOOD * math.nan), ValueError, "eigenvalues must be finite"),
        (lambda: renyi_entropy(GOOD, -1.0), ValueError, "alpha must be finite and at least 0"),
        (lambda: renyi_entropy(GOOD * 0, 2), ValueError, "eigenvalues must hold a positive one"),
        (lambda: renyi_entropy(GOOD[:0], 2), ValueError, "eigenvalues must hold at least one"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@given(st.integers(1, 300), st.floats(-1, 1))
def test_mean_cosine_is_the_hypergeometric_function(rank, cosine):
    ratio = math.exp(2 * (math.lgamma((rank + 1) / 2) - math.lgamma(rank / 2)))
    square = mpmath.mpf(cosine) ** 2  # scipy's function loses eight digits beside 1
    expected = float(cosine * 2 / rank * ratio * mpmath.hyp2f1(0.5, 0.5, rank / 2 + 1, square))
    mean, absolute = cosine_law(rank, cosine)
    assert mean == pytest.approx(expected, abs=1e-9)
    assert abs(mean) <= absolute + 1e-12 <= 1 + 2e-12
    assert cosine_law(rank, -cosine) == pytest.approx((-mean, absolute), abs=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3, 8])
@pytest.mark.parametrize("cosine", [0.0, 0.3, -0.8])
def test_cosines_of_gaussian_draws_follow_the_law(rank, cosine):
    draws = 40_000
    first, other = gaussian(2, draws, rank, seed=rank)
    second = cosine * first + (1 - cosine**2) ** 0.5 * other
    values = torch.nn.functional.cosine_similarity(first, second)
    for sample, law in zip((values, values.abs()), cosine_law(rank, cosine), strict=True):
        assert abs(sample.mean() - law) < 5 * sample.std() / draws**0.5 + 1e-9  # 5 standard errors: 6e-7 each


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 3), st.floats(0.1, 3))
def test_order_interval_is_that_of_the_scaled_edges(rank, dimension, variance, scaling):
    low, high = order_interval(rank, dimension, variance, scaling)
    assert high == pytest.approx(scaling**2 * variance * (rank + dimension + 2 * (rank * dimension) ** 0.5))
    assert low + high == pytest.approx(2 * scaling**2 * variance * (rank + dimension)) or rank < dimension
    assert low <= kernel_scale(rank, variance, scaling) * (1 + 1e-12) <= high * (1 + 1e-12) + 1e-12
    assert (low == 0) == (rank <= dimension or variance == 0) or low < 1e-9


@pytest.mark.parametrize("slack", [-1, 0, 0.5, 2])
def test_draws_break_the_order_no_more_often_than_the_bound_says(slack):
    rank, dimension, draws = 4, 9, 2000
    sigma = 1 / (rank**0.5 + dimension**0.5 + slack)
    bound = order_doubt(rank, dimension, (sigma / 2) ** 2, scaling=2.0)
    norms = torch.linalg.matrix_norm(sigma * gaussian(draws * rank, dimension, seed=0).view(draws, rank, -1), 2)
    assert bound == pytest.approx(math.exp(-(max(slack, 0) ** 2) / 2))
    assert (norms > 1).double().mean() <= bound + 4 * (bound / draws) ** 0.5


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 3), seeds)
def test_certificate_is_the_norm_of_the_operator_between_the_kernels(rank, fan_in, fan_out, scaling, seed):
    A, B = gaussian(rank, fan_in, seed=seed), gaussian(fan_out, rank, seed=seed + 1)
    P = torch.kron(torch.eye(fan_out).double(), A.T @ A) + torch.kron(B @ B.T, torch.eye(fan_in).double())
    assert order_certificate(A, B, scaling) == pytest.approx(scaling**2 * torch.linalg.eigvalsh(P)[-1].item())
    assert order_certificate(A, None, scaling) <= order_certificate(A, B, scaling)


@given(st.lists(st.floats(1e-3, 1), min_size=2, max_size=6), st.floats(-0.2, 0.2), st.booleans())
def test_renyi_entropy_is_exact_on_both_sides_of_order_one(weights, step, single):
    p = torch.tensor(weights, dtype=torch.float32 if single else torch.float64)
    with mpmath.workdps(60):
        exact = [mpmath.mpf(v) for v in p.double().tolist()]
        exact = [v / mpmath.fsum(exact) for v in exact]
    for alpha in (1 + step, 1 + step * 1e-4, 1 + step * 1e-8):
        with mpmath.workdps(60):
            a = mpmath.mpf(alpha)
            shannon = -mpmath.fsum(v * mpmath.log(v) for v in exact)
            wanted = shannon if alpha == 1 else mpmath.log(mpmath.fsum(v**a for v in exact)) / (1 - a)
        assert renyi_entropy(p, alpha, normalize=True).item() == pytest.approx(
            float(wanted), rel=2e-6 if single else 1e-11
        )


def test_renyi_entropy_at_the_order_that_failed_in_single_precision():
    p = torch.softmax(gaussian(50, seed=3), 0)
    for dtype in (torch.float32, torch.float64):
        assert renyi_entropy(p.to(dtype), 1 + 1e-8).item() == pytest.approx(
            torch.special.entr(p).sum().item(), rel=1e-5
        )


def test_bits_are_nats_in_another_base():
    spectrum = torch.tensor([4.0, 2.0, 0.5], dtype=torch.float64)
    assert information_bits(spectrum, base=2).item() == pytest.approx(1.0)
    assert information_bits(spectrum).item() == pytest.approx(math.log(2))
    assert information_bits(spectrum, base=2, regularization=1.0).item() == pytest.approx(0.5 * math.log2(5 * 3 * 1.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: order_interval(0, 3, 0.1), "rank must be at least 1"),
        (lambda: order_interval(2, 0, 0.1), "dimension must be at least 1"),
        (lambda: order_interval(2, 3, -0.1), "variance must be finite and at least 0"),
        (lambda: order_doubt(2, 3, 0.0), "variance must be finite and above 0"),
        (lambda: kernel_scale(2, 0.1, 0.0), "scaling must be finite and above 0"),
        (lambda: order_certificate(torch.ones(2, 3), torch.ones(4, 3)), "B must have as many columns"),
        (lambda: order_certificate(torch.ones(2, 3) * math.nan), "A must be finite"),
        (lambda: cosine_law(2, 1.5), "cosine must be at most 1"),
        (lambda: cosine_law(2, math.nan), "cosine must be finite"),
        (lambda: information_bits(torch.ones(2), base=1.0), "base must be finite and above 1"),
    ],
)
def test_bad_arguments_of_the_laws_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
