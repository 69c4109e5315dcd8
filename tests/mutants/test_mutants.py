"""The list of mistakes fits the code, and its last result fits the list."""

import csv

from mutate import FOLDER, load


def test_every_mistake_can_be_made_and_was_noticed_by_its_tests(root):
    mutants = load()
    assert len(mutants) >= 30
    assert len({(mutant["file"], mutant["old"]) for mutant in mutants}) == len(mutants)
    rows = list(csv.DictReader((FOLDER / "results.csv").open()))
    assert [(row["mistake"], row["file"]) for row in rows] == [(m["mistake"], m["file"]) for m in mutants]
    for mutant, row in zip(mutants, rows, strict=True):
        path, _, name = row["noticed by"].partition("::")
        assert path in mutant["tests"], f"not noticed: {mutant['mistake']}"
        assert f"def {name}(" in (root / path).read_text()
