"""Harm at an equal share of flips learned: networks whose harm is known by hand, and the recorded grid."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import memorisation
from experiments.config import load_grid
from experiments.memorisation import CHECKPOINTS, at_share, comparisons, curves

GRID = Path(memorisation.__file__).parent / "grids" / "digits-memory.yaml"


def along(arm, rate, seed, shares, harms):
    rows = zip(CHECKPOINTS, shares, harms, strict=False)
    common = {"optimizer": "sgd", "arm": arm, "learning_rate": rate, "poison_rate": 0.2, "seed": seed}
    return pd.DataFrame([common | {"steps": step, "share": s, "harm": h} for step, s, h in rows])


@pytest.mark.parametrize(
    ("shares", "harms", "expected"),
    [
        ((0.1, 0.3, 0.7), (0.0, 0.1, 0.3), 0.2),  # half way between the second and the third
        ((0.6, 0.8, 0.9), (0.05, 0.1, 0.3), 0.05),  # there at the first look
        ((0.1, 0.5, 0.9), (0.0, 0.1, 0.3), 0.1),  # at a checkpoint itself
        ((0.1, 0.6, 0.2), (0.0, 0.1, 0.3), 0.08),  # the first time counts
        ((0.1, 0.2, 0.4), (0.0, 0.1, 0.3), None),  # never
        ((0.1, np.nan, np.nan), (0.0, np.nan, np.nan), None),  # diverged
        ((np.nan, np.nan, np.nan), (np.nan, np.nan, np.nan), None),
    ],
)
def test_harm_is_read_where_half_of_the_flips_are_learned(shares, harms, expected):
    found = at_share(along("full", 0.1, 0, shares, harms), 0.5)
    assert len(found) == 1
    assert found.harm.isna().item() if expected is None else found.harm.item() == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_a_share_is_a_share(share):
    with pytest.raises(ValueError, match=f"share must be above 0 and at most 1; got {share}"):
        at_share(along("full", 0.1, 0, (0.5,), (0.1,)), share)


def test_an_effect_at_equal_share_is_that_which_was_put_in():
    rng = np.random.default_rng(0)
    losses = {"full": 0.1, "LoRA, r = 1": 0.4, "LoRA, r = 8": 0.3, "LoRA, r = 64": 0.2}
    table = pd.concat([
        along(arm, rate, seed, (0.0, 1.0), (0.0, 2 * loss + 0.002 * rng.standard_normal()))
        for arm, loss in losses.items() for rate in memorisation.RATES["sgd"] for seed in range(12)
    ])  # fmt: skip
    found = comparisons(table).query("share == 0.5").set_index("effect")
    method, trend = (found.loc[name] for name in ("LoRA r = 8 − full", "rank 1 − rank 64, by trend"))
    assert (method.lowest, method.highest) == pytest.approx((0.2, 0.2), abs=0.005)
    assert (trend.lowest, trend.highest) == pytest.approx((0.2, 0.2), abs=0.005)
    assert (method.says, method.combinations, trend.combinations) == ("above 0", "9 of 9", "9 of 9")
    middle = curves(table, [0.5]).set_index("arm")["mean"]
    assert middle.to_dict() == pytest.approx(losses, abs=0.005)


def test_too_few_seeds_give_no_effect():
    table = pd.concat([along(arm, 0.1, seed, (0.0, 1.0), (0.0, 0.1)) for arm in ("full", "LoRA, r = 8")
                       for seed in range(9)])  # fmt: skip
    found = comparisons(table)
    assert found.lowest.isna().all()
    assert set(found.combinations) <= {"0 of 9", "0 of 27"}


def test_the_grid_is_the_one_that_is_analysed():
    runs = [run for block in load_grid(GRID).values() for run in block]
    assert {run.steps for run in runs} == set(CHECKPOINTS)
    assert {run.poison_rate for run in runs} == {0.0, *memorisation.FLIPS}
    for optimizer, rates in memorisation.RATES.items():
        assert {run.learning_rate for run in runs if run.optimizer == optimizer} == set(rates)
    recorded = memorisation.memorising_runs()
    assert set(recorded.id) <= {run.id for run in runs}
    assert len(recorded) == recorded.seed.nunique() * len(runs) / 20


def test_where_half_of_the_flips_are_learned_lora_has_lost_more():
    """What chapter 12 says of the recorded grid."""
    everywhere = comparisons(memorisation.along(memorisation.memorising_runs()))
    found = everywhere.query("share == 0.5")
    method = found[found.effect.str.startswith("LoRA")].set_index(["optimizer", "flips"])
    assert (method.lowest.drop(("AdamW", 0.4)) > 0).all()
    assert -0.01 < method.lowest["AdamW", 0.4] < 0 < method.highest["AdamW", 0.4]
    trend = found[found.effect.str.startswith("rank")].set_index("optimizer")
    assert (trend.lowest["SGD"] > 0).all()
    assert (trend.lowest["AdamW"] < 0).all()
    assert (method.low < 0).all()
    others = everywhere[everywhere.effect.str.startswith("LoRA")].query("share != 0.5").set_index("flips").lowest
    assert (others[0.2] > 0).all()
    assert (others[0.4] < 0).any()
    assert -0.02 < others[0.4].min() < -0.015
