"""The certificate of the order, against kernels at random points and along training."""

from itertools import repeat

import pandas as pd
import pytest
import torch
from strategies import gaussian

from experiments.certificate import TOGETHER, follow, merged, orders, over_controls, search, worst_layer
from experiments.certificate_figures import draw_along
from experiments.data import digits, recorded
from experiments.order import kernel_ratios, matrix
from lorantk import Adapter, LoRA, attach, mlp, ntk


def test_the_ratio_never_exceeds_the_certificate():
    table = search(range(200))
    assert len(table) > 150
    assert table.error.max() < 1e-11
    assert (table.ratio <= table.bound * (1 + 1e-5)).all()  # a ratio is known to eps / 1e-10
    assert (table.ratio / table.bound).max() > 0.9  # and the bound is met by some


def test_merging_keeps_the_function():
    model = mlp([4, 5, 3], parametrization="standard").double()
    adapted = attach(model, {"2": Adapter(gaussian(2, 5, seed=0), gaussian(3, 2, seed=1), 1.7)})
    x = gaussian(6, 4, seed=2)
    adapted.get_parameter("0.weight").data += 1.0  # a layer without an adapter may train too
    assert torch.allclose(merged(adapted, model)(x), adapted(x), atol=1e-12)
    assert not torch.allclose(model(x), adapted(x))


def test_along_training_the_certificate_starts_at_that_of_A_and_bounds_the_ratio():
    x, y = digits(24)
    model = mlp([64, 16, 10], parametrization="standard").double()
    table = follow(LoRA(4).attach(model, 0), model, repeat((x, y)), x[:8], ("adamw", 1e-2), [0, 20])
    assert (table[table.step == 0].share_of_B == 0).all()
    assert (table[table.step == 20].share_of_B > 0).all()
    assert (table.ratio <= table.certificate * (1 + 1e-5)).all()


def test_all_layers_together_have_the_order_of_the_whole_kernels():
    x, y = digits(24)
    model = mlp([64, 16, 10], parametrization="standard").double()
    adapted = LoRA(4).attach(model, 0)
    follow(adapted, model, repeat((x, y)), x[:8], ("adamw", 1e-2), [20])
    lora, full = (ntk(m, x[:8], layers=["0", "2"], output="full") for m in (adapted, merged(adapted, model)))
    table = orders(adapted, model, x[:8]).set_index("layer").ratio
    whole = kernel_ratios(matrix(lora), matrix(full))[-1].item()
    assert table[TOGETHER] == pytest.approx(whole, rel=1e-6)
    assert table[TOGETHER] < table.drop(TOGETHER).max()


def test_the_figure_has_the_worst_layer_of_recorded_runs():
    worst = worst_layer(recorded("results/training-order-minilm"))
    assert set(worst.scaling) == {1.0, 2.0}
    assert (worst["worst layer"] <= worst.certificate * (1 + 1e-5)).all()
    assert (worst["all layers"] <= worst["worst layer"] * (1 + 1e-5)).all()
    titles = [ax.get_title() for ax in draw_along(worst).axes]
    assert titles == ["SGD, s = 1", "SGD, s = 2", "AdamW, s = 1", "AdamW, s = 2"]


def test_training_that_diverges_ends_where_it_does():
    x, y = digits(24)
    model = mlp([64, 16, 10], parametrization="standard").double()
    with pytest.warns(UserWarning, match="diverged at step"):
        table = follow(LoRA(4).attach(model, 0), model, repeat((x, y)), x[:8], ("sgd", 1e8), [0, 200])
    assert set(table.step) == {0}


def test_controls_of_the_recorded_runs_stand_beside_them():
    table = over_controls(*map(recorded, ("results/training-order-minilm", "results/training-order-minilm-controls")))
    assert table.groupby("trained").size().to_dict() == {"adapter": 4, "adapter and head": 7, "head": 2}
    assert (table["c, all layers"] <= table["c, worst layer"] * (1 + 1e-5)).all()
    assert (table[table.trained == "head"]["c, worst layer"] < 0.1).all()  # the adapters' start
    layer, every = "c, worst layer", "c, all layers"
    by = table.set_index(["trained", "optimizer", "rate"])
    adamw = table[table.optimizer.eq("adamw") & table.trained.ne("head")]
    assert len(adamw) == 4
    assert ((adamw[layer] > 1) & (adamw[every] < 1)).all()  # what chapter 16 says of AdamW, ...
    assert (by.loc["adapter and head", "sgd"].loc[[0.1, 0.3], layer] < 1).all()  # ... of SGD's rates, ...
    assert by.loc[("adapter and head", "sgd", 1.0), every] > 100
    assert by.loc[("adapter", "sgd", 0.3), layer] > 1 > by.loc[("adapter", "sgd", 0.3), every]
    assert by.loc[("adapter", "sgd", 1.0), every] > 1
    assert by.loc[("adapter", "adamw", 0.001), "accuracy, step 100"] > 0.8  # ... and of the adapter alone
    worst = worst_layer(recorded("results/training-order-minilm"))
    tops = worst[worst.scaling == 2].groupby(["optimizer", "seed"])["all layers"].max().round(2)
    assert (sorted(tops["adamw"]), tops["sgd"].max()) == ([0.97, 1.09, 1.29], 0.61)


def test_adamw_takes_two_to_four_of_six_layers_out_by_step_100():
    controls = recorded("results/training-order-minilm-controls")
    runs = recorded("results/training-order-minilm").query("scaling == '1'").assign(trained="adapter and head")
    every = pd.concat([runs, controls[controls.trained != "head"]])
    last = every[every.optimizer.eq("adamw") & every.step.eq(100) & every.layer.ne(TOGETHER)]
    outside = (last.ratio > 1).groupby([last.trained, last.learning_rate, last.seed]).sum()
    assert last.layer.nunique() == 6
    assert (outside.min(), outside.max()) == (2, 4)


def test_the_head_alone_learns_as_well_as_both_by_sgd_and_at_a_higher_loss_by_adamw():
    head = recorded("results/training-order-minilm-controls").query(
        "trained == 'head' and step == 100 and learning_rate < 1"
    )
    both = recorded("results/training-order-minilm").query("scaling == '1' and step == 100")
    means = [
        t.drop_duplicates(["optimizer", "seed"]).groupby("optimizer")[["accuracy", "loss"]].mean() for t in (head, both)
    ]
    assert means[0].loc["sgd", "loss"] == pytest.approx(means[1].loc["sgd", "loss"], abs=0.02)
    assert (means[0] - means[1]).loc["adamw", "loss"] > 0.1
    assert abs((means[0] - means[1]).loc["adamw", "accuracy"]) < 0.05
