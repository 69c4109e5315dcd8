"""Kernels of models that are no plain MLP: convolutions, embeddings, normalisation, transformers and PEFT."""

import copy
import logging

import pytest
import torch
from strategies import gaussian, relative
from test_kernels import METHODS, brute_force
from torch import nn

from lorantk import (
    Adapter,
    LayerFactors,
    LoRA,
    TangentKernel,
    attach,
    fisher_spectrum,
    gradient_alignment,
    lora_ntk_sweep,
    ntk,
    read_peft,
)
from lorantk.batches import take
from lorantk.fisher import loss_gradients
from lorantk.layers import adaptable_layers

TOLERANCE = 1e-10  # as in test_kernels: float64 round-off with room for conditioning
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
]


class Signal(nn.Module):
    """Conv1d with stride, padding and dilation, then a pooled linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.conv(x)).mean(-1))


class Image(nn.Module):
    """Conv2d layers with "same" and reflected padding, batch norm in eval mode, and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 2, (3, 2), padding=1, padding_mode="reflect", stride=(1, 2))
        self.head = nn.Linear(2, 2)
        self.norm.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1]))
        self.norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.3]))

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.norm(self.first(x))))).mean((2, 3)))


class Words(nn.Module):
    """Embedding with a padding token, looked-up positions shared by the batch, layer norm, and a layer called twice."""

    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(9, 4, padding_idx=0)
        self.position = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens):
        h = self.norm(self.token(tokens) + self.position(torch.arange(5, device=tokens.device)[None]))
        return self.head(self.inner(torch.tanh(self.inner(h))).mean(1))


def words(n, seed):
    return torch.randint(0, 9, (n, 5), generator=torch.Generator().manual_seed(seed))


def randomised(model, device="cpu"):
    """The model in float64 and eval mode, its parameters drawn from explicit generators."""
    model = model.double().to(device).eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.data = 0.5 * gaussian(*parameter.shape, seed=index).to(device)
    return model


CASES = {
    "signal": (Signal, lambda n, seed: gaussian(n, 2, 9, seed=seed)),
    "image": (Image, lambda n, seed: gaussian(n, 1, 5, 6, seed=seed)),
    "words": (Words, words),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("adapt", [None, LoRA(2, 0.5, 2.0), LoRA(2, "1/n", 0.7, layers=".*")])
@pytest.mark.parametrize("case", CASES)
def test_every_layer_type_agrees_with_brute_force(case, adapt, device):
    build, draw = CASES[case]
    model = randomised(build(), device)
    x1, x2 = draw(3, 1).to(device), draw(4, 2).to(device)
    trainable = model if adapt is None else adapt.attach(model, 5)
    for a, b in ((x1, x2), (x1, None)):
        truth = brute_force(trainable, a, a if b is None else b)
        for method in METHODS:
            kernel = ntk(trainable, a, b, method=method)
            assert relative(kernel, truth) < TOLERANCE
            trace = ntk(trainable, a, b, method=method, output="trace")
            assert relative(trace, torch.einsum("ncmc->nm", truth)) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_trained_adapters_of_every_layer_type(case):
    build, draw = CASES[case]
    model, x = randomised(build()), draw(3, 1)
    adapted = LoRA(2, 0.5, 1.3, layers=".*").attach(model, 0)
    for index, (name, parameter) in enumerate(adapted.named_parameters()):
        if name.endswith("up.weight"):
            parameter.data = gaussian(*parameter.shape, seed=index)
    truth = brute_force(adapted, x, x)
    assert all(relative(ntk(adapted, x, method=method), truth) < TOLERANCE for method in METHODS)


@pytest.mark.parametrize("case", CASES)
def test_sweep_fisher_and_alignment_of_every_layer_type(case):
    build, draw = CASES[case]
    model, x = randomised(build()), draw(5, 1)
    loras = [LoRA(1, 0.5, layers=".*"), LoRA(2, "2/n", 3.0), LoRA(2, "1/n", 3.0)]
    for output in ("full", "trace"):
        kernels = lora_ntk_sweep(model, x, loras=loras, seeds=[0, 1], output=output)
        for i, lora in enumerate(loras):
            for j in range(2):
                one = ntk(lora.attach(model, j), x, method="jacobian", output=output)
                assert relative(kernels[i, j], one) < TOLERANCE
    y = torch.tensor([0, 1, 1, 0, 1])
    gradients = loss_gradients(model, x, y)
    spectrum = torch.linalg.svdvals(gradients).square() / len(x)
    mine = fisher_spectrum(model, x, y)
    assert relative(mine, spectrum[: len(mine)]) < TOLERANCE
    alignment = gradient_alignment(model, (x[:2], y[:2]), (x[2:], y[2:]))
    assert relative(alignment, (gradients[:2] @ gradients[2:].T).abs()) < TOLERANCE


def test_blocks_of_any_size_give_the_same_kernel(tmp_path):
    model, x1, x2 = randomised(Words()), words(7, 1), words(4, 2)
    for b in (None, x2):
        whole = ntk(model, x1, b)
        need = _need(model, x1)
        for memory in (need, 3 * need, "1GB"):
            assert relative(ntk(model, x1, b, max_memory=memory), whole) < 1e-13
            assert relative(ntk(model, x1, b, max_memory=10**6, method="jacobian"), whole) < TOLERANCE
        path = tmp_path / f"{b is None}.npy"
        stored = ntk(model, x1, b, max_memory=need, out=path)
        assert relative(stored, whole) < 1e-13
        assert [p.name for p in tmp_path.iterdir() if p.stem.startswith(path.stem)] == [path.name]


def _need(model, x):
    """The least max_memory, read from the error that names it."""
    with pytest.raises(ValueError, match="max_memory must be at least") as error:
        ntk(model, x, max_memory=1)
    return int(str(error.value).split("at least ")[1].split()[0])


def test_an_interrupted_file_resumes_and_is_never_half_written(tmp_path, monkeypatch):
    model, x, path = randomised(Words()), words(7, 1), tmp_path / "kernel.npy"
    whole, need = ntk(model, x), _need(model, x)
    import lorantk.methods as module

    real, calls = module.gram, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "gram", failing)
    with pytest.raises(KeyboardInterrupt):
        ntk(model, x, max_memory=need, out=path)
    assert not path.exists()
    calls.clear()
    monkeypatch.setattr(module, "gram", lambda *arguments: calls.append(1) or real(*arguments))
    with pytest.raises(ValueError, match="belongs to another model, batch or setting"):
        ntk(model, words(7, 3), max_memory=need, out=path)
    stored = ntk(model, x, max_memory=need, out=path)
    assert len(calls) == 28 - 9  # 7 inputs one by one have 28 pairs, 9 of which were done
    assert relative(stored, whole) < 1e-13
    with pytest.raises(ValueError, match="out must not exist yet"):
        ntk(model, x, out=path)


def bert(**options):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12, num_labels=3, **options,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=12, num_labels=3, pad_token_id=0
    )
    return transformers.GPT2ForSequenceClassification(config)


def vit(**options):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, num_labels=3, **options,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def tokens(n, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 50, (n, 10), generator=generator)
    mask = (torch.arange(10) < torch.randint(4, 11, (n, 1), generator=generator)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


TRANSFORMERS = {
    "bert": (bert, tokens, ["query", "value"]),
    "gpt2": (gpt2, tokens, ["c_attn", "c_fc"]),
    "vit": (vit, lambda n, seed: {"pixel_values": gaussian(n, 1, 8, 8, seed=seed)}, r"vit\..*(fc1|fc2|q_proj)"),
}


def per_sample(model, x):
    """K = J J^T with J from one backward pass per input and output, input by input."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for i in range(len(next(iter(x.values())))):
        for output in model(**take(x, slice(i, i + 1))).logits.flatten():
            gradients = torch.autograd.grad(output, parameters, allow_unused=True, retain_graph=True)
            pairs = zip(gradients, parameters, strict=True)
            rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    J = torch.stack(rows)
    n = len(next(iter(x.values())))
    return (J @ J.T).reshape(n, 3, n, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_with_peft(name):
    """Through the PEFT model with torch.func, through its layers, and through the base model with A and B read out."""
    peft = pytest.importorskip("peft")
    build, draw, targets = TRANSFORMERS[name]
    base = randomised(build())
    x = draw(4, 1)
    config = peft.LoraConfig(
        r=2, lora_alpha=3, use_rslora=True, target_modules=targets, task_type="SEQ_CLS" if name != "vit" else None
    )
    theirs = peft.get_peft_model(copy.deepcopy(base), config).double().eval()
    for index, (key, parameter) in enumerate(theirs.named_parameters()):
        parameter.requires_grad_("lora_" in key)
        if "lora_B" in key:
            parameter.data = 0.3 * gaussian(*parameter.shape, seed=index)
    truth = per_sample(theirs, x)
    read = read_peft(theirs)
    assert all(adapter.scaling == pytest.approx(3 / 2**0.5) for adapter in read.values())
    assert set(read) == set(adaptable_layers(base, targets))
    assert relative(ntk(theirs, x, method="jacobian"), truth) < 1e-8
    assert relative(ntk(theirs, x, method="layerwise"), truth) < 1e-8
    assert relative(ntk(attach(base, read), x, method="layerwise"), truth) < 1e-8
    with pytest.raises(ValueError, match=r"give it to .* as it is"):
        attach(theirs, read)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_in_full(name):
    build, draw, _ = TRANSFORMERS[name]
    model, x = randomised(build()), draw(4, 1)
    if name == "vit":  # its class token and position embedding are parameters of no layer
        with pytest.raises(ValueError, match=r"'vit\.embeddings\.\w+' belongs to a ViTEmbeddings"):
            ntk(model, x, method="layerwise")
        for key, parameter in model.named_parameters():
            parameter.requires_grad_("token" not in key and "position" not in key)
    truth = per_sample(model, x)
    assert relative(ntk(model, x, method="layerwise"), truth) < 1e-10
    assert relative(ntk(model, x, method="jacobian"), truth) < 1e-10
    half = ntk(model, take(x, slice(0, 2)), take(x, slice(2, 4)))
    assert relative(half, truth[:2, :, 2:]) < 1e-10
    y = torch.tensor([0, 1, 2, 1])
    gradients = loss_gradients(model, x, y)
    spectrum = torch.linalg.svdvals(gradients).square() / 4
    mine = fisher_spectrum(model, x, y)
    assert relative(mine, spectrum[: len(mine)]) < 1e-8


def test_layers_are_picked_as_peft_picks_them():
    model = bert()
    blocks = [f"bert.encoder.layer.{i}.attention.self.query" for i in range(2)]
    assert list(adaptable_layers(model, ["query"])) == blocks
    assert list(adaptable_layers(model, r".*\.0\..*query")) == blocks[:1]
    everything = adaptable_layers(model, "all-linear")
    assert "classifier" not in everything
    assert len(everything) == 2 * 6 + 1  # six linear layers a block, and the pooler
    assert "classifier" in adaptable_layers(model)
    assert "bert.embeddings.word_embeddings" in adaptable_layers(model, ".*embeddings")


class Folded(nn.Module):
    """Puts its positions into the first axis, as window attention does."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.inner(x.reshape(-1, 4)).reshape(len(x), -1, 4).mean(1))


class FunctionalDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_models_whose_layers_do_not_see_the_batch_fall_back(caplog):
    model, x = randomised(Folded()), gaussian(3, 2, 4, seed=0)
    with pytest.raises(ValueError, match=r"first axis.*'inner' is called on 6 rows"):
        ntk(model, x, method="layerwise")
    with caplog.at_level(logging.INFO, logger="lorantk"):
        assert relative(ntk(model, x), brute_force(model, x, x)) < TOLERANCE
    assert "first axis" in caplog.messages[-1]


def test_dropout_inside_attention_is_seen():
    model, x = FunctionalDropout().double(), gaussian(3, 2, 4, seed=0)
    with pytest.raises(ValueError, match=r"'attention' is a MultiheadAttention in training mode"):
        ntk(model, x)
    assert relative(ntk(model.eval(), x), brute_force(model, x, x)) < TOLERANCE


def test_dropout_inside_attention_of_transformers_is_seen():
    model = vit(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.1).double()
    x = {"pixel_values": gaussian(2, 1, 8, 8, seed=0)}
    with pytest.raises(ValueError, match=r"attention.* in training mode; call model.eval\(\) first"):
        ntk(model.train(), x)
    assert ntk(model.eval(), x, layers=["classifier"]).shape == (2, 3, 2, 3)


@pytest.mark.slow
def test_sweep_and_alignment_of_a_transformer():
    model, x, y = randomised(bert()), tokens(4, 1), torch.tensor([0, 1, 2, 1])
    loras = [LoRA(1, 0.5, layers=["query", "value"]), LoRA(2, "1/n", 2.0, layers="all-linear")]
    kernels = lora_ntk_sweep(model, x, loras=loras, seeds=[0, 3])
    for i, lora in enumerate(loras):
        for j, seed in enumerate((0, 3)):
            assert relative(kernels[i, j], per_sample(lora.attach(model, seed), x)) < 1e-8
    clean, poisoned = (take(x, slice(0, 2)), y[:2]), (take(x, slice(2, 4)), y[2:])
    gradients = loss_gradients(model, x, y)
    alignment = gradient_alignment(model, clean, poisoned)
    assert relative(alignment, (gradients[:2] @ gradients[2:].T).abs()) < 1e-8


def peft_of(base, targets):
    """The base model in PEFT, no A and no B at 0."""
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets))
    theirs = theirs.double().eval()
    for index, (key, parameter) in enumerate(theirs.named_parameters()):
        if "lora_" in key:
            parameter.data = gaussian(*parameter.shape, seed=index)
    return theirs


@pytest.mark.parametrize(
    ("case", "targets"), [("signal", ["conv", "head"]), ("image", ["first", "head"]), ("words", ["token", "inner"])]
)
def test_peft_adapters_on_every_layer_type_are_read_as_they_are(case, targets):
    build, draw = CASES[case]
    base = build()
    if case == "signal":
        base.conv = nn.Conv1d(2, 3, 3, stride=2, padding=1)  # PEFT's adapters have no dilation
    base, x = randomised(base), draw(3, 1)
    theirs = peft_of(base, targets)
    assert relative(ntk(attach(base, read_peft(theirs)), x), brute_force(theirs, x, x)) < TOLERANCE


@pytest.mark.parametrize(
    ("case", "target", "message"),
    [("signal", "conv", r"'conv' dilation is \(2,\)"), ("image", "second", "'second' padding_mode is 'reflect'")],
)
def test_peft_adapters_that_see_other_patches_than_their_layer_are_refused(case, target, message):
    with pytest.raises(ValueError, match=message):
        read_peft(peft_of(randomised(CASES[case][0]()), [target]))


def test_a_frozen_layer_is_named():
    model = randomised(Words())
    model.inner.requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen \(requires_grad=False\): \['inner'\]"):
        ntk(model, words(2, 0), layers=["inner"])


def test_tied_weights_are_named():
    model = randomised(Words())
    model.head.weight = nn.Parameter(model.inner.weight[:2].detach().clone())
    model.inner.bias = model.norm.bias
    with pytest.raises(ValueError, match=r"'norm.bias' and 'inner.bias' are tied"):
        ntk(model, words(2, 0), method="layerwise")


def test_devices_are_not_mixed():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2, device="meta"))
    with pytest.raises(TypeError, match="model must be on one device; its parameters are on cpu, meta"):
        ntk(model, torch.ones(2, 3))
    with pytest.raises(TypeError, match="x1 is on meta but the model is on cpu"):
        ntk(nn.Sequential(nn.Embedding(3, 2)), torch.zeros(2, dtype=torch.long, device="meta"))


def test_factors_of_an_embedding_are_indices():
    factors = LayerFactors.from_model(randomised(Words()), words(3, 1), ["token"])
    assert factors.activations["token"].tolist() == words(3, 1).masked_fill(words(3, 1) == 0, -1).tolist()


def test_nested_adapters_are_rows_of_one_draw():
    model, x = randomised(Signal()), gaussian(3, 2, 9, seed=1)
    loras = [LoRA(r, 0.5, 2.0, ["head"]) for r in (1, 3)]
    kernels = lora_ntk_sweep(model, x, loras=loras, seeds=[4], nested=True)
    A = loras[1].sample(model, 4)["head"]
    assert relative(kernels[0, 0], ntk(attach(model, {"head": Adapter(A[:1], None, 2.0)}), x)) < TOLERANCE
    assert relative(kernels[1, 0], ntk(loras[1].attach(model, 4), x)) < TOLERANCE


def test_attached_adapters_start_at_the_models_function():
    for build, draw in CASES.values():
        model, x = randomised(build()), draw(3, 0)
        assert torch.equal(LoRA(2, layers=".*").attach(model)(x), model(x))


class Gemma2RMSNorm(nn.Module):
    """A norm known by its name alone, whose weight is an offset from 1."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, a):
        return a / (a.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + self.weight)


class Norms(nn.Module):
    """Every other normalisation and convolutions in groups, one of them depthwise."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(4, 6, 3, groups=2, padding=1)
        self.by_group = nn.GroupNorm(3, 6)
        self.depthwise = nn.Conv2d(6, 6, (3, 2), groups=6, stride=2, bias=False)
        self.by_channel = nn.InstanceNorm2d(6, affine=True)
        self.rms, self.offset = nn.RMSNorm(6), Gemma2RMSNorm(6)
        self.narrow = nn.Conv1d(6, 3, 2, groups=3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        h = torch.tanh(self.by_group(self.grouped(x)))
        h = torch.tanh(self.by_channel(self.depthwise(h))).flatten(2)
        h = self.offset(torch.tanh(self.rms(h.mT))).mT
        return self.head(torch.tanh(self.narrow(h)).mean(-1))


def test_other_norms_and_convolutions_in_groups_are_layerwise():
    model, x1, x2 = randomised(Norms()), gaussian(3, 4, 6, 6, seed=1), gaussian(2, 4, 6, 6, seed=2)
    truth = brute_force(model, x1, x2)
    assert relative(ntk(model, x1, x2, method="layerwise"), truth) < TOLERANCE
    trace = ntk(model, x1, x2, method="layerwise", output="trace")
    assert relative(trace, torch.einsum("ncmc->nm", truth)) < TOLERANCE
    blocks = ntk(model, x1, method="layerwise", output="diagonal")
    assert relative(blocks, torch.einsum("ncnd->ncd", brute_force(model, x1, x1))) < TOLERANCE
    v = gaussian(4, seed=3)
    product = TangentKernel(model, x1, x2, method="layerwise") @ v
    assert relative(product, truth.flatten(2).flatten(0, 1) @ v) < TOLERANCE
    for name, _ in model.named_parameters():  # each on its own: a fault of one does not hide behind the others
        only = copy.deepcopy(model).requires_grad_(False)
        only.get_parameter(name).requires_grad_(True)
        assert relative(ntk(only, x1, x2, method="layerwise"), brute_force(only, x1, x2)) < TOLERANCE, name


@pytest.mark.slow
def test_a_llama_in_full_needs_no_jacobian():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=12, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    model, x = randomised(transformers.LlamaForSequenceClassification(config)), tokens(3, 1)
    assert relative(ntk(model, x, method="layerwise"), per_sample(model, x)) < 1e-5  # its norms work in float32
