"""Proxies against harm: tables in which one proxy orders the harm, one reverses it, and the rest say nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import prediction
from experiments.data import recorded
from experiments.prediction_figures import draw_clouds, draw_correlations, draw_partial, draw_step_and_rank
from experiments.runs import harms

POISON_RATES = {"untargeted": 0.3, "backdoor": 0.02}
PROXIES = [column for group in prediction.GROUPS.values() for column in group]


@pytest.fixture
def table() -> pd.DataFrame:
    """Twenty configurations of LoRA an optimizer and attack, and one of each other method."""
    harm = np.arange(23) / 22
    same = np.arange(23) * 7.0 % 23  # correlation with harm below 0.5
    methods = ["lora"] * 20 + ["full", "matched", "head"]
    parts = []
    for optimizer, attack in itertools.product(("sgd", "adamw"), POISON_RATES):
        part = pd.DataFrame(dict.fromkeys(PROXIES, same) | {"harm": harm, "method": methods})
        part = part.assign(information_bits=harm**3, cosine=-harm, optimizer=optimizer, attack=attack)
        parts.append(part.assign(learning_rate=0.1, rank=8.0, variance="peft", scaling="1"))
    return pd.concat(parts, ignore_index=True)


def test_correlations_know_order_and_its_reverse(table: pd.DataFrame) -> None:
    correlations = prediction.proxy_correlations(table, np.random.default_rng(0))
    rows = prediction.correlation_table(correlations)
    assert len(rows) == 4 * len(PROXIES)
    by_name = rows[(rows.optimizer == "sgd") & (rows.attack == "backdoor")].set_index("proxy")
    assert by_name.correlation["information bits"] == pytest.approx(1)
    assert by_name.correlation["cosine"] == pytest.approx(-1)
    assert by_name.kind["cosine"] == "scale-free"
    assert (rows.configurations == 23).all()
    labels = draw_correlations(correlations).axes[0].get_yticklabels()
    assert [text.get_text() for text in labels][-2:] == ["clean accuracy", "trace × learning rate"]


def test_what_rank_and_clean_accuracy_know_is_not_counted_again(table: pd.DataFrame) -> None:
    noise = np.random.default_rng(1).normal(size=len(table))
    table = table.assign(**{"size of rank": noise, "accuracy_without": table.harm + 1e-3 * noise})
    partial = prediction.partial_correlations(table, np.random.default_rng(0))
    assert draw_partial(prediction.proxy_correlations(table, np.random.default_rng(0)), partial).axes
    assert all(abs(e.value) < 0.6 for e in partial["sgd", "backdoor"] if e.name == "alignment")
    told = table.assign(accuracy_without=np.roll(noise, 1))
    beyond = prediction.partial_correlations(told, np.random.default_rng(0))["sgd", "backdoor"]
    assert {e.name: e.value for e in beyond}["information bits"] == pytest.approx(1)


def test_a_proxy_that_orders_harm_helps_where_the_null_proxies_do_not(table: pd.DataFrame) -> None:
    rng = np.random.default_rng(2)
    table = table.assign(
        **{"size of rank": rng.normal(size=len(table)), "accuracy_without": rng.normal(size=len(table))}
    )
    added = prediction.added_on_held_out(table).set_index(["optimizer", "attack", "proxy"])
    useful, idle = added.loc["sgd", "backdoor", "information bits"], added.loc["sgd", "backdoor", "alignment"]
    assert useful.error < 1e-12
    assert useful.low > 0
    assert idle.low < 0
    best = prediction.most_added(added.reset_index())
    assert (best["that add"] >= 1).all()


def test_a_left_out_row_is_predicted_from_the_others(table: pd.DataFrame) -> None:
    rows = table[(table.optimizer == "sgd") & (table.attack == "backdoor")].reset_index(drop=True)
    rows["alignment"] = np.random.default_rng(3).normal(size=len(rows))
    errors = prediction._left_out_errors(rows, ["alignment"])
    ranks = rows.alignment.rank().to_numpy()
    kept = np.arange(len(rows)) != 4
    slope, start = np.polyfit(ranks[kept], rows.harm[kept], 1)
    assert errors[4] == pytest.approx(abs(rows.harm[4] - start - slope * ranks[4]))


def test_clouds_have_one_handle_a_method(table: pd.DataFrame) -> None:
    legend = draw_clouds(table).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["full", "matched", "head", "lora"]


def test_one_learning_rate_is_that_of_the_method(table: pd.DataFrame) -> None:
    rates = pd.DataFrame(
        [{"method": "lora", "rank": np.nan, "variance": "peft", "scaling": "1", "optimizer": o, "learning_rate": 0.1}
         for o in ("sgd", "adamw")]
    )  # fmt: skip
    table.loc[table.harm == 0, "learning_rate"] = 0.3
    found = prediction.correlations_at_one_learning_rate(table, rates, np.random.default_rng(0))
    assert set(found.configurations) == {19}  # twenty of LoRA, one of them at another learning rate
    bits = found[found.proxy == "information bits"]
    assert bits.correlation.tolist() == pytest.approx([1] * 4)
    assert set(zip(found.optimizer, found.attack, strict=True)) == set(
        itertools.product(("SGD", "AdamW"), ("flips", "backdoor"))
    )


def runs() -> pd.DataFrame:
    """Backdoors that win 0.5 with full fine-tuning, 0.3 matched and 0.25 with LoRA; flips 0.1 less of each."""
    rows: list[dict[str, Any]] = []
    success = {"full": 0.5, "matched": 0.3, "lora": 0.25}
    for (method, won), rank, seed in itertools.product(success.items(), (1.0, 8.0, 64.0), range(3)):
        if method == "full" and rank > 1:
            continue
        fields = {"method": method, "rank": rank if method != "full" else np.nan, "seed": seed, "optimizer": "sgd"}
        fields |= {"variance": "peft", "scaling": "1"} if method == "lora" else {"variance": np.nan, "scaling": np.nan}
        fields |= {"steps": 300, "batch_size": 64, "learning_rate": 0.1}
        attacks = [("none", 0.0, 0.0, 0.0), ("untargeted", 0.3, won - 0.1, 0.0), ("backdoor", 0.02, 0.0, won)]
        for attack, share, lost, gained in attacks:
            outcome = {"clean_accuracy": 0.9 - lost, "attack_success": gained}
            rows.append(fields | {"attack": attack, "poison_rate": share} | outcome)
    table = pd.DataFrame(rows)
    return table.assign(id=table.index.astype(str))


def test_configurations_carry_rank_and_step() -> None:
    table = runs()
    proxies = pd.DataFrame({"id": table.id, "fisher_trace": 2.0})
    found = prediction.predicted_and_measured(table, proxies, POISON_RATES, 300)
    assert len(found) == 2 * 7
    assert set(found["trace × rate"]) == {0.2}
    assert found[found.method == "matched"]["size of rank"].unique().tolist() == [256.0]
    assert sorted(found[found.method == "lora"]["size of rank"].unique()) == [1.0, 8.0, 64.0]


def test_what_lora_spares_is_step_plus_rank() -> None:
    parts = prediction.step_and_rank(harms(runs()), POISON_RATES, 300)
    rows = prediction.parts_table(parts)
    assert rows.part.tolist()[:2] == ["flips, r = 1: step size", "flips, r = 1: low rank"]
    assert rows.spared.tolist() == pytest.approx([0.2, 0.05] * 6)
    assert draw_step_and_rank(parts).axes[0].get_xlabel() == "harm spared"


def recorded_table(own: bool) -> pd.DataFrame:
    proxies = prediction.of_kernel(recorded("results/proxies-digits"), own)
    return prediction.predicted_and_measured(recorded("results/digits").query("seed < 20"), proxies, POISON_RATES, 300)


def test_whose_kernel_is_asked_changes_what_stands_under_adamw_alone() -> None:
    """And what chapter 13 says of it."""
    own, plain = recorded_table(own=True), recorded_table(own=False)
    sgd = own.optimizer == "sgd"
    pd.testing.assert_frame_equal(own[sgd], plain[sgd])
    assert (own[~sgd].fisher_trace != plain[~sgd].fisher_trace).all()
    found = prediction.beside_plain(own, plain).set_index("proxy")
    assert (found["flips, Adam's kernel"].abs() > found["flips, plain kernel"].abs()).all()
    assert found.loc["information bits", "flips, Adam's kernel"] > 0.5
    best = found.loc["trace × learning rate"]
    assert best["flips, Adam's kernel"] == pytest.approx(0.84, abs=0.005)
    theory = found.drop("trace × learning rate")
    for attack, rows in own[~sgd].groupby("attack"):
        word = {"untargeted": "flips", "backdoor": "backdoor"}[str(attack)]
        places = rows["size of rank"].rank() + rows.learning_rate.rank()
        together = places.corr(rows.harm, method="spearman")
        assert together == pytest.approx({"flips": 0.89, "backdoor": 0.79}[word], abs=0.005)
        assert together > best[f"{word}, Adam's kernel"] > theory[f"{word}, Adam's kernel"].abs().max()
    rank = own[~sgd & (own.attack == "backdoor")]
    assert rank["size of rank"].corr(rank.harm, method="spearman") > best["backdoor, Adam's kernel"] - 0.05


def test_no_proxy_is_shown_to_add_to_what_needs_no_theory() -> None:
    """What chapter 13 says of the recorded runs, whichever kernel is asked."""
    for own in (True, False):
        for known in (known for known in prediction.NULLS.values() if known):
            assert not prediction.added_on_held_out(recorded_table(own), known).adds.any()
    errors = prediction.null_errors(recorded_table(own=True))
    assert (errors["rank and learning rate"] < errors["rank and clean accuracy"]).all()


def test_the_sign_of_information_hangs_on_what_is_held() -> None:
    """What chapter 13 says of backdoors under SGD, and of flips under AdamW."""
    table, rng = recorded_table(own=True), np.random.default_rng(0)
    bits = prediction.bits_by_held(table, rng).set_index(["optimizer", "attack"])
    of_sgd = bits.loc["SGD", "backdoor"]
    assert of_sgd["rank and clean accuracy held"].startswith("-0.53")
    assert of_sgd["rank and learning rate held"].startswith("0.69")
    assert of_sgd["all three held"].startswith("0.02")
    flips = prediction.partial_correlations(table, rng, prediction.BEFORE)["adamw", "untargeted"]
    assert all(0.6 <= abs(e.value) < 0.71 and e.low * e.high > 0 for e in flips)
    partial = prediction.partial_correlations(table, rng, prediction.NULLS["all three"])
    assert all(0.645 <= abs(e.value) < 0.745 and e.low * e.high > 0 for e in partial["adamw", "untargeted"])
    assert all(abs(e.value) < 0.15 for key in (("sgd", "backdoor"), ("sgd", "untargeted")) for e in partial[key])
    best = prediction.most_added(prediction.added_on_held_out(table, prediction.BEFORE))
    gains = best.set_index(["optimizer", "attack"]).gain
    assert gains["AdamW", "flips"] == pytest.approx(0.003, abs=0.0005)
