"""Links of the generated pages, and the notebooks' ways with figures."""

import json
import math
import re
import sys
from pathlib import Path

import pytest

from evidence.claims import Claim, Evidence, load_claims
from evidence.findings import load_findings, rows_of_findings
from evidence.routes import measure
from evidence.statements import FINDINGS, SOURCES, STATEMENTS

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book"))

import advice  # noqa: E402
import pages  # noqa: E402
import survives  # noqa: E402


@pytest.fixture(scope="module")
def records():
    return {record["id"]: record for record in load_claims(ROOT / "tests" / "reference" / "claims")}


def test_a_claim_leads_to_its_proof_figure_code_and_test(records):
    targets = [part.target for part in pages.claim_links(records["thm-nsd"])]
    assert targets == [
        "notebooks/04-matrix-m.html#proof-thm-nsd",
        "notebooks/04-matrix-m.html#fig-nsd-plane",
        "_modules/lorantk/spectra.html#nsd_variance_bound",
        "tests.html#test-thm-nsd",
    ]


def test_mistakes_are_shown_with_the_tests_that_noticed(tmp_path):
    path = tmp_path / "results.csv"
    rows = ["mistake,file,noticed by", "a < b,x.py,tests/x/test_x.py::test_a_is_below_b", "c,y.py,"]
    path.write_text("\n".join(rows) + "\n")
    page = re.sub(' data-head="[^"]*"', "", pages.mistakes(path))
    assert "1 of 2 were noticed" in page
    assert "<td>a &lt; b</td><td><code>x.<wbr>py</code></td><td>a is below b</td>" in page
    assert "<td>no test</td>" in page
    assert "0 of 0" in pages.mistakes(tmp_path / "none.csv")


def test_a_finding_leads_to_its_figure_and_method():
    record = load_findings(ROOT / "tests" / "reference" / "findings")["finding-1", "digits"]
    targets = [part.target for part in pages.finding_links(record)[0:3:2]]
    assert targets == [
        f"notebooks/12-our-own-runs.html#fig-{record['figure']}",
        "notebooks/12-our-own-runs.html#finding-1-digits",
    ]


def test_every_test_of_a_statement_is_shown():
    shown = re.findall(r":pyobject: (\w+)", pages.tests())
    assert shown == [statement.test.split(".")[-1] for statement in STATEMENTS.values()]


def test_the_front_page_counts_verdicts(tmp_path, monkeypatch):
    monkeypatch.setenv("LORANTK_RESULTS", str(tmp_path))
    checks = [Evidence(f.__name__, measure(f, -0.5), 0, 1, "it is negative") for f in (abs, math.ceil)]
    Claim("eq-2", checks, decisive="abs").save()
    said = pages.summary(tmp_path)
    assert ': 1 <span class="verdict verdict-holds">holds</span>; of their 1 parts, ' in said
    assert 'verdict-fails">missing</span>' in said


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.md")), ids=lambda path: path.stem)
def test_figures_of_a_notebook_are_known_to_no_backend(path):
    assert "pyplot" not in path.read_text(), "a figure from pyplot would show twice: take subplots of evidence.figures"


def test_a_card_says_what_decides_and_counts_checks_by_reading(records):
    record = records["thm-nsd"]
    card = pages.claim_card(record, pages.claim_links(record))
    assert "negative semi-definiteness" in card
    assert r"\sigma_a^2 &lt; 1/n" in card  # a formula is text until MathJax reads it
    assert f">{record['verdict']}</span>" in card
    assert record["decisive"].replace("<", "&lt;") in card
    for reading in ("printed", "amended"):
        checks = [e for e in record["evidence"] if e["reading"] == reading]
        assert f"{reading}: {sum(e['passes'] for e in checks)} of {len(checks)} met" in card
    for part in record["parts"]:
        assert part["text"].replace("<", "&lt;") in card
        assert f">{part['verdict']}</span>" in card
    assert "\n\n" not in card


def test_a_finding_without_a_source_is_missing():
    card = pages.finding_card("finding-1", {}, {})
    assert card.count(">missing</span>") == 2 * len(SOURCES)
    assert card.count(": missing</span>") == 2


def test_advice_has_the_verdict_of_its_finding_behind_it():
    directory = ROOT / "tests" / "reference" / "findings"
    records = load_findings(directory)
    lines = re.findall(r"<dt>.*?</dd>", pages.advice(records))
    verdicts = dict(zip(rows_of_findings(), pages.overall_verdicts(directory), strict=True))
    assert set(advice.ADVICE) == set(verdicts)
    for ((id, half), text), line in zip(advice.ADVICE.items(), lines, strict=True):
        assert text in line
        assert f'">{advice.in_words(verdicts[id, half])}</span>' in line
        for source in SOURCES:
            assert f"{source}: {advice.of_source(records[id, source], half)}" in line
    assert pages.advice({}).count(">missing</span>") == len(verdicts)


def test_advice_tells_optimizers_apart_where_they_do_not_agree():
    def record(adamw, sgd):
        effects = [
            {"half": "flips", "primary": True, "setting": "AdamW, 8 of 500", "outcome": adamw},
            {"half": "flips", "primary": True, "setting": "mail, SGD", "outcome": sgd},
            {"half": "flips", "primary": False, "setting": "SGD, 3 of 500", "outcome": "supported"},
        ]
        return {"effects": effects, "verdicts": {"flips": "as it is"}}

    assert advice.of_source(record("reversed", "reversed"), "flips") == "as it is"
    found = advice.of_source(record("inconclusive", "reversed"), "flips")
    assert found == "we cannot tell with AdamW, reversed with SGD"


def test_what_survives_has_computed_verdicts_beside_it():
    claims = load_claims(ROOT / "tests" / "reference" / "claims")
    findings = load_findings(ROOT / "tests" / "reference" / "findings")
    rows = survives.survives(claims, findings).splitlines()[2:]
    assert len(rows) == len(survives.ROWS)
    named = [id for *_, ids in survives.ROWS for id in ids]
    assert set(named) <= {*STATEMENTS, *FINDINGS}
    assert len(set(named)) == len(named)
    turned = [record | {"verdict": "fails"} if record["id"] == "thm-fisher" else record for record in claims]
    moved = [a != b for a, b in zip(rows, survives.survives(turned, findings).splitlines()[2:], strict=True)]
    assert moved == ["thm-fisher" in ids for *_, ids in survives.ROWS]


def test_the_figure_of_the_front_page_is_a_chapters(tmp_path):
    picture = '<img src="../_static/figures/plane.svg"><figcaption>c</figcaption>'
    figure = f'<figure id="fig-plane" class="lorantk-figure">{picture}</figure>'
    cells = [{"outputs": [{"data": {"text/html": page}}]} for page in ("<p>no figure</p>", [figure])]
    (tmp_path / "15-plane.ipynb").write_text(json.dumps({"cells": [{"source": []}, *cells]}))
    shown = pages.shown_figure(tmp_path, "plane")
    assert 'src="_static/figures/plane.svg"' in shown
    assert 'href="notebooks/15-plane.html#fig-plane"' in shown
    assert pages.shown_figure(tmp_path, "other") == ""


def test_the_explorer_has_the_numbers_of_a_chapters_figure(tmp_path):
    path = tmp_path / "layer-spectra.csv"
    assert pages.spectra(path) == ""
    path.write_text("arm,index,eigenvalue\nfull,1,2.5\nfull,2,1e-3\n8,1,0.5\n")
    path.with_suffix(".json").write_text('{"parameters": {"width": 256}}')
    content = re.fullmatch(r'<script type="application/json" id="digits-spectra">(.*)</script>\n', pages.spectra(path))
    assert json.loads(content[1]) == {"width": 256, "full": [2.5, 0.001], "lora": {"8": [0.5]}}
