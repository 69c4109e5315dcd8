"""What a configuration implies, and what a saved adapter has become, against adapters made on the spot with PEFT."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorantk import Adapter, attach, ntk, read_peft
from lorantk.adapter_files import read_adapter
from lorantk.audit import audit, audit_layer, plan

peft = pytest.importorskip("peft")


class Net(nn.Module):
    """A layer of each kind that PEFT adapts."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 128)
        self.conv = nn.Conv1d(128, 128, 3, padding=1)
        self.turned = Conv1D(128, 128)
        self.first, self.second = nn.Linear(128, 160), nn.Linear(160, 128)
        self.head = nn.Linear(128, 3)

    def forward(self, ids):
        x = self.conv(self.embed(ids).mT).mT.contiguous()
        return self.head(self.second(torch.tanh(self.first(self.turned(x)))).mean(1))


def saved(folder, *, steps=0, dtype=torch.float32, **config):
    """A folder with an adapter of `Net`, after some steps of AdamW; the live model too."""
    torch.manual_seed(0)
    config = {"target_modules": ["first", "second"], "r": 8, "lora_alpha": 16} | config
    model = peft.get_peft_model(Net(), peft.LoraConfig(**config))
    ids, y = torch.randint(50, (32, 12)), torch.randint(3, (32,))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), y).backward()
        optimizer.step()
    model.to(dtype).save_pretrained(folder)
    return model


# ---------------------------------------------------------------- plan


@pytest.mark.parametrize(
    ("rank", "alpha", "width", "premise"),
    [
        (64, 16, 4096, 0.026), (32, 32, 4096, 0.39), (8, 8, 768, 0.40), (8, 16, 768, 1.62), (16, 32, 1024, 1.69),
        (8, 32, 768, 6.5), (1000, 100000, 4096, 7441),
    ],
)  # fmt: skip
def test_premise_of_configurations_in_use(rank, alpha, width, premise):
    assert plan(rank, alpha, width).order[1] == pytest.approx(premise, rel=0.02)


@pytest.mark.parametrize("init", ["peft", "gaussian", "orthonormal"])
def test_order_and_scale_against_draws(init):
    """On R^n and on d directions: the spectrum of s^2 A^T A there, over draws."""
    rank, width, d = 16, 400, 25
    p = plan(rank, 20.0, width, init, dimension=d)
    U = torch.linalg.qr(torch.randn(width, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    tops, scales = [], []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        A = {
            "peft": lambda g: (2 * torch.rand(rank, width, generator=g, dtype=torch.float64) - 1) / math.sqrt(width),
            "gaussian": lambda g: torch.randn(rank, width, generator=g, dtype=torch.float64) / rank,
            "orthonormal": lambda g: torch.linalg.qr(torch.randn(width, rank, generator=g, dtype=torch.float64))[0].T,
        }[init](generator)
        top = [p.scaling**2 * float(torch.linalg.matrix_norm(M, 2)) ** 2 for M in (A, A @ U)]
        tops.append(top)
        scales.append(p.scaling**2 * float(A.square().sum()) / width)
    mean = torch.tensor(tops).mean(0)
    # The mean of the largest singular value lies below the edge, by about one fluctuation n^(-2/3) of it
    assert p.order[1] * 0.9 <= mean[0] <= p.order[1] * 1.001
    assert p.order_on_data[1] * 0.8 <= mean[1] <= p.order_on_data[1] * 1.02
    assert sum(scales) / 20 == pytest.approx(p.sgd, rel=0.02)


@given(
    rank=st.integers(1, 64), alpha=st.floats(0.5, 200), width=st.integers(64, 2000), rslora=st.booleans(),
    init=st.sampled_from(["peft", "gaussian", "orthonormal"]),
)  # fmt: skip
def test_alpha_at_another_rank_keeps_the_step_and_the_largest_dimension_is_the_largest(
    rank, alpha, width, rslora, init
):
    p = plan(rank, alpha, width, init, rslora)
    sgd, adam = p.alpha_at(3)
    assert plan(3, sgd, width, init, rslora).sgd == pytest.approx(p.sgd)
    assert plan(3, adam, width, init, rslora).adam == pytest.approx(p.adam)
    d = p.largest_dimension
    assert d == 0 or plan(rank, alpha, width, init, rslora, d).order_on_data[1] <= 1
    assert d == width or plan(rank, alpha, width, init, rslora, d + 1).order_on_data[1] > 1


def test_first_steps_of_sgd_and_adam():
    """One input: the output moves by the kernel under SGD, and by a sign step under Adam; 40 draws in the mean."""
    n, m, rank, alpha = 600, 5, 8, 16.0
    p = plan(rank, alpha, n)
    generator = torch.Generator().manual_seed(0)
    moves = {torch.optim.SGD: [], torch.optim.Adam: []}
    for _ in range(40):
        a, g = (torch.randn(k, generator=generator, dtype=torch.float64) for k in (n, m))
        A = (2 * torch.rand(rank, n, generator=generator, dtype=torch.float64) - 1) / math.sqrt(n)
        for optimizer, found in moves.items():
            B = torch.zeros(m, rank, dtype=torch.float64, requires_grad=True)
            W = torch.zeros(m, n, dtype=torch.float64, requires_grad=True)
            step = optimizer([B, W], lr=1e-3)
            (g @ (p.scaling * B @ (A @ a)) + g @ (W @ a)).backward()
            step.step()
            found.append(float((g @ (p.scaling * B @ (A @ a))).detach() / (g @ (W @ a)).detach()))
    for optimizer, law in ((torch.optim.SGD, p.sgd), (torch.optim.Adam, p.adam)):
        ratios = torch.tensor(moves[optimizer])
        assert ratios.mean().item() == pytest.approx(law, abs=4 * ratios.std().item() / math.sqrt(40))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rank": 0}, "rank must be at least 1"), ({"rank": 65}, "at most the width 64"),
        ({"alpha": 0.0}, "alpha must be finite and above"), ({"alpha": math.nan}, "alpha"),
        ({"init": "pissa"}, "init must be one of"), ({"dimension": 65}, "dimension must be at most the width"),
        ({"width": 0}, "width must be at least"),
    ],
)  # fmt: skip
def test_plan_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        plan(**{"rank": 8, "alpha": 16.0, "width": 64} | arguments)


# ---------------------------------------------------------------- audit


@pytest.mark.parametrize(("init", "name"), [(True, "uniform"), ("gaussian", "gaussian"), ("pissa", "moved"),
                                            ("olora", "orthonormal"), ("orthogonal", "moved")])  # fmt: skip
def test_draws_of_peft(tmp_path, init, name):
    """OLoRA takes the Q of W's QR decomposition: its rows are orthonormal up to its scaling."""
    saved(tmp_path, init_lora_weights=init)
    report = audit(read_adapter(tmp_path))
    found = {layer.draw.name for layer in report.layers}
    assert found == ({name} if init != "olora" else found & {"moved", "orthonormal"})
    assert report.init == str(init)
    untrained = init in (True, "gaussian")
    assert all((layer.update == 0) is untrained for layer in report.layers)


@pytest.mark.parametrize(
    "config",
    [
        {}, {"use_rslora": True}, {"rank_pattern": {"first": 2}, "alpha_pattern": {"second": 3}},
        {"target_modules": ["embed", "conv", "turned", "first"], "rank_pattern": {"^conv": 4}},
        {"target_modules": ["first"], "modules_to_save": ["head"]}, {"init_lora_weights": "gaussian"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_of_a_trained_adapter(tmp_path, config, dtype):
    """Rank, scaling, norms and shares against the live model's own, from the dense update s B A."""
    model = saved(tmp_path, steps=5, dtype=dtype, **config)
    live = read_peft(model)
    report = audit(read_adapter(tmp_path))
    assert {layer.name for layer in report.layers} == set(live)
    whole = ("base_model.model.head.bias", "base_model.model.head.weight")
    assert report.others == (whole if "modules_to_save" in config else ())
    total = 0.0
    for layer in report.layers:
        A, B, s = live[layer.name]
        update = s * B.double() @ A.double()
        values = torch.linalg.svdvals(update)
        p = values[values > 1e-12 * values[0]] / values.sum()
        assert (layer.rank, layer.scaling, layer.dtype) == (len(A), s, str(dtype).removeprefix("torch."))
        assert layer.update == pytest.approx(float(update.norm()), rel=1e-9)
        assert layer.stable_rank == pytest.approx(float((values / values[0]).square().sum()), rel=1e-9)
        assert layer.effective_rank == pytest.approx(math.exp(-float((p * p.log()).sum())), rel=1e-6)
        # The other route: the largest eigenvalue of P, of size fan_out fan_in
        top = s**2 * (
            torch.linalg.eigvalsh(A.double() @ A.double().T)[-1] + torch.linalg.eigvalsh(B.double().T @ B.double())[-1]
        )
        assert layer.certificate == pytest.approx(float(top), rel=1e-9)
        total += layer.update**2
    assert sum(layer.share for layer in report.layers) == pytest.approx(1.0)
    assert report.update == pytest.approx(math.sqrt(total))
    assert report.certificate == max(layer.certificate for layer in report.layers)


def test_an_embedding_is_drawn_in_b(tmp_path):
    saved(tmp_path, target_modules=["embed", "conv"])
    embed, conv = audit(read_adapter(tmp_path)).layers[::-1]
    assert (embed.name, embed.draw.name, embed.update) == ("embed", "normal", 0.0)
    assert (conv.name, conv.draw.name, conv.fan_in) == ("conv", "uniform", 3 * 128)


def test_training_moves_a_and_the_certificate(tmp_path):
    saved(tmp_path / "start")
    saved(tmp_path / "end", steps=60)
    start, end = (audit(read_adapter(tmp_path / name)) for name in ("start", "end"))
    assert start.update == 0 < end.update
    assert all(a.norm_b == 0 < b.norm_b for a, b in zip(start.layers, end.layers, strict=True))
    assert all(a.draw.moved <= a.draw.detectable for a in start.layers)
    assert end.certificate > start.certificate
    assert all(layer.draw.name in ("uniform", "moved") for layer in end.layers)


def test_the_scale_is_that_of_isotropic_inputs_and_cotangents():
    """trace K_LoRA / trace K_full of one linear layer over the standard basis, B trained."""
    layer = nn.Linear(12, 7, bias=False).double()
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 12), (7, 3)))
    adapter = Adapter(A, B, 0.7)
    x = torch.eye(12, dtype=torch.float64)
    ratio = ntk(attach(layer, {"": adapter}), x, output="trace").trace() / ntk(layer, x, output="trace").trace()
    assert audit_layer("", adapter).scale == pytest.approx(float(ratio), rel=1e-12)


def test_a_folder_is_read_as_the_live_model_is(tmp_path):
    model = saved(tmp_path, steps=2, target_modules=["embed", "conv", "first"], use_rslora=True)
    live, read = read_peft(model), read_peft(tmp_path)
    assert set(live) == set(read)
    for name, (A, B, s) in live.items():
        assert read[name].scaling == s
        assert torch.equal(read[name].A, A)
        assert torch.equal(read[name].B, B)


def test_a_report_is_json(tmp_path):
    from dataclasses import asdict

    saved(tmp_path)
    assert json.loads(json.dumps(asdict(audit(read_adapter(tmp_path)))))["naming"] == "PEFT"
