"""From evidence to verdict: every path, and what may not be claimed."""

import importlib
import json
import math

import pytest
import torch

from evidence.claims import Claim, Evidence, claims_table, disagreement, load_claims, own_checks_that_fail
from evidence.routes import measure
from evidence.statements import STATEMENTS


def one(value=0.5):
    return value


def other(value=0.5):
    return value


def evidence(value, reading="printed", name="c", route=other, part="", **more):
    return Evidence(name, measure(route, value), 0, 1, "it is too large", part, reading, **more)


GOOD, BAD = evidence(0.5, name="a", route=one), evidence(2.0, name="b")
MEANT = {"reading": "as meant", "source": "equation 6"}


@pytest.mark.parametrize(
    ("items", "definition", "verdict"),
    [
        ([GOOD, evidence(1)], False, "holds"),
        ([GOOD, evidence(1)], True, "definition"),
        ([GOOD, BAD], True, "fails"),
        ([GOOD, BAD], False, "fails"),
        ([GOOD, BAD, evidence(1, **MEANT)], False, "holds as meant"),
        ([GOOD, BAD, evidence(2, **MEANT)], False, "fails"),
        ([GOOD, BAD, evidence(1, "amended", repairs="b")], False, "holds under another condition"),
        ([GOOD, BAD, evidence(2, "amended", repairs="b")], False, "fails"),
        ([GOOD, BAD, evidence(1, "corrected")], False, "fails"),
        ([GOOD, evidence(1), evidence(2, "corrected", "d")], False, "holds"),
    ],
)
def test_the_verdict_follows_from_the_evidence(items, definition, verdict):
    assert Claim("eq-1", items, decisive=items[0].name, definition=definition).verdict == verdict


def test_a_statement_with_parts_has_their_verdict_or_holds_in_part():
    def both(value):
        return [
            evidence(v, name=f"{part} {route.__name__}", route=route, part=part)
            for part, v in (("order", 1), ("eigenvalues", value))
            for route in (one, other)
        ]

    assert Claim("thm-nsd", both(1), "order one").verdict == "holds"
    claim = Claim("thm-nsd", both(2), "order one")
    assert claim.verdict == "in part"
    assert [claim.verdict_of(part) for part in claim.parts] == ["holds", "fails"]
    page = claim._repr_html_()
    assert page.count("<table") == 2
    assert "and the others are 0: " in page


def test_what_turned_is_shown_and_raises_nothing():
    claim = Claim("eq-1", [GOOD, BAD, evidence(2, "corrected")], "a")
    assert [e.name for e in claim.turned] == ["c"]
    assert "against our own reading: c." in claim._repr_html_()
    assert "Turned" not in Claim("eq-1", [GOOD, BAD], "a")._repr_html_()
    assert [e.name for e in Claim("eq-1", [GOOD, BAD], "a", definition=True).turned] == ["b"]


def test_nan_never_passes_and_ends_are_included(tmp_path, monkeypatch):
    monkeypatch.setenv("LORANTK_RESULTS", str(tmp_path))
    nothing = Evidence("a", measure(one, math.nan), -math.inf, math.inf, "always")
    assert not nothing.passes
    Claim("eq-1", [nothing, BAD], "a").save()
    assert json.loads((tmp_path / "claims" / "eq-1.json").read_text())["evidence"][0]["value"] is None
    assert evidence(1).passes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": "eq-99", "evidence": [GOOD, BAD]}, "id must be one of"),
        ({"evidence": [GOOD, BAD], "decisive": "z"}, "decisive must be one of"),
        ({"evidence": [GOOD]}, "two routes that share no code"),
        ({"evidence": [GOOD, evidence(1, name="z", route=one)]}, "two routes that share no code"),
        ({"evidence": [evidence(1, "corrected", "a"), evidence(1, "corrected", "b", one)]}, "as printed"),
        ({"evidence": [GOOD, BAD, evidence(1, "amended", repairs="z")]}, "must measure what the printed check 'z'"),
        ({"evidence": [GOOD, BAD, evidence(1, "amended", repairs="a")]}, "by its route"),
        ({"evidence": [GOOD, evidence(1, part="order")]}, "part must be one of"),
        ({"id": "thm-nsd", "evidence": [evidence(1, part="order", name="a"), evidence(1, part="order", route=one)]},
         "part 'eigenvalues', must hold a check"),
    ],
)  # fmt: skip
def test_what_may_not_be_claimed(arguments, message):
    with pytest.raises(ValueError, match=message):
        Claim(**({"id": "eq-1", "decisive": "a"} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 2}, "low must be at most high"),
        ({"reading": "typed"}, "reading must be one of"),
        ({"fails_if": ""}, "fails_if of 'a' must say"),
        ({"miss": 0.5}, "miss of 'a' must be a probability"),
        ({"reading": "as meant"}, "source of 'a' must be given"),
        ({"source": "somewhere"}, "source of 'a' must be given for reading 'as meant'"),
        ({"reading": "amended"}, "repairs of 'a' must be given"),
    ],
)
def test_bad_evidence_is_named(arguments, message):
    good = {"name": "a", "measured": measure(one), "low": 0, "high": 1, "fails_if": "never"}
    with pytest.raises(ValueError, match=message):
        Evidence(**(good | arguments))


def test_a_bare_number_is_no_evidence():
    with pytest.raises(TypeError, match=r"measured must come from .* got float"):
        Evidence("a", 1.0, 0, 1, "never")


def test_a_claim_survives_its_journey_to_the_table(tmp_path, monkeypatch):
    monkeypatch.setenv("LORANTK_RESULTS", str(tmp_path))
    monkeypatch.setenv("LORANTK_CHAPTER", "04-matrix-m")
    Claim("eq-6", [evidence(2.0, name="b", route=one), open_end()], decisive="b", figure="plane").save()
    Claim("eq-1", [GOOD, evidence(1)], decisive="a", definition=True).save()
    folder = tmp_path / "claims"
    records = load_claims(folder)
    assert [r["id"] for r in records] == ["eq-1", "eq-6"]  # the poster's order
    saved = json.loads((folder / "eq-6.json").read_text())
    assert saved["evidence"][0]["passes"] is False
    assert saved["evidence"][0]["route"].endswith("test_claims.one")
    assert saved["evidence"][1]["high"] is None  # JSON has no infinity
    assert [part["verdict"] for part in saved["parts"]] == ["fails"]
    rows = claims_table(folder, lambda record: record["chapter"]).rows
    assert [row[2].text for row in rows] == ["definition", "fails"]
    assert rows[1][3:] == ("b: 2 (predicted 0 to 1)", "04-matrix-m")
    assert own_checks_that_fail(saved) == []


def open_end(value=1):
    return Evidence("c", measure(other, value), 0, math.inf, "it is below 0", reading="corrected")


def test_html_names_the_verdict_in_words():
    page = Claim("eq-1", [GOOD, BAD], decisive="a")._repr_html_()
    assert ">fails</span>" in page
    assert "it is too large" in page
    assert 'id="claim-eq-1"' in page


def test_a_narrow_interval_is_shown_as_such():
    narrow = Evidence("n", measure(other, 1.0), 1 - 1e-6, 1 + 1e-6, "it is off")
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


def test_no_claim_of_the_reference_contradicts_our_own_reading(root):
    records = load_claims(root / "tests" / "reference" / "claims")
    assert [(r["id"], e["name"]) for r in records for e in own_checks_that_fail(r)] == []


def test_the_same_kind_of_slip_has_the_same_verdict(root):
    """A missing logarithm, a missing normalisation of the kernel, of a sum, of a spectrum: each is one slip."""
    parts = {
        (r["id"], part["part"]): part["verdict"]
        for r in load_claims(root / "tests" / "reference" / "claims")
        for part in r["parts"]
    }
    slips = [("eq-6", ""), ("eq-7", "shannon"), ("eq-8", ""), ("eq-9", "")]
    assert {parts[slip] for slip in slips} == {"holds as meant"}


def test_what_two_checks_in_a_row_say_alike_is_said_once():
    page = Claim("eq-1", [GOOD, BAD], decisive="a")._repr_html_()
    assert page.count(GOOD.fails_if) == 1
    assert page.count("as above") == 1
