"""Exercises are found in the notebooks, and what their commands say is held against what their solutions show."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book"))

import exercises  # noqa: E402
from chapters import Chapter, find_chapters, parse_overrides  # noqa: E402

EXERCISE = """````{{exercise}} A title
:label: ex-one

Why?

```sh
{command}
```
````

````{{solution}} ex-one
:class: dropdown

{shown}
````
"""


def chapter(tmp_path, command='make notebook N=1 SET="rank=1 profile=quick"', shown="| a | b |\n|---|:--|\n| x | 1 |"):
    (tmp_path / "notebooks").mkdir(exist_ok=True)
    (tmp_path / "notebooks" / "01-first.md").write_text(EXERCISE.format(command=command, shown=shown))
    return Chapter(tmp_path, "01-first")


def test_an_exercise_has_one_command_and_what_its_solution_shows(tmp_path):
    (exercise,) = exercises.exercises(chapter(tmp_path))
    assert (exercise.label, exercise.settings) == ("ex-one", ["rank=1", "profile=quick"])
    assert exercise.shown == ["a b", "x 1"]


@pytest.mark.parametrize(
    ("command", "shown"), [("make notebook N=1 SET=a=1\nls", "| a |"), ("ls", "Nothing that could be compared.")]
)
def test_an_exercise_that_could_not_fail_is_refused(tmp_path, command, shown):
    with pytest.raises(ValueError, match="exercise"):
        exercises.exercises(chapter(tmp_path, command, shown))


def test_a_trial_of_another_chapter_is_no_exercise_of_this_one(tmp_path):
    made = chapter(tmp_path, "make notebook N=2 SET=rank=1")
    (tmp_path / "notebooks" / "02-second.md").write_text("")
    with pytest.raises(ValueError, match="a trial of its own chapter"):
        exercises.exercises(made)[0].settings  # noqa: B018


def test_what_a_solution_shows_and_the_command_did_not_say_is_named(tmp_path):
    shown = "| rank 1: \\|cosine\\| | 0.5 (predicted 0 to 1): met |"
    (exercise,) = exercises.exercises(chapter(tmp_path, shown=shown))
    said = "turned\nrank 1: |cosine| | 0.5 (predicted 0 to 1): met\n"
    assert exercises.not_said(exercise, said) == []
    assert exercises.not_said(exercise, said.replace("0.5", "0.51")) == []
    for changed in (said.replace("0.5", "0.6"), said.replace(": met", ": not met"), said.replace("rank 1", "rank 2")):
        assert exercises.not_said(exercise, changed) == exercise.shown


def test_rows_of_a_solution_are_brought_up_to_date(tmp_path):
    rows = [
        "| check | reference | this trial |",
        "|---|---|---|",
        "| rank 1: \\|cos\\| | 0.5 | 0.7 |",
        "| gone | 1 | 2 |",
    ]
    made = chapter(tmp_path, shown="\n".join(["Because.", "", *rows]))
    (exercise,) = exercises.exercises(made)
    exercises.update(exercise, "turned\nrank 1: |cos| | 0.5 | 0.8")
    assert "| rank 1: \\|cos\\| | 0.5 | 0.8 |\n| gone | 1 | 2 |" in made.source.read_text()
    assert "0.7" not in made.source.read_text()


def test_a_program_is_run_where_the_project_lies(tmp_path):
    (exercise,) = exercises.exercises(chapter(tmp_path, "ls notebooks", "```text\n01-first.md\n```"))
    assert exercises.not_said(exercise, exercises.said_by_program(exercise)) == []


def test_no_batch_holds_two_trials_of_one_chapter(tmp_path):
    one, two = Chapter(tmp_path, "01-first"), Chapter(tmp_path, "02-second")
    found = [exercises.Exercise(c, f"{c.name}-{k}", "", ()) for c in (one, two) for k in range(2)]
    labels = [[exercise.label for exercise in batch] for batch in exercises.batches(found)]
    assert labels == [["01-first-0", "02-second-0"], ["01-first-1", "02-second-1"]]


@pytest.mark.parametrize("chapter", find_chapters(ROOT), ids=lambda chapter: chapter.name)
def test_exercises_are_blocks_whose_settings_exist(chapter):
    found = exercises.exercises(chapter)
    assert bool(found) == ("## Exercises" in chapter.source.read_text())
    for exercise in found:
        if exercise.settings is not None:
            parse_overrides(chapter, exercise.settings)
            assert "profile" not in chapter.defaults() or "profile=quick" in exercise.settings


def test_make_hands_each_setting_over_whole():
    asked = ["make", "--no-print-directory", "-n", "notebook", "N=6", "SET=ranks=[1,64] profile=quick", "STAMP="]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.split("--only ")[1].split() == ["6", "--set", "'ranks=[1,64]'", "--set", "'profile=quick'"]
