"""Adapters: how they are drawn, and that they are PEFT's."""

import copy

import pytest
import torch
from strategies import gaussian, relative
from torch import nn

from lorantk import Adapter, LoRA, attach, lora_ntk_sweep, mlp, read_peft

WIDE = mlp([400, 300, 1])


def test_same_seed_same_draw_and_another_seed_another():
    lora = LoRA(4)
    first, again, other = lora.sample(WIDE, 1), lora.sample(WIDE, 1), lora.sample(WIDE, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_adapting_fewer_layers_leaves_the_others_draw():
    assert torch.equal(LoRA(4, layers=["2"]).sample(WIDE, 1)["2"], LoRA(4).sample(WIDE, 1)["2"])


def test_layers_of_one_width_get_draws_of_their_own():
    model = mlp([4, 4, 4], seed=0)
    first, second = LoRA(2, "1/n").sample(model, 0).values()
    assert first.shape == second.shape
    assert not torch.equal(first, second)


def test_global_random_state_is_untouched():
    before = torch.random.get_rng_state()
    LoRA(2).attach(mlp([3, 4, 1]), 0)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("variance", "expected"), [("peft", 1 / 1200), ("0.5/n", 0.5 / 400), (0.3, 0.3)])
def test_entries_have_the_variance_asked_for(variance, expected):
    A = LoRA(200, variance, layers=["0"]).sample(WIDE, 0)["0"]
    # 80,000 entries: relative standard error of a variance is at most sqrt(2 / 80000) = 0.005; four of them
    assert abs(A.var().item() / expected - 1) < 0.02
    assert abs(A.mean().item()) < 4 * (expected / A.numel()) ** 0.5


def test_peft_variance_is_uniform_within_its_bound():
    A = LoRA(200, layers=["0"]).sample(WIDE, 0)["0"]
    assert 0.99 / 20 < A.abs().max() <= 1 / 20


@pytest.mark.parametrize("stabilised", [False, True])
def test_same_function_gradient_and_merged_weight_as_peft(stabilised):
    peft = pytest.importorskip("peft")
    base = mlp([5, 6, 3], "tanh", "standard", bias=True).double()
    config = peft.LoraConfig(r=2, lora_alpha=3, use_rslora=stabilised, target_modules=["0", "2"])
    theirs = peft.get_peft_model(copy.deepcopy(base), config).double()
    trainable = [p for p in theirs.parameters() if p.requires_grad]
    for index, parameter in enumerate(trainable):
        parameter.data = gaussian(*parameter.shape, seed=index)
    adapters = read_peft(theirs)
    ours = attach(base, adapters)
    x = gaussian(4, 5, seed=0)
    assert adapters["0"].scaling == pytest.approx(3 / 2**0.5 if stabilised else 1.5)
    assert relative(ours(x), theirs(x)) < 1e-13
    mine = torch.autograd.grad(ours(x).square().sum(), [p for p in ours.parameters() if p.requires_grad])
    other = torch.autograd.grad(theirs(x).square().sum(), trainable)
    assert max(relative(a, b) for a, b in zip(mine, other, strict=True)) < 1e-13
    entry = adapters["0"]
    assert relative(base[0].weight + entry.scaling * entry.B @ entry.A, theirs.merge_and_unload()[0].weight) < 1e-13


def test_attaching_leaves_the_model_alone_and_starts_at_its_function():
    model = mlp([3, 4, 2]).double()
    before = copy.deepcopy(model.state_dict())
    adapted = LoRA(2).attach(model, 0)
    x = gaussian(5, 3, seed=0)
    assert torch.equal(adapted(x), model(x))
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert {name.split(".")[1] for name, p in adapted.named_parameters() if p.requires_grad} == {"down", "up"}


def test_adapter_shares_the_prefactor_of_its_layer():
    model = mlp([3, 2], weight_variance=3.0).double()
    A, B = gaussian(2, 3, seed=0), gaussian(2, 2, seed=1)
    x = gaussian(4, 3, seed=2)
    expected = x @ (model[0].weight + 2.0 * B @ A).T  # prefactor sqrt(3 / 3) = 1
    assert relative(attach(model, {"0": Adapter(A, B, 2.0)})(x), expected) < 1e-14


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be at least 1"),
        ({"rank": 1.5}, TypeError, "rank must be an int"),
        ({"rank": 2, "variance": -1.0}, ValueError, "variance must be finite and at least 0"),
        ({"rank": 2, "variance": "1/m"}, ValueError, "variance must be a number, 'k/n'"),
        ({"rank": 2, "variance": "xavier"}, ValueError, "variance must be a number, 'k/n'"),
        ({"rank": 2, "variance": "-1/n"}, ValueError, "variance must be finite and at least 0"),
        ({"rank": 2, "scaling": 0.0}, ValueError, "scaling must be finite and above 0"),
        ({"rank": 2, "scaling": float("nan")}, ValueError, "scaling must be finite"),
    ],
)
def test_bad_configuration_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        LoRA(**arguments)


@pytest.mark.parametrize(
    ("adapters", "error", "message"),
    [
        ({"0": gaussian(4, 3, seed=0)}, ValueError, "rank 4, above the fan-in 3"),
        ({"0": gaussian(2, 3, seed=0).float()}, TypeError, "dtype torch.float32"),
        ({"0": Adapter(gaussian(2, 3, seed=0), gaussian(2, 2, seed=0))}, ValueError, "B must have shape \\(4, 2\\)"),
        ({"0": Adapter(gaussian(2, 3, seed=0), None, -1.0)}, ValueError, "scaling must be finite and above 0"),
        ({"1": gaussian(2, 3, seed=0)}, ValueError, "'1' \\(ReLU\\)"),
        ({"0": gaussian(2, 2, seed=0)}, ValueError, "must have shape \\(rank, 3\\)"),
        ({"9": gaussian(2, 3, seed=0)}, ValueError, "no such layer"),
        ({}, ValueError, "adapters must name at least one layer"),
    ],
)
def test_bad_adapters_are_named(adapters, error, message):
    with pytest.raises(error, match=message):
        attach(mlp([3, 4, 2]).double(), adapters)


def test_bad_draws_are_named():
    with pytest.raises(ValueError, match="rank must be at most the fan-in 3"):
        LoRA(4).attach(mlp([3, 4, 2]))
    with pytest.raises(ValueError, match="seed must be at least 0"):
        LoRA(2).attach(mlp([3, 4, 2]), seed=-1)


def test_layers_that_cannot_be_adapted_are_refused():
    with pytest.raises(ValueError, match="model has no layer to adapt"):
        LoRA(1).sample(nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), 0)
    with pytest.raises(TypeError, match=r"model must be a peft\.PeftModel"):
        read_peft(mlp([3, 2]))


def test_each_name_of_a_variance_draws_what_it_says():
    wide = mlp([4000, 3]).double()
    for variance, expected, fourth in [
        ("peft", 1 / 12000, 1.8),
        ("gaussian", 1 / 64, 3.0),
        ("1/r", 1 / 8, 3.0),
        (0.2, 0.2, 3.0),
    ]:
        A = LoRA(8, variance).sample(wide, 3)["0"]
        second = A.square().mean().item()
        assert second == pytest.approx(expected, rel=6 * (2 / A.numel()) ** 0.5)  # six standard errors or more
        assert A.pow(4).mean().item() / second**2 == pytest.approx(fourth, rel=6 * (96 / 9 / A.numel()) ** 0.5)
    A = LoRA(8, "orthonormal").sample(wide, 3)["0"]
    assert relative(A @ A.T, torch.eye(8).double()) < 1e-12
    assert LoRA(8, "orthonormal").entry_variance(4000) == 1 / 4000


def test_embeddings_start_as_in_peft():
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Embedding(50, 40), nn.Flatten(1), nn.Linear(40, 2))
    tuned = LoRA(4, layers=["0"]).attach(model, 1)
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=4, target_modules=["0"])).base_model.model[0]
    assert theirs.lora_embedding_A["default"].abs().max() == 0 == tuned[0].down.weight.abs().max()
    for B in (theirs.lora_embedding_B["default"], tuned[0].up.weight):
        assert B.shape == (40, 4)
        assert B.std().item() == pytest.approx(1.0, abs=6 * (1 / 320) ** 0.5)
    with pytest.raises(ValueError, match="variance 'peft' draws B of an embedding"):
        lora_ntk_sweep(model, torch.zeros(2, 1, dtype=torch.long), loras=[LoRA(4, layers=["0"])], seeds=[0])
