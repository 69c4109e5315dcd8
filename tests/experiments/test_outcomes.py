"""The recorded evidence, decided: every half of every finding has outcomes from every source; one dose is primary."""

from __future__ import annotations

from pathlib import Path

import pytest

from evidence.findings import rows_of_findings
from evidence.statements import FINDINGS, SOURCES
from experiments import outcomes
from experiments.admissible import validation
from experiments.config import load_grid
from experiments.identified import MPNET, REVIEWS
from experiments.rate_curves import attacked_runs


@pytest.fixture(scope="module")
def members():
    return outcomes.whole_family()


def test_every_half_of_every_finding_has_a_primary_effect_from_every_source(members):
    found = {(m.finding, m.half, m.source) for m in members if m.primary}
    assert found == {(id, half, source) for id, half in rows_of_findings() for source in SOURCES}
    assert all(m.outcome for m in members)


def test_each_source_has_a_finding_a_piece_with_the_command_that_reruns_it(members):
    for source in SOURCES:
        found = list(outcomes.findings(members, source))
        assert [f.id for f in found] == list(FINDINGS)
        assert sum(len(f.members) for f in found) == sum(m.source == source for m in members)
    commands = {(s, f.id): f.command.split("run ")[-1] for s in SOURCES for f in outcomes.findings(members, s)}
    assert commands["digits", "finding-1"] == "digits-exact"
    assert commands["digits", "finding-3"] == "digits-variance"
    assert commands["text", "finding-4"] == "text-mpnet"
    assert commands["text", "finding-5"] == "text"


def test_the_text_grid_attacks_the_admissible_learning_rates_and_no_others():
    """Its second stage was written from the clean runs of the first."""
    blocks = load_grid(Path(outcomes.__file__).parent / "grids" / "text-exact-attacked.yaml")
    for errors in (1.0, 2.0):
        table = validation(outcomes.review_runs(), errors)
        table = table[table.admissible & (table.method != "head")].fillna({"rank": 0})
        admissible = {(row.method, int(row.rank), row.learning_rate) for row in table.itertuples()}
        kept = [run for name, block in blocks.items() if errors > 1 or "two-errors" not in name for run in block]
        assert {(run.method, run.rank or 0, run.learning_rate) for run in kept} == admissible
    runs = [run for block in blocks.values() for run in block]
    assert {(run.attack, run.poison_rate) for run in runs} == set(outcomes.COUNTED.items())
    recorded = outcomes.review_runs()
    assert {run.id for run in runs} == set(recorded[recorded.attack != "none"].id), "all of it was run"


def test_what_the_pages_say_of_reviews_is_so():
    """Chapter 12: success over the rates of rank 8 and of full fine-tuning; arms that are spared at equal accuracy."""
    attacked = attacked_runs(outcomes.review_runs(), REVIEWS)
    backdoor = attacked[attacked.attack == "backdoor"]
    means = backdoor.groupby(["arm", "learning_rate"])[["attack_success", "accuracy_without"]].mean()
    success, accuracy = means.attack_success, means.accuracy_without
    rank8, full = success["LoRA, r = 8"], success["full", 0.0001]
    assert rank8[0.0003] < 0.3 < full < rank8[0.001] < 0.95 < rank8[0.003]
    for arm, rate in (("LoRA, r = 8", 0.0003), ("LoRA, r = 64", 0.0001)):
        assert accuracy[arm, rate] >= accuracy["full", 0.0001]
        assert success[arm, rate] < full / 2
    for rate, arms in ((0.0003, ("full", "LoRA, r = 64", "LoRA, r = 8")),
                       (0.001, ("LoRA, r = 64", "LoRA, r = 8", "LoRA, r = 1"))):  # fmt: skip
        assert list(success[[(arm, rate) for arm in arms]]) == sorted(
            success[[(arm, rate) for arm in arms]], reverse=True
        )
    flips = attacked[(attacked.attack == "untargeted") & attacked.best].groupby("arm").harm.mean()
    assert flips["LoRA, r = 8"] > flips["LoRA, r = 64"] > flips["LoRA, r = 1"]


def test_earlier_runs_on_text_have_no_say_where_the_text_grids_decide(members):
    text = [m for m in members if m.source == "text" and m.finding in outcomes.METHODS_AND_RANKS]
    assert {m.primary for m in text if m.setting.startswith("reviews")} == {True}
    assert {m.setting for m in text if m.primary} == {
        "reviews, AdamW, 300 of 1000", "reviews, AdamW, 20 of 1000",
        "MPNet, reviews, AdamW, 300 of 1000", "MPNet, reviews, AdamW, 15 of 1000",
    }  # fmt: skip


def test_the_grid_with_mpnet_is_complete_and_the_family_has_the_size_that_the_protocol_names(members):
    runs = [
        run
        for block in load_grid(Path(outcomes.__file__).parent / "grids" / "text-mpnet.yaml").values()
        for run in block
    ]
    assert {run.id for run in runs} == set(outcomes.mpnet_runs().id)
    assert len(members) == 95


def test_a_failed_setting_is_inconclusive_whatever_its_effect(members):
    failed = [m for m in members if m.failed]
    assert {m.source for m in failed} == {"digits", "text"}
    assert {m.outcome for m in failed} == {"inconclusive"}


def test_the_primary_dose_is_the_one_that_is_asked_for(members):
    doses = {m.setting for m in members if m.source == "digits" and m.primary and m.half == "backdoor"}
    assert doses == {"SGD, 8 of 500", "AdamW, 8 of 500"}


def test_what_the_pages_say_of_two_standard_errors_is_so():
    found = outcomes.within_two_errors()
    assert set(found.finding) == {"finding-1", "finding-2", "finding-4"}
    assert set(found["one error"]) == {"inconclusive", "supported", "reversed"}
    assert set(found["two errors"]) == {"inconclusive"}


def test_what_the_pages_say_of_mpnet_is_so(members):
    """Chapter 12: both rates of the attacked arms are admissible, harm between them, and what all of it comes to."""
    table = validation(outcomes.mpnet_runs())
    assert table[table.method != "head"].admissible.all()
    attacked = attacked_runs(outcomes.mpnet_runs(), MPNET)
    backdoor = attacked[attacked.poison_rate == outcomes.COUNTED_MPNET["backdoor"]]
    means = backdoor.groupby(["arm", "learning_rate"])[["harm", "accuracy_without", "attack_success"]].mean()
    said = {
        ("full", 0.0001): 0.45, ("full", 0.0003): 0.90, ("LoRA, r = 64", 0.0001): 0.02, ("LoRA, r = 64", 0.0003): 0.13,
        ("LoRA, r = 8", 0.001): 0.38, ("LoRA, r = 8", 0.003): 0.83, ("LoRA, r = 1", 0.001): 0.09,
        ("LoRA, r = 1", 0.003): 0.59,
    }  # fmt: skip
    assert means.harm.round(2).to_dict() == said
    assert means.attack_success["full", 0.0001] == pytest.approx(0.49, abs=0.005)
    accuracy = means.accuracy_without
    for rate in (0.0001, 0.0003):
        assert abs(accuracy["LoRA, r = 64", rate] - accuracy["full", rate]) < 0.005
    success = means.attack_success.unstack("arm").agg(["min", "max"])
    assert (success.loc["max"] > 1.9 * success.loc["min"]).all()
    for _, rows in attacked.groupby(["attack", "poison_rate"]):
        by_arm = rows.groupby(["arm", "learning_rate"]).harm.mean()
        assert by_arm["LoRA, r = 64"].max() < by_arm["full"].min()
    best = table[table.best].set_index(["method", "rank"]).learning_rate
    assert [best["lora", rank] / best["full"].item() for rank in (1, 8)] == pytest.approx([10, 30])
    other = attacked[attacked.poison_rate == 0.02].groupby(["arm", "learning_rate"]).attack_success.mean()
    assert other["full", 0.0001] == pytest.approx(0.82, abs=0.006)
    assert all(other[arm, rate] > 0.9 for arm, rate in
               (("full", 0.0003), ("LoRA, r = 8", 0.003), ("LoRA, r = 1", 0.003)))  # fmt: skip
    assert {m.outcome for m in members if m.setting.startswith("MPNet")} == {"inconclusive"}
