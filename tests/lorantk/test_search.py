"""Searches for counterexamples: every statement that survives is attacked with random architectures and data.

Widths from 2 to 64, one to four layers, four activations, two parametrisations, ranks, variances and scalings at
random; data with duplicate, zero, antiparallel and collinear inputs. Each test records the number of cases tried.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import batches, gaussian, relative, seeds

from experiments.training import gradient_descent
from lorantk import (
    Adapter,
    LayerFactors,
    LoRA,
    attach,
    delta_matrix,
    fisher_spectrum,
    fisher_trace,
    infinite_width_ntk,
    information_bits,
    lora_ntk_sweep,
    mlp,
    ntk,
    renyi_entropy,
)
from lorantk.fisher import LOSSES, loss_gradients
from lorantk.models import ACTIVATIONS, SelfAttentionBlock

CASES = 150
search = settings(max_examples=CASES, suppress_health_check=list(HealthCheck))


@st.composite
def situations(draw, outputs=1):
    """A network of any width from 2 to 64, a batch for it, and adapters with M <= 0 in every layer."""
    widths = draw(st.lists(st.integers(2, 64), min_size=1, max_size=4))
    seed = draw(seeds)
    activation, parametrization = draw(st.sampled_from(sorted(ACTIVATIONS))), draw(st.sampled_from(("ntk", "standard")))
    model = mlp([*widths, outputs], activation, parametrization, draw(st.floats(0.5, 3)), seed=seed).double()
    scaling, shrink = draw(st.floats(0.25, 4)), draw(st.floats(0.05, 1))
    drawn = LoRA(draw(st.integers(1, min(widths))), 1.0).sample(model, seed)
    adapters = {
        n: Adapter(A * shrink / (scaling * torch.linalg.matrix_norm(A, 2)), None, scaling) for n, A in drawn.items()
    }
    return model, draw(batches(widths[0])), adapters


def spectra(model, x, adapters):
    full, lora = (torch.linalg.eigvalsh(ntk(m, x, output="trace")) for m in (model, attach(model, adapters)))
    scale = full.max().clamp(min=1e-300)
    return (full / scale).clamp(min=0), (lora / scale).clamp(min=0)


@pytest.fixture
def tried(record_property):
    """Counts the cases and records the count; a search that tried too few has failed."""
    cases = []
    yield cases
    record_property("cases", len(cases))
    assert len(cases) >= CASES // 2


@search
@given(situation=situations())
def test_relation_and_loewner_order_survive(tried, situation):
    model, x, adapters = situation
    factors = LayerFactors.from_model(model, x)
    correction = torch.zeros(len(x), len(x), dtype=torch.float64)
    for name, adapter in adapters.items():
        a, g = factors.activations[name][:, 0], factors.cotangents[name][:, 0, 0]
        correction += (a @ delta_matrix(adapter.A, adapter.scaling) @ a.T) * (g @ g.T)
    full = ntk(model, x, output="trace")
    lora = ntk(attach(model, adapters), x, method="jacobian", output="trace")
    size = full.abs().max().clamp(min=1e-300)
    assert (lora - full - correction).abs().max() / size < 1e-10
    assert torch.linalg.eigvalsh((full - lora) / size)[0] > -1e-10
    tried.append(model)


@search
@given(situation=situations())
def test_regularised_bits_and_entropies_stay_ordered(tried, situation):
    full, lora = spectra(*situation)
    assert (full - lora).min() > -1e-12
    for tau in (1e-4, 1e-2, 1.0):
        assert information_bits(full, regularization=tau) >= information_bits(lora, regularization=tau) - 1e-7
    if lora.max() > 1e-9:
        for alpha in (0.3, 0.7, 0.95):
            assert renyi_entropy(full, alpha) >= renyi_entropy(lora, alpha) - 1e-2  # tiny eigenvalues to a small power
        for alpha in (1.05, 2.0, math.inf):
            assert renyi_entropy(full, alpha) <= renyi_entropy(lora, alpha) + 1e-7
    tried.append(full)


@search
@given(situation=situations())
def test_bits_are_ordered_where_the_ranks_agree(tried, situation):
    full, lora = spectra(*situation)
    ranks = [int((s > 1e-8).sum()) for s in (full, lora)]
    if ranks[0] == ranks[1] > 0:
        assert information_bits(full, rtol=1e-8) >= information_bits(lora, rtol=1e-8 / lora.max().item()) - 1e-4
    tried.append(full)


@search
@given(situation=situations(outputs=3), seed=seeds, loss=st.sampled_from(("cross_entropy", "squared_error")))
def test_fisher_is_the_weighted_kernel_at_every_width(tried, situation, seed, loss):
    model, x, adapters = situation
    y = gaussian(len(x), 3, seed=seed) if loss == "squared_error" else torch.arange(len(x)) % 3
    for tuned in (model, attach(model, adapters)):
        dense = torch.linalg.svdvals(loss_gradients(tuned, x, y, loss)).square() / len(x)
        spectrum = fisher_spectrum(tuned, x, y, loss)
        trace = fisher_trace(tuned, x, y, loss)
        size = dense.max().clamp(min=1e-300)
        assert (dense[: len(spectrum)] - spectrum).abs().sum() / size < 1e-9
        assert dense[len(spectrum) :].sum() / size < 1e-9
        assert abs(trace - dense.sum()) / size < 1e-9
    tried.append(model)


@search
@given(rank=st.integers(1, 8), seed=seeds, scaling=st.floats(0.3, 3), n=st.integers(1, 3), length=st.integers(1, 5))
def test_relation_and_loewner_order_survive_in_attention(tried, rank, seed, scaling, n, length):
    block, tokens = SelfAttentionBlock(8, 12, 2, seed).double(), gaussian(n, length, 8, seed=seed + 9)
    factors = LayerFactors.from_model(block, tokens)
    for name, A in LoRA(rank, 0.5).sample(block, seed).items():
        a, g = factors.activations[name], factors.cotangents[name]
        formula = torch.einsum("nti,ij,muj,ncto,mcuo->nm", a, delta_matrix(A, scaling), a, g, g)
        full = ntk(block, tokens, layers=[name], output="trace")
        change = (
            ntk(attach(block, {name: Adapter(A, None, scaling)}), tokens, method="vector_products", output="trace")
            - full
        )
        assert (formula - change).abs().max() <= 1e-9 * (full.abs().max() + change.abs().max() + 1e-300)
        below = Adapter(A / (scaling * torch.linalg.matrix_norm(A, 2)), None, scaling)
        gap = ntk(block, tokens, layers=[name]) - ntk(attach(block, {name: below}), tokens)
        assert torch.linalg.eigvalsh(gap.flatten(2).flatten(0, 1))[0] >= -1e-10 * full.abs().max()
    tried.append(block)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    variance=st.floats(0.5, 2.5),
    depth=st.integers(1, 4),
)
def test_recursion_and_determinism_survive(data, activation, variance, depth):
    x = data.draw(batches(5))
    limit = infinite_width_ntk(x, depth=depth, activation=activation, weight_variance=variance)
    widths = [5, *[512] * (depth - 1), 1]
    kernels = torch.stack(
        [ntk(mlp(widths, activation, weight_variance=variance, seed=s).double(), x, output="trace") for s in range(16)]
    )
    size = limit.abs().max().clamp(min=1e-300)
    # one draw is off by a few times depth / sqrt(width) = 0.18 at most; the mean of 16 by a quarter of that
    assert (kernels.mean(0) - limit).abs().max() / size < 0.25 * depth / 2
    assert kernels.std(0).max() / size < 0.5 * depth / 2


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(
    seed=seeds, activation=st.sampled_from(sorted(ACTIVATIONS)), loss=st.sampled_from(LOSSES), depth=st.integers(2, 3)
)
def test_full_fine_tuning_moves_its_kernel_less_in_a_wide_network(seed, activation, loss, depth):
    x = gaussian(6, 5, seed=seed)
    y = gaussian(6, 2, seed=seed) if loss == "squared_error" else torch.arange(6) % 2
    drifts = []
    for width in (16, 1024):
        model = mlp([5, *[width] * (depth - 1), 2], activation, seed=seed).double()
        before = ntk(model, x, output="trace")
        trained = gradient_descent(model, x, y, loss, learning_rate=0.1, steps=20)
        drifts.append(((ntk(trained, x, output="trace") - before).norm() / before.norm()).item())
    # 64 times the width: the drift falls by 8 or more in the mean; single draws scatter by a factor of a few
    assert drifts[1] < 0.5 * drifts[0]
    assert drifts[1] < 0.1


@search
@given(seed=seeds, rank=st.integers(2, 40), variance=st.floats(0.01, 5))
def test_cosines_of_orthogonal_pairs_follow_the_exact_law(tried, seed, rank, variance):
    """One pair in a linear layer: |cos| does not depend on the variance and has the right mean over draws."""
    x = torch.eye(48, dtype=torch.float64)[:2]
    model = mlp([48, 1], "linear").double()
    unit, scaled = (
        lora_ntk_sweep(model, x, loras=[LoRA(rank, v)], seeds=range(seed, seed + 60), output="trace")[0]
        for v in (1.0, variance)
    )
    cosines = [(K[:, 0, 1] / (K[:, 0, 0] * K[:, 1, 1]).sqrt()).abs() for K in (unit, scaled)]
    assert relative(cosines[0], cosines[1]) < 1e-12
    exact = math.exp(math.lgamma(rank / 2) - math.lgamma((rank + 1) / 2)) / math.pi**0.5
    assert (
        abs(cosines[0].mean().item() - exact) < 6 * (1 / rank / 60) ** 0.5
    )  # the standard deviation is below 1 / sqrt(r)
    tried.append(rank)
