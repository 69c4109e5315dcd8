"""What a trial says of each verdict and check beside the committed one."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book"))

from chapters import Chapter  # noqa: E402
from trial import Moved, Report, folder_of  # noqa: E402


def claim(verdict="holds", checks=()):
    evidence = [
        {
            "name": name,
            "value": value,
            "low": 0.0,
            "high": 1.0,
            "route": "r",
            "reading": "printed",
            "passes": value <= 1,
        }
        for name, value in checks
    ]
    return {"id": "thm-nsd", "verdict": verdict, "evidence": evidence}


def finding(value, outcome):
    effects = [{"name": "e", "value": value, "low": value - 1, "high": None, "outcome": outcome}]
    return {"id": "finding-1", "source": "digits", "verdicts": {"flips": outcome}, "effects": effects}


def test_a_check_that_turned_is_said_and_one_that_stayed_is_not():
    moved = Moved(
        claim("fails", [("largest", 2.0), ("mean", 0.25), ("same", 0.5)]),
        claim("holds", [("largest", 0.5), ("mean", 0.2501), ("same", 0.5)]),
    )
    assert moved.turned() == ["thm-nsd: holds -> fails", "thm-nsd: largest: met -> not met"]
    head, *checks = moved.rows()
    assert [cell.text for cell in head] == ["thm-nsd", "holds", "fails"]
    assert checks == [["largest", "0.5 (predicted 0 to 1): met", "2 (predicted 0 to 1): not met"]]


def test_checks_that_come_and_go_are_shown_but_have_not_turned():
    moved = Moved(claim(checks=[("width 32", 0.5)]), claim(checks=[("width 1024", 0.5)]))
    assert moved.turned() == []
    assert [row[1:] for row in moved.rows()[1:]] == [
        ["absent", "0.5 (predicted 0 to 1): met"],
        ["0.5 (predicted 0 to 1): met", "absent"],
    ]


def test_the_verdict_of_a_part_is_said():
    parts = [{"part": "bound", "text": "", "verdict": "fails"}, {"part": "limit", "text": "", "verdict": "holds"}]
    kept = [{**part, "verdict": "holds"} for part in parts]
    moved = Moved(claim("in part") | {"parts": parts}, claim("holds") | {"parts": kept})
    assert moved.turned() == ["thm-nsd: holds -> in part", "thm-nsd, bound: holds -> fails"]
    assert [row[0].text for row in moved.rows()] == ["thm-nsd", "thm-nsd, bound", "thm-nsd, limit"]


def test_a_claim_without_a_committed_one_is_new():
    assert Moved(claim(), None).turned() == ["thm-nsd: absent -> holds"]


def test_an_effect_that_reads_otherwise_is_said():
    moved = Moved(finding(-3.0, "reversed"), finding(3.0, "supported"))
    assert moved.turned() == [
        "finding-1, digits, flips: supported -> reversed", "finding-1, digits: e: supported -> reversed",
    ]  # fmt: skip
    assert moved.rows()[1] == ["e", "3 (at least 2): supported", "-3 (at least -4): reversed"]


@pytest.fixture
def chapter(tmp_path):
    """A chapter after a trial that drew one figure and made one claim, with a reference of both."""
    chapter = Chapter(tmp_path, "04-matrix-m")
    chapter.source.parent.mkdir()
    chapter.source.write_text((ROOT / "notebooks" / "04-matrix-m.md").read_text())
    for place, value, verdict in (
        (folder_of(chapter) / "_static", 2.0, "fails"),
        (tmp_path / "tests" / "reference", 0.5, "holds"),
    ):
        for kind in ("figures", "claims", "findings"):
            (place / kind).mkdir(parents=True)
        (place / "figures" / "curve.csv").write_text(f"x\n{value}\n")
        record = {"columns": {"x": {"rtol": 1e-6, "atol": 0}}, "alt": "A <line>."}
        if place.name == "reference":
            del record["alt"]
        (place / "figures" / "curve.json").write_text(json.dumps(record))
        (place / "claims" / "thm-nsd.json").write_text(json.dumps(claim(verdict, [("largest", value)])))
    return chapter


def test_the_page_of_a_trial_has_what_turned_what_moved_and_the_pictures(chapter, tmp_path):
    page = Report.of(chapter, {"width": 64, "profile": "quick"}).html()
    assert "make notebook N=04 SET=&#x27;width=64 profile=quick&#x27;" in page
    assert "thm-nsd: holds -&gt; fails" in page
    assert "row 0: 0.5 -&gt; 2" in page
    assert 'alt="A &lt;line&gt;."' in page
    assert "in the book" not in page
    (tmp_path / "book" / "_static" / "figures").mkdir(parents=True)
    (tmp_path / "book" / "_static" / "figures" / "curve.svg").write_text("<svg/>")
    assert '<img src="../../../_static/figures/curve.svg"' in Report.of(chapter, {}).html()


def test_what_a_trial_prints_ends_with_what_turned_and_its_page(chapter, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    Report.of(chapter, {"variance_times_n": 0.25}).show()
    printed = capsys.readouterr().out
    assert "thm-nsd: largest: met -> not met" in printed
    assert "N=04 SET=variance_times_n=0.25: see" in printed.splitlines()[-1]


def test_what_the_profile_moves_can_be_told_apart(chapter):
    said = Report(chapter, {"width": 64, "profile": "quick"}, [], []).advice
    assert "make notebook N=04 SET=profile=quick shows which" in said
    assert said.endswith("What width alone moves: make notebook N=04 SET=width=64")
    assert Report(chapter, {"width": 64}, [], []).advice == Report(chapter, {"profile": "quick"}, [], []).advice == ""


def test_a_list_stands_in_the_command_without_spaces(chapter):
    assert Report.of(chapter, {"ranks": [1, 8]}).command.endswith("SET='ranks=[1,8]'")
