"""From effects to verdicts over three sources, and to the tables that show them."""

import json

import pytest

from evidence.effects import Effect
from evidence.findings import (
    STYLES,
    Finding,
    findings_table,
    load_findings,
    missing_findings,
    overall,
    overall_verdicts,
    reading,
    verdict,
)
from evidence.statements import FINDINGS, SOURCES
from evidence.tables import tally

UP, DOWN, FLAT = Effect("up", 1, 0.5, 2, 5, "accuracy"), Effect("down", -1, -2, -0.5, 5), Effect("flat", 0, -1, 1, 5)


def finding(effects, id="finding-1", source="digits"):
    return Finding(id, source, effects, effects[0].name, "plane", "make notebook N=12")


@pytest.mark.parametrize(
    ("effects", "expected"),
    [
        ([UP], "supported"),
        ([DOWN], "reversed"),
        ([FLAT], "not shown"),
        ([UP, FLAT], "supported in part"),
        ([DOWN, FLAT], "reversed in part"),
        ([UP, DOWN, FLAT], "mixed"),
    ],
)
def test_the_verdict_follows_from_the_intervals(effects, expected):
    assert finding(effects).verdict == expected


def test_an_interval_that_touches_zero_shows_nothing():
    assert reading(0.0, 1.0) == reading(-1.0, 0.0) == "not shown"


def test_no_evidence_is_no_verdict():
    assert verdict([]) == "not shown"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "finding-6"}, "id must be one of"),
        ({"source": "rumour"}, "source must be one of"),
        ({"decisive": "z"}, "decisive must be one of"),
        ({"effects": [UP, UP]}, "names of their own"),
        ({"effects": []}, "decisive must be one of"),
    ],
)
def test_what_may_not_be_found(change, message):
    good = {"id": "finding-1", "source": "digits", "effects": [UP], "decisive": "up", "figure": "f", "command": "c"}
    with pytest.raises(ValueError, match=message):
        Finding(**(good | change))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LORANTK_RESULTS", str(tmp_path))
    monkeypatch.setenv("LORANTK_CHAPTER", "12-our-own-runs")
    return tmp_path / "findings"


def test_a_finding_survives_its_journey_to_the_table(folder):
    for source in SOURCES:
        finding([UP, FLAT], source=source).save()
    finding([DOWN], "finding-2").save()
    assert list(load_findings(folder)) == [*(("finding-1", s) for s in SOURCES), ("finding-2", "digits")]
    record = json.loads((folder / "finding-1.digits.json").read_text())
    assert [e["reading"] for e in record["effects"]] == ["supported", "not shown"]
    assert record["command"] == "make notebook N=12"
    table = findings_table(folder, lambda record: record["chapter"])
    text = table.html()
    assert "supported in part</span> 1 of 2 effects; up: 1 accuracy (0.5 to 2); 12-our-own-runs" in text
    assert len({len(row) for row in table.rows}) == 1
    assert overall_verdicts(folder)[:2] == ["supported in part", "missing"]
    assert tally(overall_verdicts(folder), STYLES)[0] == "1 "
    assert 'id="finding-1-digits"' in finding([UP])._repr_html_()


def test_an_open_end_is_stored_as_none_and_shown_in_words(folder):
    finding([Effect("ratio", 3, 1, float("inf"), 5)]).save()
    assert json.loads((folder / "finding-1.digits.json").read_text())["effects"][0]["high"] is None
    assert "at least 1" in findings_table(folder, lambda _: "").html()


def test_what_no_source_computed_is_missing(folder):
    finding([UP]).save()
    assert len(missing_findings(folder)) == len(FINDINGS) * len(SOURCES) - 1
    assert "finding-1.digits" not in missing_findings(folder)
    assert overall(list(load_findings(folder).values())) == "missing"


def test_sources_that_contradict_each_other_are_mixed(folder):
    for source, effect in zip(SOURCES, (UP, DOWN, FLAT), strict=True):
        finding([effect], source=source).save()
    assert overall(list(load_findings(folder).values())) == "mixed"


def test_every_finding_has_its_evidence_in_the_reference(root):
    assert missing_findings(root / "tests" / "reference" / "findings") == []
