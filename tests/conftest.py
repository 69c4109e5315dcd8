"""What the whole suite shares: one hypothesis profile, the project's root, the count of cases that searches tried."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("lorantk", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("lorantk")


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parents[1]


def pytest_terminal_summary(terminalreporter):
    """Print how many cases each search for counterexamples has tried."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    tried = {
        r.nodeid.split("::")[-1]: n for r in reports for key, n in getattr(r, "user_properties", []) if key == "cases"
    }
    for name, cases in sorted(tried.items()):
        terminalreporter.write_line(f"searched {cases} cases: {name}")
