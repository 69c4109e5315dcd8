"""Regeneration on a toy project: caching, failures, parameters, the comparison with the reference."""

import itertools
import json
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from evidence.effects import Effect
from evidence.findings import Finding, Member
from evidence.statements import FINDINGS, HALVES, SOURCES

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book"))

import reference  # noqa: E402
import regenerate  # noqa: E402
import typer  # noqa: E402
from chapters import data_files, find_chapters, foreign_packages, imported_modules, parse_overrides, parse_settings  # noqa: E402

NOTEBOOK = """---
kernelspec: {{display_name: Python 3, language: python, name: python3}}
---
# {title}

```{{code-cell}} ipython3
:tags: [parameters]
seed = 0
rate = 0.5
ranks = [1, 2]
profile = "full"
```

```{{code-cell}} ipython3
import os, pathlib, sys
offset = {{"full": 0, "quick": 1}}[profile]
sys.path.insert(0, os.environ["TOY_ROOT"])
from lorantk.{module} import value
folder = pathlib.Path(os.environ["LORANTK_RESULTS"])
(folder / "figures").mkdir(parents=True, exist_ok=True)
(folder / "figures" / "{title}.csv").write_text(f"x\\n{{value + seed + offset}}\\n")
(folder / "figures" / "{title}.json").write_text('{{"alt": "", "columns": {{"x": {{"rtol": 1e-6, "atol": 0}}}}}}')
```
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A project of two chapters that import one module each, with the real regenerate.py run on it."""
    for folder in ("notebooks", "lorantk", "book/_static/figures", "book/_static/claims"):
        (tmp_path / folder).mkdir(parents=True)
    for module in ("one", "two"):
        (tmp_path / "lorantk" / f"{module}.py").write_text("value = 1.0\n")
    (tmp_path / "lorantk" / "__init__.py").write_text("from .one import value\nfrom .two import value as other\n")
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    (tmp_path / "notebooks" / "01-first.md").write_text(NOTEBOOK.format(title="first", module="one"))
    (tmp_path / "notebooks" / "02-second.md").write_text(NOTEBOOK.format(title="second", module="two"))
    shutil.copyfile(ROOT / "book" / "claims.template.md", tmp_path / "book" / "claims.template.md")
    (tmp_path / "README.md").write_text("<!-- results:start --><!-- results:end -->")
    monkeypatch.setenv("TOY_ROOT", str(tmp_path))
    monkeypatch.setenv("LORANTK_RESULTS", str(tmp_path / "book" / "_static"))
    monkeypatch.setenv("LORANTK_CHAPTER", "01-first")
    for id, source in itertools.product(FINDINGS, SOURCES):
        effect, margin = Effect("e", 1, 0, 2, 5), 0.05
        members = [Member(id, half, source, "s", effect, margin, outcome="supported") for half in HALVES[id]]
        Finding(id, source, members, "first", "make notebook N=01").save()
    return tmp_path


def run(toy, *arguments):
    app = typer.Typer()
    app.command()(regenerate.main)
    return CliRunner().invoke(app, ["--root", str(toy), "--no-render", *arguments])


def executed(toy):
    return {
        c.name: nbformat.read(c.executed, 4).metadata.lorantk["hash"] for c in find_chapters(toy) if c.executed.exists()
    }


def stamps(toy):
    return {c.name: c.executed.stat().st_mtime_ns for c in find_chapters(toy)}


@pytest.mark.slow
def test_only_what_depends_on_a_change_runs_again(toy):
    assert run(toy).exit_code == 0
    before = stamps(toy)
    assert run(toy).exit_code == 0
    assert stamps(toy) == before
    (toy / "lorantk" / "two.py").write_text("value = 2.0\n")
    result = run(toy)
    assert result.exit_code == 0
    assert stamps(toy)["01-first"] == before["01-first"]
    assert stamps(toy)["02-second"] != before["02-second"]
    assert (toy / "book/_static/figures/second.csv").read_text() == "x\n2.0\n"
    assert "2 chapters" in result.stdout
    (toy / "book/_static/figures/first.csv").unlink()
    run(toy)
    assert (toy / "book/_static/figures/first.csv").exists()


def truncate(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.slow
def test_what_is_damaged_is_named_and_made_again(toy):
    run(toy)
    figure, notebook = toy / "book/_static/figures/first.csv", find_chapters(toy)[1].executed
    whole = figure.read_bytes()
    for path in (figure, notebook):
        truncate(path)
    before = stamps(toy)
    result = run(toy)
    assert result.exit_code == 0
    assert f"{figure} is not as 01-first wrote it" in result.stdout
    assert f"{notebook} is not as 02-second wrote it" in result.stdout
    assert figure.read_bytes() == whole
    assert all(stamps(toy)[name] != before[name] for name in before)
    assert run(toy).stdout.count("unchanged") == 3  # both chapters, and the book


def test_an_own_check_that_fails_is_a_difference(toy):
    (toy / "book" / "_static" / "claims" / "eq-6.json").write_text(claim(passes=False, reading="corrected", id="eq-6"))
    (toy / "tests" / "reference").mkdir(parents=True)
    found = [d for d in regenerate.check_numbers(toy) if d.column == "e"]
    assert [(d.item, d.allowed) for d in found] == [("claims/eq-6", "our own reading holds")]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["README.md", "tests/reference/findings/finding-1.text.json"])
def test_a_damaged_committed_file_is_named_in_one_line(toy, file):
    run(toy, "--update-reference")
    (toy / file).write_text("<<<<<<< HEAD\n")
    result = run(toy, "--check")
    assert result.exit_code == 1
    assert f"{toy / file}:1: " in result.stdout
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


@pytest.mark.slow
def test_a_failing_cell_is_shown_and_the_previous_results_stay(toy):
    run(toy)
    before, figure = executed(toy), (toy / "book/_static/figures/second.csv").read_bytes()
    source = toy / "notebooks" / "02-second.md"
    source.write_text(source.read_text() + "\n```{code-cell} ipython3\nraise RuntimeError('the sky fell')\n```\n")
    result = run(toy)
    assert result.exit_code == 1
    for part in ("02-second", "raise RuntimeError", "the sky fell", "Traceback"):
        assert part in result.stdout
    assert executed(toy) == before
    assert (toy / "book/_static/figures/second.csv").read_bytes() == figure
    assert not list((toy / "book/_build").glob("stage-*"))


@pytest.mark.slow
def test_a_trial_with_other_parameters_says_what_moved_and_leaves_the_book_alone(toy):
    run(toy, "--update-reference")
    before = executed(toy)
    result = run(toy, "--only", "1", "--set", "seed=3", "--set", "profile=quick")
    assert result.exit_code == 0
    assert executed(toy) == before
    trial = toy / "book/_build/trial/01-first"
    assert (trial / "_static/figures/first.csv").read_text() == "x\n5.0\n"
    assert (toy / "book/_static/figures/first.csv").read_text() == "x\n1.0\n"
    for text in (result.stdout, (trial / "index.html").read_text()):
        assert "row 0: 1 -&gt; 5" in text.replace("->", "-&gt;")
        assert "make notebook N=01 SET=" in text
    assert "second" not in result.stdout
    assert "another trial" not in run(toy, "--only", "1", "--set", "seed=3").stdout


@pytest.mark.slow
def test_two_trials_of_a_chapter_at_once_are_refused(toy):
    lock = toy / "book/_build/trial/01-first.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        result = run(toy, "--only", "1", "--set", "seed=3")
    assert result.exit_code == 2
    assert "another trial of 01-first is at work" in result.stdout


def test_a_setting_is_for_the_chapters_that_have_its_parameter(toy):
    source = toy / "notebooks" / "02-second.md"
    source.write_text(source.read_text().replace("rate = 0.5\n", ""))
    settings = parse_settings(find_chapters(toy), ["rate=2", "seed=1"])
    assert settings == {"01-first": {"rate": 2.0, "seed": 1}, "02-second": {"seed": 1}}
    assert list(parse_settings(find_chapters(toy), ["rate=2"])) == ["01-first"]


@pytest.mark.slow
def test_the_reference_is_compared_and_only_replaced_on_request(toy):
    run(toy, "--update-reference")
    assert run(toy, "--check").exit_code == 0
    (toy / "lorantk" / "one.py").write_text("value = 1.001\n")
    result = run(toy, "--check")
    assert result.exit_code == 1
    assert "figures/first" in result.stdout
    assert (toy / "tests/reference/figures/first.csv").read_text() == "x\n1.0\n"
    assert run(toy, "--update-reference", "--check").exit_code == 0


@pytest.mark.slow
def test_a_finding_without_evidence_is_not_accepted(toy):
    (toy / "book/_static/findings/finding-3.text.json").unlink()
    result = run(toy, "--update-reference", "--check")
    assert result.exit_code == 1
    assert "findings/finding-3.text" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "07"], "--only must name chapters among"),
        (["--set", "rank=3"], "must name a parameter of 01-first among"),
        (["--set", "seed=1.5"], "must be of type int"),
        (["--set", "ranks=3"], "must be of type list"),
        (["--set", "seed"], "must be name=value"),
        (["--set", "seed=-1"], "must be 0 or more"),
        (["--set", "seed=9223372036854775808"], "below 2**63"),
        (["--set", "rate=0"], "must be above 0"),
        (["--set", "rate=-0.5"], "must be above 0"),
        (["--set", "rate=1e999"], "must be above 0, below 2**63; got inf"),
        (["--set", "rate=nan"], "must be of type float"),
        (["--set", "ranks=[]"], "must hold at least one entry"),
        (["--set", "ranks=[1, 0]"], "must be above 0"),
        (["--set", "ranks=['1']"], "must be of type int"),
        (["--set", "profile=fast"], "must be one of 'full', 'quick'; got 'fast'"),
        (["--jobs", "0"], "greater than or equal to 1"),
    ],
)
def test_bad_options_are_named(toy, arguments, message):
    result = run(toy, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_overrides_take_the_type_of_their_parameter(toy):
    chapter = find_chapters(toy)[0]
    assert parse_overrides(chapter, ["rate=2", "ranks=[3]"]) == {"rate": 2.0, "ranks": [3]}


@pytest.fixture
def packages(tmp_path):
    """A tree of small packages for the tracing of imports, and a function that names what is found."""

    def trace(*sources, **files):
        for name, text in files.items():
            package, _, module = name.partition("_")
            (tmp_path / package).mkdir(exist_ok=True)
            (tmp_path / package / f"{module or '__init__'}.py").write_text(text)
        return {f"{p.parent.name}.{p.stem}" for p in imported_modules(tmp_path, list(sources))}

    return trace


def test_imports_are_traced_through_the_packages(packages):
    packages(lorantk="from .a import f\nfrom .b import g\n", lorantk_a="from .c import h\n", lorantk_b="")
    packages(lorantk_c="import torch\n", evidence="", evidence_e="from lorantk.b import g\nfrom .d import x\n")
    packages(evidence_d="")
    assert packages("from lorantk import f") == {"lorantk.a", "lorantk.c"}
    assert packages("from lorantk.b import g") == {"lorantk.b"}
    assert packages("import lorantk.b") == {"lorantk.b"}
    assert packages("import lorantk") == {"lorantk.a", "lorantk.b", "lorantk.c"}
    assert packages("from lorantk import b") == {"lorantk.b"}
    assert packages("from evidence.e import y") == {"evidence.e", "evidence.d", "lorantk.b"}


def test_what_runs_as_a_program_is_not_imported(packages):
    program = 'if __name__ == "__main__":\n    from lorantk.b import show\n'
    assert packages("from lorantk.a import f", lorantk="", lorantk_a=program, lorantk_b="") == {"lorantk.a"}


def test_recorded_tables_belong_to_a_chapter(toy):
    source, table = toy / "notebooks" / "01-first.md", toy / "experiments" / "runs.csv"
    source.write_text(source.read_text() + '\n```{code-cell} ipython3\ndata.recorded("runs")\n```\n')
    chapter = find_chapters(toy)[0]
    hashes = [chapter.content_hash({})]
    table.parent.mkdir()
    for content in ("x\n1\n", "x\n2\n"):
        table.write_text(content)
        hashes.append(chapter.content_hash({}))
    assert len(set(hashes)) == 3
    assert data_files(toy, ['benchmark("speed")\nother("x")']) == [toy / "benchmarks/results/speed.json"]


def test_tables_that_a_module_reads_belong_to_the_chapters_that_import_it(toy):
    module, table = toy / "experiments" / "reader.py", toy / "experiments" / "runs.csv"
    module.parent.mkdir()
    module.write_text('def runs():\n    return recorded("runs")\n')
    source = toy / "notebooks" / "01-first.md"
    source.write_text(source.read_text() + "\n```{code-cell} ipython3\nfrom experiments.reader import runs\n```\n")
    hashes = []
    for content in ("x\n1\n", "x\n2\n"):
        table.write_text(content)
        hashes.append(find_chapters(toy)[0].content_hash({}))
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("call", ["recorded(name)", 'recorded(f"{a}")', "recorded()", 'benchmark("a", "b")'])
def test_a_table_must_be_named_literally(tmp_path, call):
    with pytest.raises(ValueError, match="must be given one literal name"):
        data_files(tmp_path, [call])


def finding(verdict="supported", outcome="supported", value=1.0, name="e", **others):
    effect = {"name": name, "value": value, "low": 0.5, "high": None, "n": 5, "unit": "", "error": None, "p": 0.01}
    effect |= {"freedom": None, "lowest": 1.0, "highest": 1.0, "half": "flips", "setting": "s", "margin": 0.02}
    effect |= {"primary": True, "failed": "", "diverged": 0, "outcome": outcome}
    texts = {key: key for key in ("id", "source", "figure", "command", "statement", "chapter")}
    tolerance = {"rtol": 1e-3, "atol": 0}
    record = texts | {"verdicts": {"flips": verdict}, "effects": [effect], "tolerance": tolerance}
    return json.dumps(record | others)


def claim(verdict="holds", passes=True, reading="printed", **others):
    evidence = {"name": "e", "value": 1.0, "low": 0.0, "high": None, "miss": 0.0, "passes": passes, "reading": reading}
    evidence |= dict.fromkeys(("part", "source", "repairs", "fails_if", "route"), "")
    texts = {key: key for key in ("id", "decisive", "figure", "statement", "chapter", "proof")}
    parts = [{"part": "", "text": "statement", "verdict": verdict}]
    return json.dumps(texts | {"parts": parts, "verdict": verdict, "evidence": [evidence]} | others)


@pytest.fixture
def numbers(tmp_path):
    for side in ("run", "kept"):
        for kind in ("figures", "claims", "findings"):
            (tmp_path / side / kind).mkdir(parents=True)
        (tmp_path / side / "figures" / "f.csv").write_text("x,label\n1.0,a\n2.0,b\n")
        (tmp_path / side / "figures" / "f.json").write_text(
            json.dumps({"columns": {c: {"rtol": 1e-3, "atol": 0} for c in ("x", "label")}})
        )
        (tmp_path / side / "claims" / "c.json").write_text(claim())
        (tmp_path / side / "findings" / "f.json").write_text(finding())
    return tmp_path / "run", tmp_path / "kept"


def test_equal_numbers_have_no_difference(numbers):
    assert reference.compare(*numbers) == []


@pytest.mark.parametrize(
    ("file", "content", "moved"),
    [
        ("figures/f.csv", "x,label\n1.0005,a\n2.0,b\n", None),
        ("figures/f.csv", "x,label\n1.01,a\n2.0,b\n", "row 0: 1 -> 1.01"),
        ("figures/f.csv", "x,label\n1.0,a\n2.0,c\n", "1 entries differ"),
        ("figures/f.csv", "x,label\n1.0,a\n", "1 rows"),
        ("figures/f.csv", "y,label\n1.0,a\n2.0,b\n", "columns"),
        ("figures/g.csv", "x\n1\n", "new"),
        ("claims/c.json", claim(verdict="fails", parts=json.loads(claim())["parts"]), "holds -> fails"),
        ("claims/c.json", claim(passes=False), "True -> False"),
        ("claims/c.json", claim(reading="corrected"), "printed -> corrected"),
        ("claims/c.json", claim(decisive="other"), "decisive -> other"),
        ("claims/c.json", claim(comment=""), "1: has more than it should: comment"),
        ("claims/c.json", claim()[:40], "1: no JSON"),
        ("claims/c.json", "[]", "1: must hold one JSON object; got a list"),
        ("claims/c.json", "{}", "1: has no chapter, decisive"),
        ("claims/c.json", claim(evidence=[{"name": "e", "passes": True}]), "each of evidence must have"),
        ("findings/f.json", finding(value=1.0005), None),
        ("findings/f.json", finding(value=1.01), "1.01"),
        ("findings/f.json", finding(verdict="mixed"), "'mixed'"),
        ("findings/f.json", finding(outcome="negligible"), "supported -> negligible"),
        ("findings/f.json", finding(tolerance={"rtol": 1.0, "atol": 1.0}), "-> {'rtol': 1.0"),
        ("findings/f.json", finding().replace('"outcome"', '"came"'), "each of effects must have"),
        ("findings/g.json", finding(), "new"),
    ],
)
def test_what_moved_is_found(numbers, file, content, moved):
    (numbers[0] / file).write_text(content)
    found = reference.compare(*numbers)
    assert len(found) == (0 if moved is None else 1)
    assert moved is None or moved in found[0].moved


def test_an_effect_that_changed_its_name_is_found_twice(numbers):
    (numbers[0] / "findings" / "f.json").write_text(finding(name="other"))
    assert {d.moved for d in reference.compare(*numbers)} == {"new", "gone"}


def test_a_missing_figure_is_found(numbers):
    (numbers[0] / "figures" / "f.csv").unlink()
    assert [d.moved for d in reference.compare(*numbers)] == ["missing from this run"]


def test_empty_entries_agree_with_each_other_only(numbers):
    for folder, text in ((numbers[0], "x,label\n1.0,a\n1.0,\n"), (numbers[1], "x,label\n1.0,a\n1.0,\n")):
        (folder / "figures" / "f.csv").write_text(text)
    declared = {"columns": {"x": {"rtol": 1e-6, "atol": 0.0}, "label": {"rtol": 0.0, "atol": 0.0}}}
    (numbers[1] / "figures" / "f.json").write_text(json.dumps(declared))
    assert reference.compare(*numbers) == []
    (numbers[0] / "figures" / "f.csv").write_text("x,label\n1.0,a\n1.0,b\n")
    assert [d.column for d in reference.compare(*numbers)] == ["label"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("f.json", '{"columns": {}}'),
        ("f.json", '{"columns": {"x": {"rtol": 1e-3, "atol": 0}}}'),
        ("f.json", '{"columns": {"x": {"rtol": 1, "atoll": 0}, "label": {"rtol": 1, "atol": 0}}}'),
        ("f.json", '{"columns": '),
        ("f.json", "{}"),
        ("f.csv", ""),
        ("f.csv", "x,label\n"),
    ],
)
def test_a_reference_that_compares_nothing_is_a_difference(numbers, file, content):
    for side in numbers:  # the same on both sides: they would agree by accident
        (side / "figures" / file).write_text(content)
    assert len(reference.compare(*numbers)) == 1


def test_a_reference_without_its_tolerances_is_a_difference(numbers):
    (numbers[1] / "figures" / "f.json").unlink()
    assert [d.allowed for d in reference.compare(*numbers)] == ["a whole file"]


def test_code_of_another_tree_is_refused(toy, monkeypatch):
    assert foreign_packages(ROOT) == {}
    assert set(foreign_packages(toy)) == {"lorantk", "evidence", "experiments", "checks", "benchmarks"}
    monkeypatch.setattr(regenerate, "ROOT", toy)
    result = run(toy)
    assert result.exit_code == 2
    assert f"-m pip install --no-deps -e {toy}" in result.stdout
    assert not executed(toy)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("offset = {", "offset = ({", "01-first.md:16: '(' was never closed"),
        ("seed = 0", "seed = len('')", "01-first.md:1: parameters must be literals, one a line"),
        ("seed = 0", "f(0)", "01-first.md:1: parameters must be literals, one a line"),
    ],
)
def test_a_chapter_that_is_no_python_is_named_by_line(toy, old, new, message):
    source = toy / "notebooks" / "01-first.md"
    source.write_text(source.read_text().replace(old, new))
    result = run(toy)
    assert result.exit_code in (1, 2)
    assert message.replace(" ", "") in result.output.replace("│", "").replace("\n", "").replace(" ", "")
    assert isinstance(result.exception, SystemExit)


def test_a_chapter_has_a_number_with_or_without_its_zero(toy):
    assert find_chapters(toy, ["2"]) == find_chapters(toy, ["02"]) == find_chapters(toy, ["02-second"])


def test_two_at_once_are_refused_and_leftovers_swept(toy):
    leftover = toy / "book" / "_build" / "stage-killed"
    leftover.mkdir(parents=True)
    with FileLock(toy / "book" / "_build" / "lock"):
        refused = run(toy)
    assert refused.exit_code == 2
    assert "another regeneration is at work" in refused.stdout
    assert leftover.exists()  # it may belong to the other one
    for path in (toy / "notebooks").glob("*.md"):
        path.unlink()
    run(toy)
    assert not leftover.exists()
