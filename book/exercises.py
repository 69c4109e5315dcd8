"""Run the command of every exercise, and compare what it says with what the exercise's solution shows.

An exercise is an `{exercise}` block with one command in a fence `sh`: a trial of its chapter on the quick profile, or a
program of the project. Its `{solution}` shows rows of the trial's table as a table, or lines of output in a fence
`text`; each must be among what the command says.
"""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import trial
import typer
from chapters import Chapter, find_chapters, parse_overrides
from execution import console, run_trials
from trial import HEADS

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^(`{4,})\{(exercise|solution)\}(.*?)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\|(?![ |:-]*$)(.*)\|$", re.MULTILINE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
BAR = "\\|"
AGREEMENT = 0.05
"""Relative difference that another machine may make between a number and the one shown: solutions argue from sizes."""


@dataclass(frozen=True)
class Exercise:
    """One exercise: its label, its command, and the lines that its solution shows."""

    chapter: Chapter
    label: str
    command: str
    shown: Sequence[str]

    @property
    def settings(self) -> list[str] | None:
        """The settings of a trial of the chapter, or None if the command is another."""
        words = shlex.split(self.command)
        if words[:2] != ["make", "notebook"]:
            return None
        given = dict(word.split("=", 1) for word in words[2:])
        if set(given) != {"N", "SET"} or find_chapters(self.chapter.root, [given["N"]]) != [self.chapter]:
            raise ValueError(f"{self.label} must be a trial of its own chapter; got {self.command!r}")
        return given["SET"].split()


def exercises(chapter: Chapter) -> list[Exercise]:
    """The exercises of a chapter in their order.

    Raises
    ------
    ValueError
        If one has not exactly one command, or no solution that shows what the command says.
    """
    asked, solved = {}, {}
    for _, kind, title, body in BLOCK.findall(chapter.source.read_text()):
        fences = FENCE.findall(body)
        if kind == "exercise":
            label = re.search(r"^:label: (\S+)$", body, re.MULTILINE)
            commands = [text.strip() for language, text in fences if language == "sh"]
            if label is None or len(commands) != 1 or "\n" in commands[0]:
                raise ValueError(f"an exercise must have a label and one command of one line; got {body!r}")
            asked[label[1]] = commands[0]
        else:
            lines = [line for language, text in fences if language == "text" for line in text.splitlines()]
            solved[title.strip()] = [plain(line) for line in lines + ROW.findall(body) if plain(line)]
    missing = sorted(label for label in asked.keys() | solved.keys() if not solved.get(label) or label not in asked)
    if missing:
        raise ValueError(f"each exercise must have a solution that shows its outcome; wrong in {missing}")
    return [Exercise(chapter, label, command, solved[label]) for label, command in asked.items()]


def plain(line: str) -> str:
    """A line of output, or a row of a table in markdown, as words: one space between them, no bars, no escapes."""
    return " ".join(re.sub(r"[\\|│`]", " ", line).split())


def not_said(exercise: Exercise, said: str) -> list[str]:
    """The lines that the solution shows and the command did not say; numbers may differ by `AGREEMENT`."""
    lines = {plain(line) for line in said.splitlines()}
    return [shown for shown in exercise.shown if not any(agree(shown, line) for line in lines)]


def agree(shown: str, said: str) -> bool:
    """Whether two lines are the same word by word, their numbers within `AGREEMENT`."""
    pairs = list(zip_longest(shown.split(), said.split()))
    return all(one == other or (bool(one and other) and _close(one, other)) for one, other in pairs)


def _close(one: str, other: str) -> bool:
    (a, first), (b, second) = (NUMBER.subn("", word) for word in (one, other))
    if a != b or first != second:
        return False
    numbers = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    return all(math.isclose(float(x), float(y), rel_tol=AGREEMENT) for x, y in numbers)


def update(exercise: Exercise, said: str) -> None:
    """Put what the command says now into the rows of the exercise's solution that begin as a row of it does."""
    begun = {plain(row[0]): row for row in (line.split(" | ") for line in said.splitlines()) if len(row) == len(HEADS)}
    source = exercise.chapter.source

    def now(match: re.Match[str]) -> str:
        row = begun.get(plain(re.split(r"(?<!\\)\|", match[1])[0]))
        return f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |" if row else match[0]

    text = source.read_text()
    solution = next(m for m in BLOCK.finditer(text) if m[2] == "solution" and m[3].strip() == exercise.label)
    source.write_text(text[: solution.start()] + ROW.sub(now, solution[0]) + text[solution.end() :])


def said_by_trials(batch: Sequence[Exercise], jobs: int) -> list[str]:
    """What the trials of a batch, one a chapter at most, say."""
    overrides = {e.chapter.name: parse_overrides(e.chapter, e.settings or []) for e in batch}
    outcomes = run_trials([e.chapter for e in batch], overrides, trial.fresh_folder, jobs)
    said = {
        o.chapter.name: o.traceback or trial.Report.of(o.chapter, overrides[o.chapter.name]).text() for o in outcomes
    }
    return [said[e.chapter.name] for e in batch]


def said_by_program(exercise: Exercise) -> str:
    """What another command than a trial says."""
    done = subprocess.run(exercise.command, shell=True, cwd=exercise.chapter.root, capture_output=True, text=True)
    return done.stdout + (done.stderr if done.returncode else "")


def batches(found: Sequence[Exercise]) -> list[list[Exercise]]:
    """The trials in batches in which no chapter stands twice: trials of one chapter share a folder."""
    turns: list[list[Exercise]] = []
    taken: Counter[str] = Counter()
    for exercise in found:
        turn = taken[exercise.chapter.name]
        taken[exercise.chapter.name] += 1
        turns += [[]] * (turn == len(turns))
        turns[turn] = [*turns[turn], exercise]
    return turns


def main(
    only: Annotated[list[str] | None, typer.Option(help="Chapter, by number or name; repeatable.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at once.")] = 2,
    accept: Annotated[bool, typer.Option("--update", help="Put what trials say now into their solutions.")] = False,
) -> None:
    """Run the command of every exercise; end with status 1 if one does not say what its solution shows."""
    start = time.perf_counter()
    found = [exercise for chapter in find_chapters(ROOT, only) for exercise in exercises(chapter)]
    trials = [exercise for exercise in found if exercise.settings is not None]
    said = {e.label: said_by_program(e) for e in found if e.settings is None}
    for batch in batches(trials):
        said |= {e.label: text for e, text in zip(batch, said_by_trials(batch, jobs), strict=True)}
    if accept:
        for exercise in trials:
            update(exercise, said[exercise.label])
        found = [exercise for chapter in find_chapters(ROOT, only) for exercise in exercises(chapter)]
    wrong = {e.label: missing for e in found if (missing := not_said(e, said[e.label]))}
    for exercise in found:
        if exercise.label in wrong:
            console.rule(f"{exercise.label}: {exercise.command}")
            print(said[exercise.label])
            print("its solution shows, but the command did not say:", *wrong[exercise.label], sep="\n  ")
    right, seconds = len(found) - len(wrong), time.perf_counter() - start
    print(f"{right} of {len(found)} exercises are as their solutions say, {seconds:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
