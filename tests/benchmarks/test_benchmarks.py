"""The benchmarks run, agree with what they are compared with, and say what did not run; their times are not tested."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import QUESTIONS, app
from benchmarks.matrix_products import half_grams, passes
from benchmarks.races import Contender, Stable, race
from benchmarks.rows import line


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What a run of every question at tiny sizes, without peers, has written."""
    directory = tmp_path_factory.mktemp("results")
    options = ["--smoke", "--threads", "1", "--repeats", "1", "--results", str(directory)]
    outcome = CliRunner().invoke(app, options, catch_exceptions=False)
    assert outcome.exit_code == 0
    assert {path.stem for path in directory.iterdir()} == set(QUESTIONS)
    return {name: json.loads((directory / f"{name}.json").read_text()) for name in QUESTIONS}


@pytest.mark.parametrize("question", QUESTIONS)
def test_results_agree_and_what_did_not_run_has_a_reason(records, question):
    record = records[question]
    assert record["machine"]["threads"] == 1
    assert record["lines"]
    for entry in record["lines"]:
        if entry["unit"] == "relative" and entry["at_most"] is not None and entry["measured"] is not None:
            assert entry["met"], entry
        assert entry["measured"] is not None or entry["not_run"]
    ran = [r for one in record["races"].values() for r in one.values() if "runs" in r]
    assert ran
    assert all(r["seconds"] > 0 and len(r["runs"]) <= 1 and r["versions"]["torch"] for r in ran)


def test_a_contender_that_fails_is_recorded_and_the_others_go_on():
    arguments = {"widths": [4, 3], "n": 2}
    broken = Contender("broken", "kernel", {"widths": [4, 3], "n": 0})
    with Stable(1, ["here"]) as stable:
        first, last = (Contender(label, "kernel", arguments) for label in ("first", "last"))
        found = race(stable, [first, broken, last], repeats=1)
    assert "x1 must hold at least one" in found["broken"]["not_run"]
    for label in ("first", "last"):
        assert found[label]["difference"] == 0
        assert len(found[label]["runs"]) == 1


def test_operations_are_those_of_the_products():
    # layers of 3 inputs and 2 outputs on 5 inputs: rows 5 * 2 for hidden cotangents, 5 for activations
    assert half_grams([3, 2], 5) == 5 * 5 * 3
    assert half_grams([3, 4, 2], 5) == 10 * 10 * 4 + 5 * 5 * (3 + 4)
    assert passes([3, 2], 5) == 2 * 5 * 3 * 2
    assert passes([3, 4, 2], 5) == 2 * 5 * (3 * 4 + 4 * 2) + 2 * (5 * 2) * (4 * 2)


def test_a_target_is_met_only_by_a_measurement():
    assert line("x", 2.0, "times", at_least=1.5)["met"] is True
    assert line("x", 1.0, "times", at_least=1.5)["met"] is False
    assert line("x", 3.0, "s", at_most=2.0)["met"] is False
    assert line("x", None, "times", at_least=1.5)["met"] is None
    assert line("x", 1.0, "times")["met"] is None


def test_unknown_questions_are_refused():
    outcome = CliRunner().invoke(app, ["speed"])
    assert outcome.exit_code == 2
    assert "question must be among" in outcome.output
