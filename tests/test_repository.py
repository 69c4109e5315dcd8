"""What surrounds the packages: workflows, release, citation, forms for issues and hooks say one thing."""

import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

EXTRAS = ".[book,experiments,distributed,hf,dev]"


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def workflows(root):
    return {path.stem: yaml.safe_load(path.read_text()) for path in (root / ".github" / "workflows").glob("*.yml")}


@pytest.fixture(scope="module")
def jobs(workflows):
    return {(flow, name): job for flow, content in workflows.items() for name, job in content["jobs"].items()}


def test_the_workflow_tests_the_pythons_that_the_package_declares(jobs, project):
    matrix = jobs["book", "build"]["strategy"]["matrix"]["include"]
    declared = [
        c.split(" :: ")[-1] for c in project["classifiers"] if c.startswith("Programming Language :: Python ::")
    ]
    assert {"python": "3.11", "run": "make exercises"} in matrix
    tested = [(entry["python"], entry["run"]) for entry in matrix if entry["run"] != "make exercises"]
    assert tested == list(zip(declared, ["bash .ci/run", "make test", "make test"], strict=True))
    assert declared == ["3.11", "3.12", "3.13"]


def test_only_the_jobs_that_publish_may_write(workflows, jobs):
    assert all(content["permissions"] == {"contents": "read"} for content in workflows.values())
    assert {key: job["permissions"] for key, job in jobs.items() if "permissions" in job} == {
        ("book", "publish"): {"pages": "write", "id-token": "write"},
        ("book", "notebooks"): {"actions": "read", "contents": "write"},  # the branch that Colab opens
    }
    for job in ("publish", "notebooks"):
        assert jobs["book", job]["if"] == "github.ref == 'refs/heads/main'"


def test_actions_are_pinned_by_commit_and_say_their_version(root):
    lines = [
        line
        for path in (root / ".github" / "workflows").glob("*.yml")
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert len(lines) >= 6
    loose = [line for line in lines if not re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+(\.\d+)*$", line)]
    assert loose == []


def test_the_weekly_rebuild_takes_the_newest_versions_and_publishes_nothing(workflows, jobs):
    triggers = workflows["newest"][True]  # YAML 1.1 reads the key "on" as true
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", triggers["schedule"][0]["cron"])
    steps = jobs["newest", "rebuild"]["steps"]
    commands = "\n".join(step.get("run", "") for step in steps)
    assert f"pip install -q -e '{EXTRAS}'" in commands
    assert "constraints" not in commands
    assert 'bash .ci/moved "$GITHUB_STEP_SUMMARY"' in commands
    assert not any("pages" in step.get("uses", "") for step in steps)


@pytest.mark.parametrize("status", [0, 1])
def test_the_report_of_what_moved_keeps_the_status_and_names_new_versions(root, tmp_path, status):
    (tmp_path / ".ci").mkdir()
    shutil.copy(root / ".ci" / "moved", tmp_path / ".ci")
    (tmp_path / "constraints.txt").write_text("# exact\nnumpy==2.4.6\npre-commit==4.7.0\ntorch==2.13.0\n")
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, body in {
        "python": f'echo "$@: largest moved"; exit {status}',
        "pip": "printf 'numpy==9.9\\npre_commit==4.7.0\\ntorch==2.13.0+cpu\\n'",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    summary = tmp_path / "summary.md"
    command = ["bash", tmp_path / ".ci" / "moved", summary]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == status
    said = summary.read_text()
    assert f"status {status}" in said
    assert "book/regenerate.py --check: largest moved" in said
    assert "numpy==9.9" in said
    assert "torch" not in said
    assert "commit" not in said


def test_ci_lints_tests_and_checks(root):
    lines = (root / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line in ("make lint", "make test", "make check")] == [
        "make lint",
        "make test",
        "make check",
    ]
    recipe = re.search(r"^lint:.*?\n((?:\t.*\n)+)", (root / "Makefile").read_text(), re.MULTILINE)[1]
    tools = re.findall(r"\$\(BIN\)/(.*)", recipe)
    assert tools == ["ruff format --check .", "ruff check .", "mypy", "lint-imports"]


def test_hooks_run_the_ruff_that_is_pinned(root):
    hooks = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"]
    pinned = re.search(r"^ruff==(.*)$", (root / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert [(repo["rev"], [hook["id"] for hook in repo["hooks"]]) for repo in hooks] == [
        (f"v{pinned}", ["ruff-check", "ruff-format"])
    ]


def test_a_release_has_one_version_and_one_date(root, project):
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    released = re.findall(r"^## \[(\d[^]]*)\] - (\d{4}-\d\d-\d\d)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == (project["version"], citation["date-released"])
    assert citation["version"] == project["version"]
    assert [date for _, date in released] == sorted((date for _, date in released), reverse=True)


def test_the_paper_is_what_to_cite(root):
    paper = yaml.safe_load((root / "CITATION.cff").read_text())["preferred-citation"]
    entry = re.search(r"@inproceedings\{liang2025,.*?\n\}", (root / "book" / "references.bib").read_text(), re.DOTALL)[
        0
    ]
    assert paper["type"] == "conference-paper"
    assert f"{{{paper['title']}}}" in entry
    assert " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"]) in entry
    assert f"{{{paper['start']}--{paper['end']}}}" in entry
    assert f"{{{paper['year']}}}" in entry
    readme = re.search(r"@inproceedings\{.*?\n\}", (root / "README.md").read_text(), re.DOTALL)[0]
    assert set(re.findall(r"\{(.+)\}", readme)) <= set(re.findall(r"\{(.+)\}", entry))


@pytest.mark.parametrize(
    ("form", "required"),
    [
        ("wrong-number", ["page", "figure", "got"]),
        ("counterexample", ["statement", "case", "code", "expected"]),
    ],
)
def test_forms_ask_for_what_it_takes_to_look(root, form, required):
    content = yaml.safe_load((root / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml").read_text())
    assert {"name", "description", "body"} <= content.keys()
    fields = content["body"]
    assert all(field["type"] in ("input", "textarea") and field["attributes"]["label"] for field in fields)
    assert [field["id"] for field in fields if field.get("validations", {}).get("required")] == required
