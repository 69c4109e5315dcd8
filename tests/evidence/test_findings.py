"""From outcomes to verdicts over halves and three sources, and to the tables that show them."""

import json
from dataclasses import replace

import pytest

from evidence.effects import Effect, over_choices
from evidence.findings import (
    STYLES,
    Finding,
    Member,
    Shown,
    findings_table,
    load_findings,
    missing_findings,
    overall,
    overall_verdicts,
    rows_of_findings,
    verdict,
)
from evidence.statements import FINDINGS, HALVES, SOURCES
from evidence.tables import tally

EFFECT = Effect("up", 1, 0.5, 2, 5, "accuracy", 0.2, 0.01, 4)


def member(outcome="supported", half="flips", setting="SGD", **fields):
    given = {"finding": "finding-1", "source": "digits", "effect": EFFECT, "margin": 0.02}
    return Member(half=half, setting=setting, outcome=outcome, **given | fields)


def finding(flips=("supported",), backdoor=("inconclusive",), id="finding-1", source="digits"):
    outcomes = {"flips": flips, "backdoor": backdoor}
    members = [
        member(outcome, half, f"setting {i}", finding=id, source=source)
        for half in HALVES[id]
        for i, outcome in enumerate(outcomes[half])
    ]
    return Finding(id, source, members, "plane", "make notebook N=12")


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["supported", "supported"], "supported"),
        (["reversed"], "reversed"),
        (["negligible", "negligible"], "negligible"),
        (["inconclusive"], "inconclusive"),
        (["negligible", "inconclusive"], "inconclusive"),
        (["supported", "negligible"], "supported in part"),
        (["reversed", "inconclusive"], "reversed in part"),
        (["supported", "reversed", "inconclusive"], "mixed"),
    ],
)
def test_the_verdict_follows_from_the_outcomes(outcomes, expected):
    assert verdict(outcomes) == expected
    assert finding(flips=outcomes).verdicts == {"flips": expected, "backdoor": "inconclusive"}
    assert expected in STYLES


def test_effects_beside_the_primary_ones_do_not_enter_the_verdict():
    beside = member("reversed", setting="another dose", primary=False)
    both = Finding("finding-1", "digits", [*finding().members, beside], "plane", "c")
    assert both.verdicts["flips"] == "supported"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finding": "finding-6"}, "finding must be one of"),
        ({"finding": "finding-4"}, "half must be one of 'backdoor'; got 'flips'"),
        ({"source": "rumour"}, "source must be one of"),
        ({"outcome": "true"}, "outcome must be one of"),
        ({"margin": 0.0}, "margin must be finite and above 0"),
    ],
)
def test_what_may_not_be_a_member(change, message):
    with pytest.raises(ValueError, match=message):
        replace(member(), **change)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([member(), member()], "names of their own"),
        ([member()], "must hold a primary effect on backdoor"),
        ([member(""), member(half="backdoor")], "must be decided"),
        ([member(source="text"), member(half="backdoor")], "of finding-1 and digits"),
        ([member(primary=False), member(half="backdoor")], "must hold a primary effect on flips"),
    ],
)
def test_what_may_not_be_a_finding(members, message):
    with pytest.raises(ValueError, match=message):
        Finding("finding-1", "digits", members, "f", "c")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LORANTK_RESULTS", str(tmp_path))
    monkeypatch.setenv("LORANTK_CHAPTER", "12-our-own-runs")
    return tmp_path / "findings"


def test_a_finding_survives_its_journey_to_the_table(folder):
    for source in SOURCES:
        finding(source=source).save()
    finding(["reversed"], id="finding-2").save()
    assert list(load_findings(folder)) == [*(("finding-1", s) for s in SOURCES), ("finding-2", "digits")]
    record = json.loads((folder / "finding-1.digits.json").read_text())
    assert [(e["half"], e["outcome"]) for e in record["effects"]] == [
        ("flips", "supported"), ("backdoor", "inconclusive")]  # fmt: skip
    assert record["verdicts"] == {"flips": "supported", "backdoor": "inconclusive"}
    assert record["command"] == "make notebook N=12"
    table = findings_table(folder, lambda record: record["chapter"])
    assert "setting 0: 1 accuracy (0.5 to 2; margin 0.02): supported; 12-our-own-runs" in table.html()
    assert len(table.rows) == len(rows_of_findings()) == sum(map(len, HALVES.values()))
    assert overall_verdicts(folder)[:4] == ["supported", "inconclusive", "missing", "missing"]
    assert tally(overall_verdicts(folder), STYLES)[0] == "1 "


def test_a_table_of_findings_saves_them_and_shows_their_primary_effects(folder):
    beside = member("reversed", setting="another dose", primary=False)
    both = Finding("finding-1", "digits", [*finding().members, beside], "plane", "c")
    page = Shown([both]).save()._repr_html_()
    assert (folder / "finding-1.digits.json").exists()
    assert 'id="finding-1-digits"' in page
    assert "setting 0" in page
    assert "another dose" not in page


def test_an_effect_over_choices_keeps_its_range_and_a_failure_its_reason(folder):
    other = replace(EFFECT, value=0.5, low=0.1, high=1.0)
    wide = member(effect=over_choices([EFFECT, other], "wide"), outcome="inconclusive", failed="nothing works")
    Finding("finding-1", "digits", [wide, member(half="backdoor")], "plane", "c").save()
    effect = json.loads((folder / "finding-1.digits.json").read_text())["effects"][0]
    assert (effect["value"], effect["lowest"], effect["highest"]) == (1.0, 0.5, 1.0)
    assert effect["name"] == "flips, SGD: wide"
    assert "nothing works" in findings_table(folder, lambda _: "").html()


def test_an_open_end_is_stored_as_none_and_shown_in_words(folder):
    wide = member(effect=replace(EFFECT, high=float("inf")))
    Finding("finding-1", "digits", [wide, member(half="backdoor")], "plane", "c").save()
    assert json.loads((folder / "finding-1.digits.json").read_text())["effects"][0]["high"] is None
    assert "at least 0.5" in findings_table(folder, lambda _: "").html()


def test_what_no_source_computed_is_missing(folder):
    finding().save()
    assert len(missing_findings(folder)) == len(FINDINGS) * len(SOURCES) - 1
    assert "finding-1.digits" not in missing_findings(folder)
    assert overall(load_findings(folder).values(), "flips") == "missing"


def test_sources_that_contradict_each_other_are_mixed(folder):
    for source, outcome in zip(SOURCES, ("supported", "reversed", "negligible"), strict=True):
        finding([outcome], source=source).save()
    assert overall(load_findings(folder).values(), "flips") == "mixed"
    assert overall(load_findings(folder).values(), "backdoor") == "inconclusive"


def test_every_finding_has_its_evidence_in_the_reference(root):
    assert missing_findings(root / "tests" / "reference" / "findings") == []
