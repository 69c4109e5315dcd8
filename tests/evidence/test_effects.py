"""Effects against the same numbers by another route: raw data, closed forms, another library, simulation."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from evidence.effects import Effect, contrast, over_choices, paired_contrast, random_effects, slope_weights
from evidence.resampling import parametric_bootstrap, partial_spearman, poison_rate_at, rank_correlation, spearman

RATES = [0.001, 0.002, 0.004]


def summary(sample):
    return sample.mean(), sample.std(ddof=1), len(sample)


def effect(value, error, name="e"):
    return Effect(name, value, value - error, value + error, 5, error=error)


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 12))
def test_welch_from_summaries_is_welch_from_the_runs(seed, n, m):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(1, 0.1, n), rng.normal(2, 3, m)
    test = scipy.stats.ttest_ind(a, b, equal_var=False)
    ours = contrast([summary(a), summary(b)], [1, -1], "a - b")
    assert (ours.low, ours.high) == pytest.approx(test.confidence_interval(0.95))
    assert ours.p == pytest.approx(test.pvalue)
    assert ours.n == n + m


def test_a_contrast_of_five_seeds_covers_the_truth():
    rng = np.random.default_rng(0)
    weights, truth, spread = [0.5, 0.5, -1], np.array([1.0, 2.0, 3.0]), np.array([0.1, 1.0, 0.3])
    runs = rng.normal(truth[:, None], spread[:, None], (2000, 3, 5))
    effects = [contrast([summary(g) for g in draw], weights, "c") for draw in runs]
    covered = np.mean([e.low <= np.dot(weights, truth) <= e.high for e in effects])
    assert 0.935 < covered < 0.975  # binomial error .005; Satterthwaite's degrees of freedom err on the wide side


def test_redrawn_means_agree_with_the_contrast():
    mean, std = np.array([1.0, 2.0, 4.0]), np.array([0.1, 0.2, 0.1])
    exact = contrast(list(zip(mean, std, [50] * 3, strict=True)), [1, -2, 1], "c")
    drawn = parametric_bootstrap(
        lambda m: m @ np.array([1, -2, 1]), mean, std, 50, np.random.default_rng(0), "c", draws=20000
    )
    assert drawn.value == pytest.approx(exact.value)
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.03 * (exact.high - exact.low))


def test_pairs_need_not_agree_in_level():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, 20)
    difference = 1 + rng.normal(0, 0.1, 20)
    ours = paired_contrast(np.column_stack([base + difference, base]), [1, -1], "pair")
    assert ours.error == pytest.approx(scipy.stats.sem(difference))
    assert 0.9 < ours.low < 1 < ours.high < 1.1
    same = paired_contrast(np.column_stack([base, base]), [1, -1], "none")
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_tasks_that_differ_much_are_a_sample_of_tasks():
    values = np.array([0.0, 1.0, 3.0, 8.0])
    ours = random_effects([effect(v, 1e-3) for v in values], "all")
    assert (ours.low, ours.high) == pytest.approx(
        scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95), rel=1e-4
    )


def test_tasks_that_happen_to_agree_do_not_make_the_interval_narrow():
    ours = random_effects([effect(1 + 1e-6 * i, 0.3) for i in range(4)], "all")
    assert ours.high - ours.low == pytest.approx(2 * scipy.stats.t.ppf(0.975, 3) * 0.3 / 2, rel=1e-3)


def test_rank_correlation_matches_scipy_and_repeats():
    x = np.arange(12.0)
    y = x + np.random.default_rng(1).normal(0, 2, 12)
    first, second = (spearman(x, y, np.random.default_rng(0), "s") for _ in range(2))
    assert first == second
    assert first.value == scipy.stats.spearmanr(x, y).statistic
    means = np.random.default_rng(2).normal(size=(5, 12))
    expected = [scipy.stats.spearmanr(x, row).statistic for row in means]
    assert rank_correlation(x)(means) == pytest.approx(expected)


def test_a_dose_is_read_between_the_rates_and_never_beyond():
    straight = np.array([[0.9, 0.7, 0.5]])  # linear in the logarithm of the rate
    assert poison_rate_at(RATES, straight, 0.8) == pytest.approx([0.001 * 2**0.5])
    assert poison_rate_at(RATES, straight, 0.95) == pytest.approx([0.001])
    assert poison_rate_at(RATES, straight, 0.1) == pytest.approx([0.004])
    bumpy = np.array([[0.9, 0.6, 0.8]])  # the last two count as their mean
    assert poison_rate_at(RATES, bumpy, 0.8) == pytest.approx([0.001 * 2**0.5])


def test_the_other_side_of_an_effect():
    assert -Effect("e", 1, 0, 3, 5) == Effect("e", -1, -3, 0, 5)


def test_one_sided_tests_are_those_of_scipy():
    sample = np.random.default_rng(4).normal(0.3, 1, (15, 1))
    ours = paired_contrast(sample, [1], "mean")
    for bound in (-0.2, 0.0, 0.5):
        for side, p in (("greater", ours.p_above(bound)), ("less", ours.p_below(bound))):
            assert p == pytest.approx(scipy.stats.ttest_1samp(sample[:, 0], bound, alternative=side).pvalue)
    assert ours.p_difference() == pytest.approx(ours.p)
    assert (-ours).p_above(0.1) == ours.p_below(-0.1)


@given(st.floats(-1, 1), st.floats(0.01, 1), st.floats(0.01, 2))
def test_an_effect_is_within_its_margin_where_its_90_percent_interval_is(value, error, margin):
    ours = Effect("e", value, value, value, 12, error=error, freedom=11)
    reach = abs(value) + error * scipy.stats.t.ppf(0.95, 11)
    if abs(reach - margin) > 1e-9:
        assert (ours.p_within(margin) < 0.05) == (reach < margin)


def test_an_effect_without_spread_is_known():
    sure = paired_contrast([[0.125], [0.125], [0.125]], [1], "sure")
    assert (sure.p_above(), sure.p_below(), sure.p_within(0.2), sure.p_within(0.05)) == (0, 1, 0, 1)
    with pytest.raises(ValueError, match="standard error and degrees of freedom"):
        effect(1, 0.1).p_above()
    with pytest.raises(ValueError, match="standard error above 0"):
        sure.detectable()


def test_a_range_says_what_all_its_choices_say():
    rng = np.random.default_rng(5)
    parts = [paired_contrast(rng.normal(m, 0.1, (10, 1)), [1], str(m), "accuracy") for m in (0.3, 0.1, 0.5)]
    ours = over_choices(parts, "range")
    assert (ours.value, ours.lowest, ours.highest) == (parts[0].value, parts[1].value, parts[2].value)
    assert (ours.low, ours.high) == (parts[1].low, parts[2].high)
    for p in (lambda e: e.p_above(0.05), lambda e: e.p_below(0.6), lambda e: e.p_within(0.7)):
        assert p(ours) == max(map(p, parts))
    other = -ours
    assert (other.value, other.lowest, other.highest) == (-parts[0].value, -parts[2].value, -parts[1].value)
    assert other.p_below(-0.05) == ours.p_above(0.05)
    alone = over_choices(parts[:1], "one")
    assert (alone.low, alone.high, alone.p_difference()) == (parts[0].low, parts[0].high, parts[0].p_difference())
    with pytest.raises(ValueError, match="in one unit"):
        over_choices([*parts, effect(1, 0.1)], "mixed")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Effect("e", np.nan, 0, 1, 5), "value of 'e' must be finite"),
        (lambda: Effect("e", 1, 2, 0, 5), "low must be at most high"),
        (lambda: contrast([(1, 1, 5)], [1, -1], "e"), "weights must match the 1 groups"),
        (lambda: paired_contrast([[1, 2]], [1, -1], "e"), "seeds >= 2"),
        (lambda: paired_contrast([[1, 2], [1, 3]], [1], "e"), "weights must match the 2 arms"),
        (lambda: slope_weights([2, 2]), "two different values"),
        (lambda: random_effects([effect(1, 0.1)], "e"), "two or more"),
        (lambda: random_effects([effect(1, 0.1), effect(1, 0.0)], "e"), "standard error above 0"),
        (lambda: spearman([1, 1], [1, 2], np.random.default_rng(0), "e"), "not be constant"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_partial_correlation_is_that_of_the_textbook():
    rng = np.random.default_rng(3)
    z = rng.normal(size=60)
    x, y = z + rng.normal(size=60), 2 * z + rng.normal(size=60)
    found = partial_spearman(x, y, z, np.random.default_rng(0), "p")
    xy, xz, yz = (scipy.stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    assert found.value == pytest.approx((xy - xz * yz) / ((1 - xz**2) * (1 - yz**2)) ** 0.5)
    assert abs(found.value) < 0.4 < xy
    assert found.low < found.value < found.high
