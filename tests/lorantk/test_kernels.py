"""The kernel by three methods and by brute force; the identities of the statements on random shapes."""

import logging
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, gaussian, loras, networks, relative, seeds
from torch import nn

from lorantk import Adapter, LayerFactors, LoRA, attach, delta_matrix, lora_ntk_sweep, mlp, ntk, read_peft
from lorantk.grams import gram

METHODS = ("jacobian", "vector_products", "layerwise")
TOLERANCE = (
    1e-10  # sums of at most a few thousand products in float64: round-off near 1e-14, with room for conditioning
)


def brute_force(model, x1, x2):
    """K = J J^T with J from one backward pass per input and output: no torch.func, no hooks."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def jacobian(x):
        rows = []
        for output in model(x).flatten():
            gradients = torch.autograd.grad(output, parameters, allow_unused=True, retain_graph=True)
            pairs = zip(gradients, parameters, strict=True)
            rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
        return torch.stack(rows)

    C = model(x1).shape[1]
    return (jacobian(x1) @ jacobian(x2).T).reshape(len(x1), C, len(x2), C).detach()


@given(st.data(), networks(), seeds)
def test_three_methods_agree_with_brute_force(data, model, seed):
    d = model[0].in_features
    x1, x2 = data.draw(batches(d)), data.draw(batches(d))
    lora = data.draw(st.one_of(st.none(), loras(model)))
    model = model if lora is None else lora.attach(model, seed)
    truth = brute_force(model, x1, x2)
    for method in METHODS:
        kernel = ntk(model, x1, x2, method=method)
        assert kernel.shape == truth.shape
        assert relative(kernel, truth) < TOLERANCE
        trace = ntk(model, x1, x2, method=method, output="trace")
        assert relative(trace, torch.einsum("ncmc->nm", truth)) < TOLERANCE


@given(st.data(), networks())
def test_kernel_of_one_batch_is_symmetric_and_positive(data, model):
    x = data.draw(batches(model[0].in_features))
    kernel = ntk(model, x).flatten(2).flatten(0, 1)
    assert relative(kernel, kernel.T) < TOLERANCE
    assert torch.linalg.eigvalsh(kernel)[0] >= -TOLERANCE * kernel.abs().max()


@given(st.data(), networks(), seeds)
def test_layers_add_up(data, model, seed):
    x = data.draw(batches(model[0].in_features))
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert relative(sum(ntk(model, x, layers=[name]) for name in names), ntk(model, x)) < TOLERANCE
    lora = data.draw(loras(model))
    tuned = lora.attach(model, seed)
    assert relative(sum(ntk(tuned, x, layers=[name]) for name in names), ntk(tuned, x)) < TOLERANCE


@given(st.data(), networks(), seeds)
def test_scaling_enters_squared(data, model, seed):
    x = data.draw(batches(model[0].in_features))
    lora = data.draw(loras(model))
    plain = ntk(attach(model, lora.sample(model, seed)), x)
    assert relative(ntk(lora.attach(model, seed), x), lora.scaling**2 * plain) < TOLERANCE


@given(st.data(), networks(), seeds)
def test_relation_between_the_kernels_and_its_loewner_order(data, model, seed):
    x = data.draw(batches(model[0].in_features))
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    name = data.draw(st.sampled_from(names))
    lora = data.draw(loras(model, layers=(name,)))
    A = lora.sample(model, seed)[name]
    factors = LayerFactors.from_model(model, x)
    a, g = factors.activations[name][:, 0], factors.cotangents[name][:, :, 0]
    M = delta_matrix(A, lora.scaling)
    correction = torch.einsum("nm,nco,mdo->ncmd", a @ M @ a.T, g, g)
    full = gram(factors, factors, [(name, "weight")])
    assert relative(ntk(lora.attach(model, seed), x, method="jacobian"), full + correction) < TOLERANCE
    top = torch.linalg.eigvalsh(M)[-1]
    shrunk = A / (1 + top.clamp(min=0)).sqrt()  # now M is negative semi-definite
    gap = (full - ntk(attach(model, {name: Adapter(shrunk, None, lora.scaling)}), x)).flatten(2).flatten(0, 1)
    assert torch.linalg.eigvalsh(gap)[0] >= -1e-9 * full.abs().max()


@given(st.data(), networks(), seeds)
def test_sweep_equals_draw_by_draw(data, model, seed):
    x1, x2 = data.draw(batches(model[0].in_features)), data.draw(batches(model[0].in_features))
    two = [data.draw(loras(model)), data.draw(loras(model, layers=("0",)))]
    for output in ("full", "trace"):
        kernels = lora_ntk_sweep(model, x1, x2, loras=two, seeds=[seed, seed + 1], output=output)
        for i, lora in enumerate(two):
            for j in range(2):
                one = ntk(lora.attach(model, seed + j), x1, x2, method="vector_products", output=output)
                assert relative(kernels[i, j], one) < TOLERANCE


def test_a_sweep_shares_draws_that_differ_by_a_factor():
    model, x = mlp([4, 6, 3], seed=1).double(), gaussian(5, 4, seed=2)
    settings = [("1/n", 1.0), ("1/n", 3.0), ("4/n", 1.0), ("4/n", 0.5), ("peft", 2.0), ("peft", 0.25), (0.25, 2.0)]
    several = [LoRA(2, variance, scaling) for variance, scaling in settings]
    kernels = lora_ntk_sweep(model, x, loras=several, seeds=[0])
    for kernel, lora in zip(kernels[:, 0], several, strict=True):
        assert relative(kernel, ntk(lora.attach(model, 0), x)) < TOLERANCE


@pytest.mark.parametrize("n", [80, 81, 85, 120, 165])
def test_a_symmetric_product_of_any_size_is_the_general_one(n):
    factors = LayerFactors.from_model(mlp([3, 5, 2], seed=0).double(), gaussian(n, 3, seed=n))
    equal = factors.take(slice(None))  # another object: all tiles are multiplied, none is mirrored
    for output in ("full", "trace"):
        assert relative(gram(factors, factors, output=output), gram(factors, equal, output=output)) < TOLERANCE


@given(st.data(), networks(), seeds)
def test_methods_agree_when_B_is_not_zero(data, model, seed):
    x = data.draw(batches(model[0].in_features))
    adapters = {
        name: Adapter(A, gaussian(model.get_submodule(name).out_features, len(A), seed=seed + 1), 1.7)
        for name, A in data.draw(loras(model)).sample(model, seed).items()
    }
    tuned = attach(model, adapters)
    truth = brute_force(tuned, x, x)
    for method in METHODS:
        assert relative(ntk(tuned, x, method=method), truth) < TOLERANCE


class Attention(nn.Module):
    """One self-attention block over a sequence, pooled: several positions share each layer."""

    def __init__(self, d=4, outputs=2):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(d, d) for _ in range(3))
        self.head = nn.Linear(d, outputs)

    def forward(self, x):
        weights = torch.softmax(self.query(x) @ self.key(x).mT / 2, dim=-1)
        return self.head((weights @ self.value(x)).mean(1))


class Twice(nn.Module):
    """A layer that is called twice in one forward pass."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.parametrize(("model", "shape"), [(Attention(), (3, 5, 4)), (Twice(), (3, 4))])
@pytest.mark.parametrize("lora", [None, LoRA(2, 0.5, 2.0)])
def test_shared_positions_and_repeated_calls(model, shape, lora):
    model = model.double() if lora is None else lora.attach(model.double(), 0)
    x1, x2 = gaussian(*shape, seed=1), gaussian(*shape, seed=2)
    truth = brute_force(model, x1, x2)
    for method in METHODS:
        assert relative(ntk(model, x1, x2, method=method), truth) < TOLERANCE
    trace = ntk(model, x1, x2, method="layerwise", output="trace")
    assert relative(trace, torch.einsum("ncmc->nm", truth)) < TOLERANCE


def test_tied_weights_are_left_to_the_other_methods():
    model, x = Tied().double(), gaussian(3, 4, seed=0)
    with pytest.raises(ValueError, match=r"layerwise.*untied"):
        ntk(model, x, method="layerwise")
    assert relative(ntk(model, x), brute_force(model, x, x)) < TOLERANCE


class Gain(nn.Module):
    """A trainable parameter of no layer that has factors."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.gain * x


def test_auto_logs_its_choice_and_covers_what_layerwise_does_not(caplog):
    model, x = nn.Sequential(nn.Linear(4, 4), Gain(), nn.Linear(4, 2)).double(), gaussian(3, 4, seed=0)
    with caplog.at_level(logging.INFO, logger="lorantk"):
        kernel = ntk(model, x)
        ntk(model, x, layers=["0"])
    assert "'jacobian'" in caplog.messages[0]
    assert "'layerwise'" in caplog.messages[1]
    assert relative(kernel, brute_force(model, x, x)) < TOLERANCE


def test_kernel_of_a_peft_model_is_the_kernel_of_its_adapters():
    peft = pytest.importorskip("peft")
    base = mlp([5, 6, 2], "tanh", "standard").double()
    adapted = peft.get_peft_model(
        mlp([5, 6, 2], "tanh", "standard"), peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0", "2"])
    )
    adapted = adapted.double().eval()
    for index, (name, parameter) in enumerate(adapted.named_parameters()):
        if "lora_B" in name:
            parameter.data = gaussian(*parameter.shape, seed=index)
    x = gaussian(4, 5, seed=9)
    base.load_state_dict({k: v for k, v in mlp([5, 6, 2], "tanh", "standard").double().state_dict().items()})
    for method in METHODS:
        assert relative(ntk(adapted, x, method=method), ntk(attach(base, read_peft(adapted)), x)) < TOLERANCE


def test_dtype_is_kept_and_there_is_no_graph():
    kernel = ntk(mlp([3, 4, 2]), torch.ones(2, 3))
    assert kernel.dtype == torch.float32
    assert not kernel.requires_grad


@pytest.mark.slow
def test_layerwise_memory_stays_below_four_gigabytes():
    code = (
        "import torch, resource; from lorantk import mlp, ntk; model = mlp([784, 1024, 1024, 10]);"
        "x = torch.randn(512, 784, generator=torch.Generator().manual_seed(0));"
        "k = ntk(model, x, method='layerwise'); assert k.shape == (512, 10, 512, 10);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) < 4 * 2**20  # kilobytes


X = gaussian(2, 3, seed=0)
NET = mlp([3, 4, 2]).double()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x1": X.float()}, TypeError, "x1 has dtype torch.float32"),
        ({"x1": X, "x2": X.float()}, TypeError, "x2 has dtype"),
        ({"x1": X, "x2": gaussian(2, 4, seed=0)}, ValueError, "x2 must match x1"),
        ({"x1": X[:0]}, ValueError, "x1 must hold at least one"),
        ({"x1": X * float("nan")}, ValueError, "x1 must be finite"),
        ({"x1": X * float("inf")}, ValueError, "x1 must be finite"),
        ({"x1": [[1.0, 2.0, 3.0]]}, TypeError, "x1 must be a torch.Tensor"),
        ({"x1": X, "method": "magic"}, ValueError, "method must be one of 'auto'"),
        ({"x1": X, "output": "half"}, ValueError, "output must be one of"),
        ({"x1": X, "layers": ["7"]}, ValueError, "layers must name adaptable layers"),
        ({"x1": X, "layers": ["1"]}, ValueError, "'1' \\(ReLU\\)"),
        ({"x1": X, "layers": "encoder.*"}, ValueError, "'encoder.\\*' names none"),
        ({"x1": X, "layers": []}, ValueError, "names none"),
        ({"x1": {}}, ValueError, "x1 must hold at least one tensor"),
        ({"x1": {"x": X, "y": X[:1]}}, ValueError, "x1 must hold tensors with one number of rows"),
        ({"x1": X, "x2": {"x": X}}, ValueError, "x2 must hold the same tensors as x1"),
        ({"x1": X, "max_memory": 0}, ValueError, "max_memory must be bytes above 0"),
        ({"x1": X, "max_memory": "lots"}, ValueError, "max_memory must be bytes above 0"),
        ({"x1": X, "max_memory": 100}, ValueError, "the need of one input; got 100"),
        ({"x1": X, "max_memory": 1.5}, TypeError, "max_memory must be bytes"),
        ({"x1": X, "max_memory": "1GB", "method": "vector_products"}, ValueError, "'vector_products' makes no blocks"),
        ({"x1": X, "out": "kernel.txt"}, ValueError, "out must be a path ending in .npy"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        ntk(NET, **arguments)


def test_a_layer_keeps_its_name_when_it_is_adapted():
    tuned = attach(NET, {"0": X[:2]})
    assert torch.equal(ntk(tuned, X, layers=["0"]), ntk(tuned, X))
    assert torch.equal(ntk(tuned, X, layers="0"), ntk(tuned, X, layers=["0.up"]))
    with pytest.raises(ValueError, match=r"frozen \(requires_grad=False\): \['2'\]"):
        ntk(tuned, X, layers=["2"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 2)).double(), "Dropout in training mode"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double(), "BatchNorm1d in training mode"),
        (nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2))).double(), "model must map"),
        (mlp([3, 2]).double().requires_grad_(False), "model must have a trainable parameter"),
    ],
)
def test_models_without_a_kernel_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        ntk(model, X)


def test_a_sweep_needs_something_to_sweep():
    with pytest.raises(ValueError, match="loras and seeds must not be empty"):
        lora_ntk_sweep(NET, X, loras=[], seeds=[0])
