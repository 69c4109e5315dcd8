"""The book under kills, truncations and races: what was good stays, nothing goes on, the next run makes all good."""

import json
import shutil
import signal

import pytest
from small_tree import contents, make_tree, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]


def close_gate(tree):
    (tree / "gate" / "closed").touch()
    for mark in (tree / "gate").glob("*.started"):
        mark.unlink()


def open_gate(tree):
    (tree / "gate" / "closed").unlink()


def started(tree):
    return len(list((tree / "gate").glob("*.started"))) == 2


def book(tree):
    """All that a reader sees and all that the next run goes by."""
    return {folder: contents(tree / "book" / folder) for folder in ("_static", "notebooks", "_generated")}


def change(tree):
    """A change after which both chapters run again and come to the same."""
    path = tree / "evidence" / "tables.py"
    path.write_text(path.read_text() + "# changed\n")


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_the_book_and_nobody_behind(tree, commands, by):
    before = book(tree)
    change(tree)
    close_gate(tree)
    driver = commands.regenerate(tree, "--no-render")
    wait_for(lambda: started(tree))
    assert len(commands.alive()) >= 5  # the driver, a worker and a kernel a chapter
    driver.send_signal(by)
    driver.wait(10)
    wait_for(lambda: not commands.alive(), 20)
    assert book(tree) == before
    assert (by == signal.SIGKILL) == bool(list((tree / "book" / "_build").glob("stage-*")))


def test_after_a_kill_the_next_run_makes_all_good(tree, commands):
    before = book(tree)["_static"]
    change(tree)
    stage = tree / "book" / "_build" / "stage-killed"
    stage.mkdir()
    (tree / "book" / "_static" / "claims" / "eq-1.json").write_text("{}")  # published; its notebook is not yet
    assert commands.run(tree, "--no-render")[0] == 0
    assert book(tree)["_static"] == before
    assert not stage.exists()


@pytest.mark.parametrize(("victim", "said"), [("worker", "a worker was killed"), ("kernel", "its kernel was killed")])
def test_a_victim_of_the_memory_killer_ends_in_a_line_that_says_what_to_do(tree, commands, victim, said):
    change(tree)
    close_gate(tree)
    driver = commands.regenerate(tree, "--no-render", "--jobs", "2")
    wait_for(lambda: started(tree))
    word = {"worker": "spawn_main", "kernel": "ipykernel_launcher"}[victim]
    next(p for p in commands.alive() if word in " ".join(p.cmdline())).kill()
    open_gate(tree)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert said in output
    assert "--jobs 1" in output
    assert "Traceback" not in output
    wait_for(lambda: not commands.alive(), 20)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_kill_while_pages_are_rendered_leaves_the_previous_pages(tree, commands, by):
    html = tree / "book" / "_build" / "html"
    before = contents(html)
    (tree / "book" / "index.md").write_text("# Small\n\nA word more.\n")
    log = tree / "book" / "_build" / "render.log"
    log.unlink()
    driver = commands.regenerate(tree)
    wait_for(lambda: log.exists() and log.stat().st_size > 0)
    assert len(commands.alive()) >= 2  # the driver and Sphinx
    driver.send_signal(by)
    driver.wait(10)
    wait_for(lambda: not commands.alive(), 20)
    assert contents(html) == before
    if by == signal.SIGTERM:
        return
    assert commands.run(tree)[0] == 0
    assert "A word more." in (html / "index.html").read_text()


def halve(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def test_every_truncated_file_is_named_and_made_again(tree, commands):
    written = [tree / "book" / "_static" / name for name in contents(tree / "book" / "_static")]
    before = book(tree)["_static"]
    for path in written:
        halve(path)
    halve(tree / "book" / "notebooks" / "02-beta.ipynb")
    (tree / "book" / "_generated" / "summary.md").unlink()
    status, output = commands.run(tree, "--no-render", "--check")
    assert status == 0, output
    assert "02-beta.ipynb is not as 02-beta wrote it" in output
    assert all(str(path) in output for path in written if "beta" not in path.name and "eq-2" not in path.name)
    assert book(tree)["_static"] == before
    assert (tree / "book" / "_generated" / "summary.md").exists()


@pytest.mark.parametrize(
    "names",
    [
        ["tests/reference/claims/eq-1.json"],
        ["tests/reference/figures/alpha-figure.csv", "tests/reference/figures/beta-figure.json"],
        ["README.md"],
    ],
)
def test_every_truncated_reference_is_named(tree, commands, names):
    for name in names:
        halve(tree / name)
    status, output = commands.run(tree, "--no-render", "--check")
    assert status == 1
    assert all(f"{tree / name}:" in output for name in names if not name.endswith(".csv")), output
    assert "Traceback" not in output
    assert "every recorded number" not in output


def test_of_two_at_once_one_is_refused(tree, commands):
    change(tree)
    close_gate(tree)
    first = commands.regenerate(tree, "--no-render")
    wait_for(lambda: started(tree))
    status, output = commands.run(tree, "--no-render")
    assert status == 2
    assert "another regeneration is at work" in output
    open_gate(tree)
    assert first.wait(60) == 0


def test_the_same_bytes_whatever_the_surroundings(tree, commands, root, tmp_path):
    other = make_tree(root, tmp_path / "Pfad mit Lücken, é")
    for place in (tree, other):
        shutil.copy(root / "notebooks" / "05-fisher-information.md", place / "notebooks" / "05-fisher-information.md")
    trial = ["--only", "05", "--set", "profile=quick"]
    plain = commands.regenerate(tree, *trial)
    odd = {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7", "LANG": "C", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    status, output = commands.run(other, *trial, cwd="/", **odd)
    assert status == 0, output
    assert plain.wait(120) == 0
    folder = "book/_build/trial/05-fisher-information/_static"
    found = [contents(place / folder) for place in (tree, other)]
    assert found[0].keys() == found[1].keys()
    assert [str(name) for name in found[0] if found[0][name] != found[1][name]] == []
    assert any(json.loads(content)["verdict"] for name, content in found[0].items() if "thm-fisher" in str(name))
