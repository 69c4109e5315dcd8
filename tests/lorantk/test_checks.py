"""Models that are not what the classes of their layers say: their kernel is right by some method, or refused."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from strategies import gaussian, relative
from torch import nn
from torch.nn.utils import parametrizations, prune

import lorantk.kernels
import lorantk.methods
from lorantk import LayerFactors, LoRA, TangentKernel, attach, fisher_spectrum, fisher_trace, lora_ntk_sweep, ntk

X = gaussian(4, 5, seed=1)
Y = torch.tensor([0, 1, 1, 0])


def autograd_kernel(model, x):
    """One input and one output at a time, with none of the package's code."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for row in x:
        for output in model(row[None])[0]:
            grads = torch.autograd.grad(output, parameters, allow_unused=True, retain_graph=True)
            pairs = zip(grads, parameters, strict=True)
            rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    J = torch.stack(rows)
    return (J @ J.T).reshape(len(x), -1, len(x), len(J) // len(x))


def autograd_loss_gradients(model, x, y):
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for row, label in zip(x, y, strict=True):
        loss = F.cross_entropy(model(row[None]), label[None])
        grads = zip(torch.autograd.grad(loss, parameters, allow_unused=True), parameters, strict=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in grads]))
    return torch.stack(rows)


def net(seed=0, *, middle=None):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), middle or nn.Tanh(), nn.Linear(6, 2)).double()


def pruned():
    model = net()
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def masked_by_hook():
    model = net()
    model[0].register_forward_hook(lambda module, args, y: 2 * y)
    return model


def old_weight_norm():
    model = net()
    model[0] = nn.utils.weight_norm(model[0])
    return model


def parametrized():
    model = net()
    parametrizations.spectral_norm(model[0])
    return model.eval()


class Centred(nn.Linear):
    """Weight standardisation: the class is a Linear's, the use of its weight is not."""

    def forward(self, a):
        return F.linear(a, self.weight - self.weight.mean(1, keepdim=True), self.bias)


class OnePlus(nn.LayerNorm):
    def forward(self, a):
        return F.layer_norm(a, self.normalized_shape, 1 + self.weight**2, self.bias, self.eps)


class Readout(nn.Module):
    """The weight of a layer that is read by another one too."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm = nn.Linear(5, 5), nn.LayerNorm(5)

    def forward(self, x):
        return (self.norm(torch.tanh(self.inner(x))) @ self.inner.weight.T)[:, :2]


class Idle(nn.Module):
    """A trainable layer that is never called, and one that is called by keyword."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x):
        return self.used(input=x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.inner(x[..., None])[0][:, -1])


class Square(torch.autograd.Function):
    """No rule for torch.func's transforms."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain, self.head = nn.Parameter(torch.ones(5)), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(Square.apply(self.gain * x))


def twice():
    shared = nn.Linear(5, 5)
    torch.manual_seed(1)
    return nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(5, 2)).double()


MODELS = {
    "pruned": pruned,
    "output changed by a hook": masked_by_hook,
    "weight_norm": old_weight_norm,
    "spectral_norm": parametrized,
    "standardised weight": lambda: net(middle=Centred(6, 6)),
    "norm of another kind": lambda: net(middle=OnePlus(6)),
    "weight read elsewhere": lambda: Readout().double(),
    "layer never called": lambda: Idle().double(),
    "LSTM": lambda: Recurrent().double(),
    "custom autograd function": lambda: Custom().double(),
    "layer with two names": twice,
}


def state(model):
    """All that a call must leave alone: identity of parameters, plain tensors, hooks, modes and flags."""
    return [
        (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks),
         {k: (id(p), p.requires_grad) for k, p in module._parameters.items()},
         {k: id(v) for k, v in vars(module).items() if isinstance(v, torch.Tensor)})
        for name, module in model.named_modules()
    ]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_kernel_is_autograds_and_the_model_stays_as_it_was(name):
    model = MODELS[name]()
    truth = autograd_kernel(model, X)
    before = state(model)
    for method in ("auto", "jacobian"):
        assert relative(ntk(model, X, method=method), truth) < 1e-10
        assert state(model) == before
    G = autograd_loss_gradients(model, X, Y)
    before = state(model)
    assert fisher_trace(model, X, Y).item() == pytest.approx(G.square().sum().item() / len(X), rel=1e-9)
    expected = torch.linalg.svdvals(G).square() / len(X)
    spectrum = fisher_spectrum(model, X, Y)
    assert relative(spectrum, expected[: len(spectrum)]) < 1e-8
    assert state(model) == before


@pytest.mark.parametrize("name", ["pruned", "output changed by a hook", "standardised weight", "weight read elsewhere"])
def test_explicit_layerwise_names_the_parameter(name):
    with pytest.raises(ValueError, match=r"'\w+(\.\w+)?\.?weight(_orig)?' (is not used|belongs)"):
        ntk(MODELS[name](), X, method="layerwise")


def test_the_sweep_and_the_factors_are_checked_too():
    model = masked_by_hook()
    with pytest.raises(ValueError, match=r"'0\.weight' is not used as the weight of a Linear alone"):
        LayerFactors.from_model(model, X)
    with pytest.raises(ValueError, match=r"'0\.weight' is not used"):
        lora_ntk_sweep(model, X, loras=[LoRA(2)], seeds=[0])


def test_auto_says_why_it_falls_back(caplog):
    with caplog.at_level(logging.INFO, logger="lorantk"):
        ntk(masked_by_hook(), X)
    assert "'jacobian'" in caplog.messages[-1]
    assert "'0.weight' is not used as the weight of a Linear alone" in caplog.messages[-1]


def test_a_shared_layer_is_still_trained_afterwards():
    model = twice()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    old = model[0].weight.detach().clone()
    ntk(model, X)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    assert model[0].weight is model[2].weight
    assert not torch.equal(old, model[0].weight)
    copy.deepcopy(model)


def test_the_model_is_restored_when_a_call_fails():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = nn.Linear(5, 2), 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 1:
                raise ArithmeticError("enough")
            return self.inner(x)

    model = Fails().double()
    before = state(model)
    with pytest.raises(ArithmeticError):
        ntk(model, X)
    assert state(model) == before


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


class DropsPaths(nn.Module):
    def forward(self, x):
        return x * (torch.rand(len(x), 1) > 0.5) * 2 if self.training else x


class MixesInputs(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("middle", "fault"),
    [
        (Noisy(), "gives other outputs when called again"),
        (DropsPaths(), "gives other outputs when called again"),
        (nn.RReLU(), "gives other outputs when called again"),
        (MixesInputs(), "gives an input other outputs alone than in a batch"),
        (nn.BatchNorm1d(6, track_running_stats=False).double().eval(), "must|alone|Expected more than 1 value"),
    ],
)
def test_models_that_are_random_or_mix_inputs_are_refused(middle, fault):
    model = net(middle=middle).train()
    if isinstance(middle, (MixesInputs, nn.BatchNorm1d)):
        model.eval()
    x = gaussian(20, 5, seed=2)
    with pytest.raises(ValueError, match=fault):
        ntk(model, x)
    with pytest.raises(ValueError, match=fault):
        fisher_trace(model, x, torch.arange(20) % 2)


def test_kernels_are_made_whatever_the_gradient_mode():
    model, truth = net(), autograd_kernel(net(), X)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for method in ("layerwise", "jacobian", "vector_products"):
                assert relative(ntk(model, X, method=method), truth) < 1e-10


def test_models_that_look_up_the_weight_of_an_adapted_layer():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 2)

        def forward(self, x):
            return self.inner(x.to(self.inner.weight.dtype)) + self.inner.out_features

    tuned = LoRA(2).attach(Looks().double())
    assert relative(ntk(tuned, X), autograd_kernel(tuned, X)) < 1e-10
    with pytest.raises(AttributeError):
        tuned.inner.nothing  # noqa: B018


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_single(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 2)).to(dtype)
    x = torch.randn(6, 64).to(dtype)
    truth = ntk(copy.deepcopy(model).double(), x.double())
    for method in ("layerwise", "jacobian"):
        kernel = ntk(model, x, method=method)
        assert kernel.dtype == dtype
        assert relative(kernel.double(), truth) < 4 * torch.finfo(dtype).eps  # each factor is rounded, sums are not


def test_single_precision_adapters_on_a_half_precision_base():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).to(torch.bfloat16)
    tuned = attach(model, LoRA(2).sample(model, 0))
    for p in tuned.parameters():
        p.data = p.data.float() if p.requires_grad else p.data
    x = torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        kernel = ntk(tuned, x)
        assert kernel.dtype == torch.float32
    truth = ntk(copy.deepcopy(tuned).double(), x.double())
    assert relative(kernel.double(), truth) < 16 * torch.finfo(torch.bfloat16).eps


class Ordered(nn.Module):
    """The inner layers see the rows in another order; sorted, or reversed but for the first or the last."""

    def __init__(self, order):
        super().__init__()
        self.inner, self.head, self.order = nn.Linear(5, 6), nn.Linear(6, 2), order

    def forward(self, x):
        order = self.order(x)
        return self.head(torch.tanh(self.inner(x[order])))[torch.argsort(order)]


class Unseen(nn.Module):
    """A second use of a weight that an input of zeros does not show."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 5, bias=False), nn.Linear(5, 2, bias=False)

    def forward(self, x):
        return self.head(self.inner(x) + self.inner.weight.sum() * x)


class Held(nn.Module):
    """A parameter that the model reads from a list, which torch.func does not replace."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 2)
        self.held = [[self.inner.weight]]

    def forward(self, x):
        return F.linear(torch.tanh(x), self.held[0][0]) + self.inner.bias


@pytest.mark.parametrize(
    "model",
    [
        Ordered(lambda x: torch.argsort(x[:, 0])),
        Ordered(lambda x: torch.tensor([0, *range(len(x) - 1, 0, -1)])),
        Ordered(lambda x: torch.tensor([*range(len(x) - 2, -1, -1), len(x) - 1])),
        Unseen(),
        Held(),
    ],
    ids=["sorted rows", "reversed rows", "reversed but for the last", "first input of zeros", "parameter in a list"],
)
def test_what_one_input_alone_would_not_show(model):
    x = gaussian(6, 5, seed=7)
    x[0] = 0
    model = model.double()
    assert relative(ntk(model, x), autograd_kernel(model, x)) < 1e-10


class FirstMoved(nn.Module):
    """The first two inputs of a batch change places: all others have their own outputs."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x):
        order = [1, 0, *range(2, len(x))] if len(x) > 1 else [0]
        return self.head(torch.tanh(self.inner(x[order])))


class Together(FirstMoved):
    """Inputs are centred in the batch."""

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x - x.mean(0))))


@pytest.mark.parametrize("model", [FirstMoved(), Together()], ids=["first two change places", "centred"])
@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize(
    "keywords",
    [{}, {"method": "jacobian"}, {"method": "vector_products"}, {"output": "diagonal"}, {"max_memory": 6000},
     {"method": "layerwise", "max_memory": 2000}, {"method": "jacobian", "max_memory": 6000}],
    ids=str,
)  # fmt: skip
def test_inputs_that_are_not_alone_are_refused_whatever_the_method_and_the_blocks(model, n, keywords):
    x = gaussian(n, 5, seed=7)
    with pytest.raises(ValueError, match="deterministic, input by input: it gives an input other outputs alone"):
        ntk(model.double(), x, **keywords)
    with pytest.raises(ValueError, match="deterministic, input by input"):
        ntk(model.double(), x[:1], x, **keywords | {"output": "trace"})


def test_the_operator_checks_its_second_batch_too():
    x = gaussian(4, 5, seed=7)
    with pytest.raises(ValueError, match="deterministic, input by input"):
        TangentKernel(Together().double(), x[:1], x)


class Average(nn.Module):
    """Keeps a running mean in training mode, which its outputs do not depend on."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 2)
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return self.inner(x)


def test_a_running_mean_is_what_it_was():
    model = Average().double().train()
    ntk(model, X)
    assert not model.mean.any()
    assert model.training


@pytest.mark.parametrize("method", ["layerwise", "jacobian", "vector_products"])
def test_under_autocast_only_the_model_is_rounded(method):
    model = net().float()
    truth = autograd_kernel(net(), X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kernel = ntk(model, X.float(), method=method)
        sweep = lora_ntk_sweep(model, X.float(), loras=[LoRA(2, 0.5)], seeds=[0])[0, 0]
        spectrum = fisher_spectrum(model, X.float(), Y)
    assert kernel.dtype == sweep.dtype == torch.float32
    assert relative(kernel, truth) < 0.02  # bfloat16 keeps 8 bits: a few roundings of 2^-9
    assert relative(sweep, ntk(LoRA(2, 0.5).attach(net(), 0), X)) < 0.02
    exact = fisher_spectrum(net(), X, Y)
    assert relative(spectrum[0], exact[0]) < 0.02


@pytest.mark.parametrize("method", ["layerwise", "jacobian", "vector_products"])
def test_inputs_made_in_inference_mode(method):
    with torch.inference_mode():
        x = X.clone()
    assert relative(ntk(net(), x, method=method), autograd_kernel(net(), X)) < 1e-10
    with torch.inference_mode():
        made_inside = net()
    with pytest.raises(ValueError, match="made outside of torch"):
        ntk(made_inside, X, method=method)


def test_a_kernel_beyond_float16_is_refused():
    model = nn.Sequential(nn.Linear(5, 4000, bias=False), nn.Linear(4000, 2)).half()
    nn.init.constant_(model[1].weight, 8.0)
    with pytest.raises(ValueError, match="float16"):
        ntk(model, X.half())


TRANSPOSED = [
    (nn.ConvTranspose1d(3, 2, 3, stride=2, padding=1, output_padding=1), (3, 5)),
    (nn.ConvTranspose1d(3, 2, 4, dilation=2, bias=False), (3, 4)),
    (nn.ConvTranspose2d(2, 3, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2)), (2, 3, 4)),
    (nn.ConvTranspose2d(2, 2, 1, padding=0), (2, 3, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), TRANSPOSED)
def test_transposed_convolutions_are_layerwise(layer, shape):
    x = gaussian(3, *shape, seed=2)
    layer = layer.double()
    width = layer(x).flatten(1).shape[1]
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(width, 2).double())
    assert relative(ntk(model, x, method="layerwise"), autograd_kernel(model, x)) < 1e-12


def test_a_transposed_convolution_in_groups_takes_another_method():
    model = nn.Sequential(nn.ConvTranspose1d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(28, 2)).double()
    x = gaussian(3, 4, 5, seed=2)
    assert relative(ntk(model, x), autograd_kernel(model, x)) < 1e-12


def test_auto_takes_jacobians_in_blocks_where_products_do_not_go_through(monkeypatch, caplog):
    monkeypatch.setattr(lorantk.kernels, "JACOBIAN_LIMIT", 40)
    model, blocks, real = Custom().double(), [], lorantk.methods.Jacobian.prepare
    monkeypatch.setattr(lorantk.methods.Jacobian, "prepare", lambda way, x: blocks.append(len(x)) or real(way, x))
    with caplog.at_level(logging.INFO, logger="lorantk"):
        assert relative(ntk(model, X), autograd_kernel(model, X)) < 1e-12
    taken = [message for message in caplog.messages if message.startswith("ntk: method")]
    assert [message.split("'")[1] for message in taken[-2:]] == ["vector_products", "jacobian"]
    assert "torch.func" in taken[-1]
    assert max(blocks) == 1
    with pytest.raises(ValueError, match=r"'vector_products' needs a model that torch\.func"):
        ntk(model, X, method="vector_products")
