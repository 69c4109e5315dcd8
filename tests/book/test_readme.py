"""The README: its lines of results come from the committed numbers, its links lead somewhere, its example runs."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book"))

import pages  # noqa: E402

README = (ROOT / "README.md").read_text()


def test_the_readme_holds_the_committed_results():
    assert pages.readme_with_results(ROOT) == README


def test_the_readme_shows_five_lines_of_results():
    lines = README.split(pages.RESULTS_START)[1].split(pages.RESULTS_END)[0].strip().splitlines()
    assert len(lines) == 5
    assert all(line.startswith("- ") and "](" in line for line in lines)


@pytest.mark.parametrize("verdict", ["holds", "fails"])
def test_a_line_follows_its_record(tmp_path, verdict):
    shutil.copytree(ROOT / "tests" / "reference", tmp_path / "tests" / "reference")
    (tmp_path / "README.md").write_text(README)
    path = tmp_path / "tests" / "reference" / "claims" / "thm-nsd.json"
    record = json.loads(path.read_text()) | {"verdict": verdict, "chapter": "99-elsewhere"}
    next(e for e in record["evidence"] if e["name"] == record["decisive"])["value"] = 0.125
    path.write_text(json.dumps(record))
    line = next(line for line in pages.readme_with_results(tmp_path).splitlines() if line.startswith("- M is negative"))
    assert f"**{verdict}**" in line
    assert ": 0.125 (predicted" in line
    assert "[99](notebooks/99-elsewhere.md)" in line


def test_every_link_leads_to_a_file():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert "docs/order-plane.png" in targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_commands_are_targets_of_the_makefile():
    commands = re.findall(r"make ([a-z]+)", README)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"book", "test"} <= set(commands) <= set(targets)


def test_the_example_runs_and_gives_what_its_comments_say():
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    names = {}
    exec(example, names)
    shapes = re.findall(r"^(\w+) = .*# (\(\d.*?\))", example, re.MULTILINE)
    assert shapes == [("full", "(32, 10, 32, 10)"), ("eigenvalues", "(32,)")]
    assert [str(tuple(names[name].shape)) for name, _ in shapes] == [shape for _, shape in shapes]
    assert names["lora"].shape == names["full"].shape
