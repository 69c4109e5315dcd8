"""Four outcomes of a family of effects: how often they are wrong, by simulation, and what they are, by construction."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from evidence.decisions import OUTCOMES, benjamini_hochberg, decide
from evidence.effects import Effect, over_choices

FAMILIES, SEEDS, MARGIN = 500, 20, 0.05
NOMINAL = 0.05 + 3 * (0.05 * 0.95 / FAMILIES) ** 0.5
"""What 5 % may look like in this many families, three standard deviations of a binomial."""


def effects(sample: NDArray[np.float64]) -> list[Effect]:
    """Mean of each column of paired differences (seeds, effects)."""
    mean, error = sample.mean(axis=0), sample.std(axis=0, ddof=1) / len(sample) ** 0.5
    return [
        Effect("e", m, m, m, len(sample), error=e, freedom=len(sample) - 1) for m, e in zip(mean, error, strict=True)
    ]


def families(means: NDArray[np.float64], std: float, shared: float) -> list[list[str]]:
    """Outcomes of FAMILIES families whose effects have these means; `shared` of the variance is common to a family."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(FAMILIES):
        noise = (1 - shared) ** 0.5 * rng.normal(size=(SEEDS, len(means))) + shared**0.5 * rng.normal(size=(SEEDS, 1))
        found.append(decide(effects(means + std * noise), [MARGIN] * len(means)))
    return found


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_families_of_no_effects_seldom_claim_one(shared: float) -> None:
    found = families(np.zeros(8), 0.2, shared)
    wrong = np.mean([bool({"supported", "reversed"} & set(outcomes)) for outcomes in found])
    assert 0 < wrong < NOMINAL


def test_effects_as_large_as_their_margin_are_seldom_called_negligible() -> None:
    means = MARGIN * np.array([1, -1, 1, -1, 1, -1, 1, -1])
    wrong = np.mean(["negligible" in outcomes for outcomes in families(means, 0.03, 0.0)])
    assert 0 < wrong < NOMINAL


def test_small_effects_measured_well_are_negligible_and_large_ones_have_their_sign() -> None:
    means = np.array([0.0, 0.01, 0.2, -0.2])
    share = np.mean([outcomes == ["negligible", "negligible", "supported", "reversed"]
                     for outcomes in families(means, 0.03, 0.0)])  # fmt: skip
    assert share > 0.95


def test_a_range_is_supported_only_if_each_choice_is() -> None:
    """Two choices, one of them without an effect: calling the range supported is wrong."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(FAMILIES):
        sample = rng.normal([0.0, 0.3], 0.1, (SEEDS, 2))
        wrong += decide([over_choices(effects(sample), "range")], [MARGIN])[0] == "supported"
    assert 0 < wrong / FAMILIES < NOMINAL


def test_the_size_of_the_family_counts() -> None:
    clear = Effect("e", 2.2, 0.0, 4.4, 40, error=1.0, freedom=39)
    nothing = Effect("e", 0.1, -2.0, 2.0, 40, error=1.0, freedom=39)
    assert decide([clear], [0.5]) == ["supported"]
    assert decide([clear, *[nothing] * 9], [0.5] * 10) == ["inconclusive"] * 10


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 1)), min_size=1, max_size=8))
def test_outcomes_turn_round_with_the_effects(parts: list[tuple[float, float]]) -> None:
    family = [Effect("e", v, v, v, 20, error=e, freedom=19) for v, e in parts]
    turned = {"supported": "reversed", "reversed": "supported"}
    outcomes = decide(family, [0.2] * len(family))
    assert set(outcomes) <= set(OUTCOMES)
    assert decide([-e for e in family], [0.2] * len(family)) == [turned.get(word, word) for word in outcomes]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_discoveries_are_those_of_scipy(p: list[float]) -> None:
    adjusted = scipy.stats.false_discovery_control(p)
    assert (benjamini_hochberg(p) == (adjusted <= 0.05))[np.abs(adjusted - 0.05) > 1e-9].all()


def test_bad_input_is_named() -> None:
    one = Effect("e", 1, 0, 2, 20, error=1.0, freedom=19)
    with pytest.raises(ValueError, match="margins must match the 1 effects; got 2"):
        decide([one], [0.1, 0.1])
    with pytest.raises(ValueError, match="margin must be"):
        decide([one], [0.0])
    for p in ([], [1.2], [np.nan]):
        with pytest.raises(ValueError, match="one or more values in"):
            benjamini_hochberg(p)
