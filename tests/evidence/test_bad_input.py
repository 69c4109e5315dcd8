"""Every public function of the package answers a wrong argument with its name and what is allowed."""

import math

import numpy as np
import pytest
import torch

from evidence.artifacts import committed
from evidence.claims import Claim, Evidence, disagreement
from evidence.decisions import benjamini_hochberg
from evidence.effects import Effect, contrast, paired_contrast, random_effects, slope_weights
from evidence.figures import save, subplots
from evidence.findings import Finding
from evidence.resampling import parametric_bootstrap, partial_spearman, poison_rate_at, spearman
from evidence.routes import measure
from evidence.variance import gap_between_groups, variance_explained, variance_explained_within

NAN = math.nan
PAIR = [(0.0, 1.0, 5), (1.0, 1.0, 5)]


def effect(**others):
    return Effect(**{"name": "e", "value": 1, "low": 0, "high": 2, "n": 5, "error": 0.5, "p": 0.1} | others)


def draw(mean=(1, 2), std=(1, 1), n=5, draws=10):
    return parametric_bootstrap(lambda means: means.mean(1), mean, std, n, np.random.default_rng(0), "b", draws=draws)


def ranks(x, y):
    return spearman(x, y, np.random.default_rng(0), "s")


def partial(x, y, controls=((2, 1, 5, 4, 3),)):
    return partial_spearman(x, y, controls, np.random.default_rng(0), "p")


def figure(data=None, name="name", alt="alt", **others):
    return save(subplots()[0], name, {"a": [1.0]} if data is None else data, alt, **others)


def level(rates, accuracy):
    return poison_rate_at(rates, np.array(accuracy), 0.5)


def check():
    return Evidence("a", measure(slope_weights, [1, 2]), 0, 2, "never")


CASES = {
    "contrast, nan": (lambda: contrast([(NAN, 1, 5), PAIR[1]], (1, -1), "c"), "groups of 'c' must be finite"),
    "contrast, one run": (lambda: contrast([(0, 1, 1), PAIR[1]], (1, -1), "c"), "two runs or more"),
    "contrast, negative spread": (lambda: contrast([(0, -1, 5), PAIR[1]], (1, -1), "c"), "std of 0 or above"),
    "contrast, nothing": (lambda: contrast([], (), "c"), "groups of 'c' must be finite .*one or more"),
    "contrast, weights": (lambda: contrast(PAIR, (1,), "c"), "weights must match the 2 groups; got 1"),
    "contrast, nan weight": (lambda: contrast(PAIR, (NAN, 1), "c"), "value of 'c' must be finite"),
    "paired, one seed": (lambda: paired_contrast([[1, 2]], (1, -1), "c"), "seeds >= 2"),
    "paired, nan": (lambda: paired_contrast([[1, NAN], [1, 2]], (1, -1), "c"), "outcomes of 'c' must be finite"),
    "paired, weights": (lambda: paired_contrast([[1, 2], [1, 2]], (1,), "c"), "weights must match the 2 arms; got 1"),
    "slope, constant": (lambda: slope_weights([1, 1]), "two different values or more"),
    "slope, nan": (lambda: slope_weights([1, NAN]), "x must hold finite numbers"),
    "slope, shape": (lambda: slope_weights([[1, 2], [3, 4]]), "x must hold finite numbers"),
    "tasks, one": (lambda: random_effects([effect()], "t"), "must be two or more"),
    "tasks, no error": (lambda: random_effects([effect(), effect(error=None)], "t"), "standard error above 0"),
    "spearman, constant": (lambda: ranks([1, 1], [1, 2]), "not be constant"),
    "spearman, lengths": (lambda: ranks([1, 2, 3], [1, 2]), "must have one shape"),
    "spearman, nan": (lambda: ranks([1, NAN, 3], [1, 2, 3]), "must be finite"),
    "partial, constant": (lambda: partial([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]), "must be finite, not constant"),
    "partial, few rows": (lambda: partial([1, 2, 3], [1, 3, 2], [[3, 1, 2]]), "more rows than variables"),
    "bootstrap, one run": (lambda: draw(n=1), "n must be 2 or more"),
    "bootstrap, no draw": (lambda: draw(draws=0), "draws 1 or more"),
    "bootstrap, nan": (lambda: draw(mean=(1, NAN)), "mean and std of 'b' must be finite"),
    "bootstrap, spread": (lambda: draw(std=(-1, 1)), "std 0 or above"),
    "bootstrap, shapes": (lambda: draw(std=(1, 1, 1)), "of one shape"),
    "level, order": (lambda: level([0.3, 0.1], [[1.0, 0.0]]), r"poison_rates must increase .*got \[0.3, 0.1\]"),
    "level, zero": (lambda: level([0.0, 0.1], [[1.0, 0.0]]), "above 0"),
    "level, shape": (lambda: level([0.1, 0.2], [[1.0]]), r"of shape \(draws, 2\); got \(1, 1\)"),
    "level, nan": (lambda: level([0.1, 0.2], [[1.0, NAN]]), "accuracy must be finite"),
    "share, one group": (lambda: variance_explained(PAIR[:1], "v"), "must be two or more, each with a spread"),
    "share, no spread": (lambda: variance_explained([(0, 0, 5), PAIR[1]], "v"), "each with a spread"),
    "share, nan": (lambda: variance_explained([(0, NAN, 5), PAIR[1]], "v"), "groups of 'v' must be finite"),
    "gap, one group": (lambda: gap_between_groups(PAIR[:1], "v"), "must be two or more, each with a spread"),
    "share within, shape": (lambda: variance_explained_within([1, 2], "v"), "of shape"),
    "share within, nan": (lambda: variance_explained_within([[1, NAN], [1, 2]], "v"), "must be finite"),
    "decisions, none": (lambda: benjamini_hochberg([]), "one or more"),
    "decisions, no p": (lambda: benjamini_hochberg([0.5, 2.0]), r"must be one or more values in \[0, 1\]"),
    "decisions, level": (lambda: benjamini_hochberg([0.5], 2), "level must be between 0 and 1; got 2"),
    "effect, nan": (lambda: effect(value=NAN), "value of 'e' must be finite"),
    "effect, interval": (lambda: effect(low=3), "low must be at most high"),
    "effect, n": (lambda: effect(n=0), "n of 'e' must be at least 1; got 0"),
    "effect, error": (lambda: effect(error=-1), "error of 'e' must be 0 or above"),
    "effect, p": (lambda: effect(p=2), "p of 'e' must be from 0 to 1; got 2"),
    "evidence, nan": (lambda: Evidence("a", measure(slope_weights, [1, 2]), NAN, 1, "r"), "low must be at most high"),
    "claim, two of one name": (lambda: Claim("eq-1", 2 * [check()], "a"), "names of its own"),
    "finding, nothing": (lambda: Finding("finding-1", "digits", [], "f", "c"), "must hold a primary effect on"),
    "disagreement, shapes": (lambda: disagreement(torch.ones(2), torch.ones(2, 2)), r"got \(2,\) and \(2, 2\)"),
    "figure, name": (lambda: figure(name="../x"), "name must be lower-case letters"),
    "figure, no rows": (lambda: figure(data={"a": []}), "got no rows"),
    "figure, alt": (lambda: figure(alt=" "), "alt must say"),
    "figure, tolerance of nothing": (lambda: figure(tolerance={"b": {"rtol": 1}}), "must name columns"),
    "figure, misspelt tolerance": (lambda: figure(tolerance={"a": {"rtoll": 1}}), "must hold rtol and atol"),
    "figure, negative tolerance": (lambda: figure(tolerance={"a": {"atol": -1}}), "0 or above"),
    "figure, lengths": (lambda: figure(data={"a": [1], "b": [1, 2]}), "same length"),
    "file elsewhere": (lambda: committed("experiments", "../pyproject", ".toml"), "name must be a table among"),
    "no such file": (lambda: committed("experiments", "nowhere", ".csv"), "got 'nowhere'"),
}


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=CASES)
def test_a_wrong_argument_is_named(call, message, tmp_path, monkeypatch):
    monkeypatch.setenv("LORANTK_RESULTS", str(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call()
    assert not list(tmp_path.rglob("*.csv"))
