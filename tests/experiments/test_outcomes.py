"""The recorded evidence, decided: every half of every finding has outcomes from every source; one dose is primary."""

from __future__ import annotations

import pytest

from evidence.findings import rows_of_findings
from evidence.statements import FINDINGS, SOURCES
from experiments import outcomes


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
    digits = {f.id: f.command for f in outcomes.findings(members, "digits")}
    assert digits["finding-1"].endswith("run digits-exact")
    assert digits["finding-3"].endswith("run digits-variance")


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
