"""Recorded measurements as a table."""

import pytest

from benchmarks.report import CostTable, cells, circumstances
from benchmarks.rows import line

LINES = [
    line("fast <one>", 2.0, "times", at_least=1.5, by_cpu=2.5, ours_seconds=0.1, peer_seconds=0.2),
    line("slow one", 3.0, "times the bound", at_most=1.6, ours_seconds=0.3, bound_seconds=0.1),
    line("lean one", 4.0, "times", ours_bytes=10**9, peer_bytes=4 * 10**9),
    line("absent one", None, "times", at_least=1.0, not_run="No matching distribution found for <peer>"),
]
MACHINE = {
    "cpu": "Some CPU", "cores": 2, "threads": 1, "memory_bytes": 2**34, "system": "Linux", "python": "3.11.7",
    "versions": {"torch": "2"}, "load_before": 0.5, "load_after": 1.25,
}  # fmt: skip


def test_lines_carry_both_values_the_target_and_a_verdict():
    rows = CostTable([{"lines": LINES[:2]}, {"lines": LINES[2:]}])._repr_html_().split("<tr>")[2:]
    assert len(rows) == 4
    for text in ("fast &lt;one&gt;", "2 times", "2.5", "0.1 s", "0.2 s", "at least 1.5", 'verdict-holds">met'):
        assert text in rows[0]
    assert "at most 1.6" in rows[1]
    assert cells({**LINES[0], "measured": 2473.2})["measured"] == "2,470 times"
    assert 'verdict-fails">not met' in rows[1]
    assert "1 GB" in rows[2]
    assert "verdict" not in rows[2]
    assert "distribution found for &lt;peer&gt;" in rows[3]
    assert 'verdict-definition">not measured' in rows[3]


def test_the_machine_is_told_once():
    text = circumstances([{"machine": MACHINE}, {"machine": {**MACHINE, "load_after": 4.0}}])
    assert "Some CPU, 2 cores, 16 GiB, Linux, Python 3.11.7, torch 2; 1 thread a contender" in text
    assert "0.5 to 4.0" in text
    with pytest.raises(ValueError, match=r"got 2, which differ in \['threads'\]"):
        circumstances([{"machine": MACHINE}, {"machine": {**MACHINE, "threads": 2}}])
    with pytest.raises(ValueError, match="got 0"):
        circumstances([])
