"""The family of all effects: margins of trends, its size, and what failed."""

from __future__ import annotations

import pandas as pd
import pytest

from evidence.effects import Effect, over_choices
from evidence.findings import Member
from experiments.family import (
    decided,
    failures,
    listed,
    primary_of,
    published_gaps,
    published_members,
    table,
    text_members,
)


def effect(value: float, error: float = 0.01, name: str = "e", unit: str = "accuracy") -> Effect:
    return Effect(name, value, value - 2 * error, value + 2 * error, 20, unit, error, freedom=19)


def member(value: float, **fields: object) -> Member:
    given: dict[str, object] = {"finding": "finding-1", "half": "flips", "source": "digits", "setting": "SGD"}
    return Member(**given | fields | {"effect": effect(value), "margin": 0.05})  # type: ignore[arg-type]


def test_the_family_decides_together_and_failures_stay_in_it() -> None:
    clear, faint = member(0.2), Member("finding-1", "flips", "text", "s", effect(0.022), 0.001)
    nothing = [Member("finding-5", "flips", "text", str(i), effect(0.0), 0.001) for i in range(9)]
    assert decided([faint])[0].outcome == "supported"
    assert decided([faint, *nothing])[0].outcome == "inconclusive"
    found = decided([clear, member(-0.2), member(0.0), member(0.2, failed="nothing works")])
    assert [m.outcome for m in found] == ["supported", "reversed", "negligible", "inconclusive"]


def test_published_effects_have_the_margin_of_their_half_and_the_next_rank_that_performs() -> None:
    scopes = [effect(0.1, name=str(i)) for i in range(6)]
    effects = {
        ("finding-1", "flips: extra loss of LoRA"): scopes,
        ("finding-2", "backdoor: loss over the ranks"): scopes,
        ("finding-4", "backdoor: r = 4 − higher ranks"): scopes,
        ("finding-5", "flips: loss over the values of k"): scopes,
    }
    members = published_members(effects, [effect(0.3, name=name) for name in ("CoLA", "these", "general")])
    assert [(m.finding, m.half, m.setting) for m in members[:2]] == [
        ("finding-1", "flips", "these tasks"), ("finding-1", "flips", "tasks in general"),
    ]  # fmt: skip
    assert {(m.finding, m.half): m.margin for m in members} == pytest.approx({
        ("finding-1", "flips"): 0.02, ("finding-2", "backdoor"): 0.05,
        ("finding-4", "backdoor"): 0.05, ("finding-5", "flips"): 0.02,
    })  # fmt: skip
    assert [m.effect.name for m in members if m.finding == "finding-4"] == ["these", "general"]
    assert {m.effect.name for m in members if m.finding != "finding-4"} == {"4", "5"}


def test_effects_on_text_keep_their_setting() -> None:
    groups = [{
        "finding-1": [effect(0.1, name="mail, SGD, flips: extra harm of LoRA")],
        "finding-2": [effect(0.1, name="mail, SGD, backdoor: harm per doubling of r")],
        "finding-3": [effect(0.1, name="mail, SGD, flips: largest gap")],
    }]  # fmt: skip
    members = text_members(groups, {"mail, SGD, backdoor": "no"}, doublings=6, decades=2)
    assert [(m.finding, m.half, m.setting) for m in members] == [
        ("finding-1", "flips", "mail, SGD, flips"), ("finding-2", "backdoor", "mail, SGD, backdoor"),
        ("finding-3", "flips", "mail, SGD, flips"),
    ]  # fmt: skip
    assert [m.margin for m in members] == pytest.approx([0.02, 0.05 / 6, 0.02])
    assert [m.failed for m in members] == ["", "no", ""]
    assert members[0].effect.name == "extra harm of LoRA"


def test_gaps_of_the_published_numbers_are_members_by_half() -> None:
    members = published_gaps({"flips": effect(0.1), "backdoor": effect(0.2)})
    assert [(m.finding, m.half, m.margin) for m in members] == [
        ("finding-3", "flips", 0.02), ("finding-3", "backdoor", 0.05)]  # fmt: skip


def test_primary_members_come_by_finding_and_setting() -> None:
    rows = [member(0.1, finding="finding-2", setting="SGD"), member(0.1, setting="SGD"), member(0.1, setting="AdamW")]
    rows += [member(0.1, source="text"), member(0.1, primary=False)]
    assert [(m.finding, m.setting) for m in primary_of(rows, "digits")] == [
        ("finding-1", "AdamW"), ("finding-1", "SGD"), ("finding-2", "SGD")]  # fmt: skip


def test_settings_fail_by_success_and_by_accuracy() -> None:
    rows = [
        ("spam", "sgd", "backdoor", "full", 0.6, 0.9), ("spam", "sgd", "backdoor", "head", 0.1, 0.8),
        ("spam", "adamw", "backdoor", "full", 0.4, 0.9), ("spam", "adamw", "backdoor", "head", 0.1, 0.8),
        ("spam", "adamw", "untargeted", "full", 0.1, 0.7), ("spam", "adamw", "untargeted", "head", 0.1, 0.8),
    ]  # fmt: skip
    columns = ["task", "optimizer", "attack", "method", "attack_success", "accuracy_without"]
    found = failures(pd.DataFrame(rows, columns=columns), ["task", "optimizer", "attack"])
    assert found == {
        "mail, AdamW, backdoor": "attack success of full fine-tuning is 0.40",
        "mail, AdamW, flips": "clean accuracy of full is 0.700, the head's 0.800",
    }


def test_a_table_shows_ranges_and_intervals() -> None:
    wide = Member("finding-1", "flips", "digits", "s", over_choices([effect(0.2), effect(0.1)], "both"), 0.02)
    rows = table(decided([wide, member(0.3)]))
    assert rows.loc[0, ["value", "lowest", "highest"]].tolist() == [0.2, 0.1, 0.2]
    assert rows.loc[0, ["low", "high"]].tolist() == pytest.approx([0.08, 0.22])
    assert rows.lowest[1] == rows.highest[1] == 0.3


def test_a_list_says_ranges_and_what_failed_in_words() -> None:
    wide = Member("finding-1", "flips", "digits", "s", over_choices([effect(0.2), effect(0.1)], "both"), 0.02)
    rows = listed([*decided([wide]), *decided([member(0.3, failed="nothing works", diverged=2)])])
    columns = ["finding", "setting", "value", "over learning rates", "95 % interval", "n", "margin", "outcome"]
    expected = [
        ["1, flips", "digits: s", "0.2", "0.1 to 0.2", "0.08 to 0.22", 20, "0.02", "supported"],
        ["1, flips", "digits: SGD", "0.3", "", "0.28 to 0.32", 20, "0.05", "inconclusive; nothing works; 2 diverged"],
    ]
    assert rows[columns].to_numpy().tolist() == expected
