"""From evidence to verdict: every path, and what may not be claimed."""

import importlib
import json
import math

import pytest
import torch

from evidence.claims import Claim, Evidence, claims_table, disagreement, load_claims
from evidence.statements import STATEMENTS

GOOD = Evidence("a", 0.5, 0, 1, "autodiff")
BAD = Evidence("b", 2.0, 0, 1, "Monte Carlo")


def evidence(value, role, name="c", route="closed form"):
    return Evidence(name, value, 0, 1, route, role)


@pytest.mark.parametrize(
    ("items", "definition", "verdict"),
    [
        ([GOOD, evidence(1, "printed")], False, "holds"),
        ([GOOD, evidence(1, "printed")], True, "definition"),
        ([BAD, evidence(1, "amended")], False, "holds with an amended condition"),
        ([BAD, evidence(1, "corrected")], False, "fails as printed"),
        ([GOOD, BAD], False, "fails as printed"),
    ],
)
def test_the_verdict_follows_from_the_evidence(items, definition, verdict):
    assert Claim("eq-1", items, decisive=items[0].name, definition=definition).verdict == verdict


def test_nan_never_passes_and_ends_are_included():
    assert not Evidence("a", math.nan, -math.inf, math.inf, "r").passes
    assert Evidence("a", 1, 0, 1, "r").passes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": "eq-99", "evidence": [GOOD, BAD]}, "id must be one of"),
        ({"id": "eq-1", "evidence": [GOOD, BAD], "decisive": "z"}, "decisive must be one of"),
        ({"id": "eq-1", "evidence": [GOOD]}, "must come by two routes"),
        ({"id": "eq-1", "evidence": [evidence(1, "amended", "a"), evidence(1, "amended", "b", "other")]}, "as printed"),
        ({"id": "eq-1", "evidence": [BAD, evidence(2, "corrected", "a")]}, "contradicts our own reading"),
        ({"id": "eq-1", "evidence": [GOOD, BAD], "definition": True}, "contradicts our own reading"),
    ],
)
def test_what_may_not_be_claimed(arguments, message):
    with pytest.raises(ValueError, match=message):
        Claim(**({"decisive": "a"} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("a", 1, 2, 0, "r"), "low must be at most high"), (("a", 1, 0, 2, "r", "typed"), "role must be one of")],
)
def test_bad_evidence_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Evidence(*arguments)


def test_a_claim_survives_its_journey_to_the_table(tmp_path, monkeypatch):
    monkeypatch.setenv("LORANTK_RESULTS", str(tmp_path))
    monkeypatch.setenv("LORANTK_CHAPTER", "04-matrix-m")
    Claim(
        "thm-nsd", [BAD, Evidence("c", 1, 0, math.inf, "closed form", "corrected")], decisive="b", figure="plane"
    ).save()
    Claim("eq-1", [GOOD, evidence(1, "printed")], decisive="a", definition=True).save()
    folder = tmp_path / "claims"
    records = load_claims(folder)
    assert [r["id"] for r in records] == ["eq-1", "thm-nsd"]  # the poster's order
    assert json.loads((folder / "thm-nsd.json").read_text())["evidence"][0]["passes"] is False
    assert json.loads((folder / "thm-nsd.json").read_text())["evidence"][1]["high"] is None  # JSON has no infinity
    rows = claims_table(folder, lambda record: record["chapter"]).rows
    assert [row[2].text for row in rows] == ["definition", "fails as printed"]
    assert rows[1][3:] == ("b: 2 (predicted 0 to 1)", "04-matrix-m")


def test_html_names_the_verdict_in_words():
    page = Claim("eq-1", [GOOD, BAD], decisive="a")._repr_html_()
    assert "fails as printed" in page
    assert 'id="claim-eq-1"' in page


def test_a_narrow_interval_is_shown_as_such():
    narrow = Evidence("n", 1.0, 1 - 1e-6, 1 + 1e-6, "closed form")
    assert "1 ± 1e-06" in Claim("eq-1", [GOOD, narrow], decisive="a")._repr_html_()


def test_disagreement_is_relative_to_the_second():
    assert disagreement(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0])) == 0.5


def test_every_statement_names_code_and_tests_that_exist(root):
    for statement in STATEMENTS.values():
        module, _, name = statement.code.rpartition(".")
        assert hasattr(importlib.import_module(module), name)
        package, module, name = statement.test.split(".")
        assert f"def {name}(" in (root / "tests" / package / f"test_{module}.py").read_text()


def test_every_statement_has_its_claim_in_the_reference(root):
    assert [r["id"] for r in load_claims(root / "tests" / "reference" / "claims")] == list(STATEMENTS)
