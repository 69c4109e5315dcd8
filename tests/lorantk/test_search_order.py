"""Searches for counterexamples to the order on the data and to its certificate, on the edges of both.

Networks of one to three layers with every activation, either parametrisation, one to three positions; layers of 1 to 6
units, or 3 to 16 where a law of size is at stake; from 1 to twice as many inputs as units, which span any dimension;
ranks up to the fan-in, A and B of any size.
"""

import copy
import itertools

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from strategies import gaussian, seeds
from torch import nn

from checks import autograd
from experiments.order import by_layer, kernel_ratios, matrix, span
from lorantk import Adapter, LayerFactors, LoRA, attach, mlp, ntk, order_certificate, order_interval
from lorantk.models import ACTIVATIONS

CASES = 200
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]  # a failure is told as it was found: to shrink it takes minutes
search = settings(max_examples=CASES, suppress_health_check=list(HealthCheck), phases=PHASES)


class Pooled(nn.Sequential):
    """A fully connected network at each of several positions, (n, T, fan_in), averaged over them."""

    def forward(self, x):
        return super().forward(x).mean(1)


@st.composite
def networks(draw, deepest=3, smallest=1, largest=6):
    """A network without biases, pooled over positions, whose layers may have one unit."""
    widths = draw(st.lists(st.integers(smallest, largest), min_size=2, max_size=deepest + 1))
    kind = draw(st.sampled_from(sorted(ACTIVATIONS)))
    parametrization = draw(st.sampled_from(("ntk", "standard")))
    return Pooled(*mlp(widths, kind, parametrization, draw(st.floats(0.5, 3)), seed=draw(seeds)).double())


@st.composite
def data(draw, model):
    """One to twice fan-in inputs whose positions span any number of dimensions; the last may be a zero or a twin."""
    n = model[0].in_features
    count, positions, dimension = draw(st.integers(1, 2 * n)), draw(st.integers(1, 3)), draw(st.integers(1, n))
    seed = draw(seeds)
    x = gaussian(count, positions, dimension, seed=seed) @ gaussian(dimension, n, seed=seed + 1)
    last = draw(st.sampled_from(("plain", "zero", "twin", "opposite")))
    if last != "plain":
        x[-1] = {"zero": 0.0, "twin": 1.0, "opposite": -1.0}[last] * x[0]
    return x


def names(model):
    return [name for name, layer in model.named_children() if isinstance(layer, nn.Linear)]


def merged(model, adapters):
    """The same function as with the adapters, all of it in the weights."""
    whole = copy.deepcopy(model)
    for name, (A, B, scaling) in adapters.items():
        whole.get_parameter(f"{name}.weight").data += scaling * B @ A
    return whole


def lowest(matrix):
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2)[0].item()


@pytest.fixture
def tried(record_property):
    """Collects a ratio a case, whose bound is 1; a search that tried too few, or came nowhere near it, has failed."""
    ratios = []
    yield ratios
    record_property("cases", len(ratios))
    assert len(ratios) >= CASES // 2
    assert max(ratios) > 0.99


@search
@given(st.data())
def test_the_order_holds_where_A_is_below_one_on_the_span_of_the_activations(tried, chosen):
    """A beside the span is of any size: M <= 0 is not needed. Where r >= d, the order holds from below, too."""
    model = chosen.draw(networks())
    x, name = chosen.draw(data(model)), chosen.draw(st.sampled_from(names(model)))
    factors = LayerFactors.from_model(model, x, [name])
    full = matrix(ntk(model, x, layers=[name]))
    if not full.abs().max() > 1e-200:  # all units are dead, and the layer has no gradient
        return
    Q = span(factors, name)  # orthonormal rows (d, fan_in)
    fan_in, rank = Q.shape[1], chosen.draw(st.integers(1, Q.shape[1]))
    A, scaling = gaussian(rank, fan_in, seed=chosen.draw(seeds)), chosen.draw(st.floats(0.1, 10))
    beside = (A - A @ Q.T @ Q) * chosen.draw(st.sampled_from((0.0, 1.0, 100.0)))
    A = A @ Q.T @ Q / torch.linalg.matrix_norm(A @ Q.T, 2) / scaling + beside
    lora = matrix(ntk(attach(model, {name: Adapter(A, None, scaling)}), x, layers=[name]))
    assert lowest(full - lora) >= -1e-9 * full.abs().max()
    if rank >= len(Q):
        floor = torch.linalg.svdvals(scaling * A @ Q.T)[-1] ** 2
        assert lowest(lora - floor * full) >= -1e-9 * full.abs().max()
    tried.append(kernel_ratios(lora, full)[-1].item())


@search
@given(st.data())
def test_the_kernel_of_LoRA_is_the_full_one_behind_P_at_any_B(tried, chosen):
    """J P J^T with P = s^2 (I (x) A^T A + B B^T (x) I) at the merged weights, J by plain autograd and P in full."""
    model = chosen.draw(networks(2))
    x, name = chosen.draw(data(model)), chosen.draw(st.sampled_from(names(model)))
    fan_out, fan_in = model.get_parameter(f"{name}.weight").shape
    rank, seed = chosen.draw(st.integers(1, fan_in)), chosen.draw(seeds)
    sizes, scaling = [10.0 ** chosen.draw(st.integers(-3, 2)) for _ in range(2)], chosen.draw(st.floats(0.1, 10))
    A, B = sizes[0] * gaussian(rank, fan_in, seed=seed), sizes[1] * gaussian(fan_out, rank, seed=seed + 1)
    adapters = {name: Adapter(A, B, scaling)}
    adapted, J = attach(model, adapters), autograd.jacobian(merged(model, adapters), x, [name])
    eyes = torch.eye(fan_out).double(), torch.eye(fan_in).double()
    wanted = J @ (scaling**2 * (torch.kron(eyes[0], A.T @ A) + torch.kron(B @ B.T, eyes[1]))) @ J.T
    found = matrix(ntk(adapted, x, layers=[name]))
    size = wanted.abs().max().clamp(min=1e-200)
    assert (found - wanted).abs().max() <= 1e-9 * size
    tried.append((found.abs().max() / size).item())


@search
@given(st.data())
def test_where_the_certificate_is_one_the_order_holds_at_any_B(tried, chosen):
    """All layers adapted at once, each certificate 1 or below; A and B share it at random, or one has it all."""
    model = chosen.draw(networks())
    x, adapters, worst = chosen.draw(data(model)), {}, 0.0
    for name in names(model):
        fan_out, fan_in = model.get_parameter(f"{name}.weight").shape
        rank, scaling = chosen.draw(st.integers(1, fan_in)), chosen.draw(st.floats(0.1, 10))
        A, B = (gaussian(*shape, seed=chosen.draw(seeds)) for shape in ((rank, fan_in), (fan_out, rank)))
        share = chosen.draw(st.one_of(st.sampled_from((0.0, 1.0)), st.floats(0, 1)))
        certificate = chosen.draw(st.one_of(st.just(1.0), st.floats(0.01, 1)))
        A, B = (m / torch.linalg.matrix_norm(m, 2) / scaling * (part * certificate) ** 0.5
                for m, part in ((A, share), (B, 1 - share)))  # fmt: skip
        adapters[name] = Adapter(A, B, scaling)
        assert order_certificate(A, B, scaling) == pytest.approx(certificate)
    adapted, whole = attach(model, adapters), merged(model, adapters)
    for layers in [*([name] for name in adapters), list(adapters)]:
        full, lora = (matrix(ntk(m, x, layers=layers)) for m in (whole, adapted))
        assert lowest(full - lora) >= -1e-9 * full.abs().max()
        if full.abs().max() > 1e-200:
            worst = max(worst, kernel_ratios(lora, full)[-1].item())
    tried.append(worst)


def test_the_order_on_the_data_ends_where_the_law_of_rank_and_dimension_says(tried):
    """A on d directions is r x d Gaussian: its norm is sqrt(r) + sqrt(d) at most in the mean, with deviation 1 at most.

    One case is 6 deviations beyond with probability exp(-18) at most; a mean of k cases is known to 1 / sqrt(k).
    """
    excess, floors = [], []

    @search
    @given(st.data())
    def collect(chosen):
        model = chosen.draw(networks(smallest=3, largest=16))
        x, name = chosen.draw(data(model)), chosen.draw(st.sampled_from(names(model)))
        factors = LayerFactors.from_model(model, x, [name])
        if not factors.cotangents[name].abs().max() * factors.activations[name].abs().max() > 1e-100:
            return
        rank = chosen.draw(st.integers(1, model.get_submodule(name).in_features))
        row = by_layer(model, x, {name: LoRA(rank, 1.0, layers=[name])}, [len(tried)]).iloc[0]
        reached = factors.activations[name][factors.cotangents[name].abs().amax((1, 3)) > 0]
        d = int(row.dimension)
        assert d == torch.linalg.matrix_rank(reached, rtol=1e-5) <= min(len(reached), reached.shape[1])
        top, by_span, by_matrix = (row[column] ** -1 for column in ("measured", "by_span", "by_matrix"))
        assert top <= by_span * (1 + 1e-4)
        assert by_span <= by_matrix * (1 + 1e-9)
        high = order_interval(rank, d, 1.0)[1] ** 0.5
        assert by_span <= high + 6
        excess.append(by_span - high)
        floors.append(by_span**2 - max(rank, d))
        tried.append(top / by_span)

    collect()
    assert torch.tensor(excess).mean() < 4.5 / len(excess) ** 0.5  # E |A| <= sqrt(r) + sqrt(d)
    assert torch.tensor(floors).mean() > 0  # E |A|^2 >= max(r, d)


def test_the_edges_are_among_the_cases():
    """Drawn as the searches draw: single units, ranks at the fan-in, d = 1 and d = n, twice as many inputs as n."""
    seen = {
        kind: 0 for kind in ("one unit", "more inputs than units", "one direction", "all", "positions", *ACTIVATIONS)
    }

    @search
    @given(st.data())
    def collect(chosen):
        model = chosen.draw(networks())
        x, n = chosen.draw(data(model)), model[0].in_features
        d = torch.linalg.matrix_rank(x.flatten(0, 1)).item()
        kinds = [type(layer) for layer in model[1:2]]
        found = {"one unit": n == 1, "more inputs than units": len(x) > n, "one direction": d == 1 < n,
                 "all": d == n > 1, "positions": x.shape[1] > 1}  # fmt: skip
        for kind, there in itertools.chain(found.items(), ((a, c in kinds) for a, c in ACTIVATIONS.items())):
            seen[kind] += there

    collect()
    assert min(seen.values()) >= CASES // 40, seen
