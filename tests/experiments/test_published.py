"""Published numbers read again: hand-made sweeps whose effects are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from evidence.decisions import benjamini_hochberg
from evidence.effects import Effect
from experiments import published, sensitivity
from experiments.published_figures import draw_accuracies, draw_effects, draw_gaps, draw_metrics, draw_tables

TASKS = sorted(published.TASKS.values())
PER_DECADE = 0.03 * np.polyfit(np.log10([0.1, 1, 2]), [0, 1, 2], 1)[0]
"""What a decade of k costs in `figures`."""

COLUMNS = ["experiment", "method", "poison_rate", "rank", "variance_times_n", "mean"]


@pytest.fixture
def figures() -> pd.DataFrame:
    """Sweeps that are the same on each task, with a standard deviation of 0.01.

    FF starts 0.02 above LoRA; under flips LoRA falls twice as far as FF, under the backdoor it ends 0.05 above FF.
    Each doubling of the rank brings 0.01 under flips and costs 0.02 under the backdoor; each step in k costs 0.03.
    """
    none = np.nan
    rows: list[list[object]] = []
    for method, flips, backdoor, clean in (("FF", 1, 0.80, 0.92), ("LoRA", 2, 0.85, 0.90)):
        rows += [["untargeted_by_rate", method, q, none, none, 0.9 - flips * q] for q in (0.1, 0.2)]
        rows += [["backdoor_by_rate", method, q, none, none, backdoor] for q in (0.001, 0.002)]
        rows += [["backdoor_by_rate_clean_test", method, q, none, none, clean] for q in (0.001, 0.002)]
    for r in (4, 8, 256):
        doublings = np.log2(r)
        rows += [["untargeted_by_rank", "LoRA", 0.0, r, 1 / 3, 0.8]]
        rows += [["untargeted_by_rank", "LoRA", 0.3, r, 1 / 3, 0.6 + 0.01 * doublings]]
        rows += [["backdoor_by_rank", "LoRA", 0.0, r, 1 / 3, 0.90 + 0.005 * doublings]]
        rows += [["backdoor_by_rank", "LoRA", 0.0015, r, 1 / 3, 0.80 - 0.015 * doublings]]
    for attack in ("untargeted", "backdoor"):
        for step, k in enumerate((0.1, 1, 2)):
            rows += [[f"{attack}_by_variance", "LoRA", 0.0, 8, k, 0.9]]
            rows += [[f"{attack}_by_variance", "LoRA", 0.3, 8, k, 0.7 - 0.03 * step]]
    table = pd.DataFrame(rows, columns=COLUMNS).assign(std=0.01, seeds=5, metric="accuracy")
    return pd.concat([table.assign(task=task) for task in TASKS], ignore_index=True)


@pytest.fixture
def sweeps(figures: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return published.accuracy_sweeps(figures)


@pytest.fixture
def seeds() -> pd.DataFrame:
    """The sweep under flips of `figures`, run by run: a seed is off by the same at all poison rates."""
    rows = [
        [task, method, q, seed, 0.9 - flips * q + 0.01 * (seed - 3) * (1 if method == "FF" else 0.5)]
        for task in TASKS
        for method, flips in (("FF", 1), ("LoRA", 2))
        for q in (0.1, 0.2)
        for seed in range(1, 6)
    ]
    return pd.DataFrame(rows, columns=["task", "method", "poison_rate", "seed", "accuracy"])


def test_effects_point_the_way_of_the_finding(sweeps: dict[str, pd.DataFrame], seeds: pd.DataFrame) -> None:
    expected = {
        ("finding-1", "flips: extra loss of LoRA"): 0.15 - 0.02,
        ("finding-1", "backdoor: LoRA − FF, triggered"): 0.05 + 0.02,
        ("finding-2", "flips: gain over the ranks"): 0.01 * 6,
        ("finding-2", "backdoor: loss over the ranks"): 0.02 * 6,
        ("finding-4", "backdoor: r = 4 − higher ranks"): 0.02 * ((3 + 8) / 2 - 2),
        ("finding-4", "backdoor: r = 4 − r = 8"): 0.02,
        ("finding-5", "flips: loss over the values of k"): PER_DECADE * np.log10(20),
        ("finding-5", "backdoor: loss over the values of k"): PER_DECADE * np.log10(20),
    }
    effects = published.effects_by_task(sweeps, seeds)
    assert list(effects) == list(expected)
    for key, found in effects.items():
        assert [e.value for e in found] == pytest.approx([expected[key]] * len(published.SCOPES)), key
    table = published.effects_table(effects)
    assert list(table.scope[:6]) == [*TASKS, "these tasks", "in general"]
    assert (table.low < table.value).all()
    assert draw_effects(effects).axes[0].get_title() == "finding-1\nflips: extra loss of LoRA"


def test_the_lowest_rank_that_performs_is_held_against_the_next_that_does(figures: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="two tasks of which two ranks perform; got 0"):
        published.next_rank_effects(published.accuracy_sweeps(figures))  # all ranks but the best cost too much
    rank = figures.experiment == "backdoor_by_rank"
    figures.loc[rank & (figures["rank"] == 4), "mean"] -= 0.5
    figures.loc[rank & (figures["rank"] > 4) & figures.task.isin(TASKS[:2]), "std"] = 0.1
    found = published.next_rank_effects(published.accuracy_sweeps(figures))
    assert [e.value for e in found] == pytest.approx([0.02 * 5] * 4)  # 256 against 8, on two tasks, these, in general


def test_rank_4_costs_what_higher_ranks_reach_without_poison(sweeps: dict[str, pd.DataFrame]) -> None:
    cost = published.clean_cost_of_rank_4(sweeps)
    assert [e.value for e in cost] == pytest.approx([0.005 * ((3 + 8) / 2 - 2)] * len(published.SCOPES))


def test_gaps_are_taken_at_each_poison_rate(sweeps: dict[str, pd.DataFrame]) -> None:
    gaps = published.gaps_between_methods(sweeps)
    assert len(gaps) == 2 * 2 * len(TASKS)
    values = {(row.attack, row.poison_rate): row.effect.value for row in gaps[gaps.task == "CoLA"].itertuples()}
    expected = {("flips", 0.1): 0.08, ("flips", 0.2): 0.18, ("backdoor", 0.001): 0.07, ("backdoor", 0.002): 0.07}
    assert values == pytest.approx(expected)
    kept = np.arange(len(gaps) + 3) % 2 == 0
    table = published.gaps_table(gaps, kept)
    assert list(table.columns) == ["attack", "task", "poison_rate", "value", "low", "high", "kept"]
    assert table.kept.tolist() == kept[:-3].tolist()
    assert len(draw_gaps(table).axes) == 8


def test_a_family_holds_gaps_tables_and_trends_once(sweeps: dict[str, pd.DataFrame], seeds: pd.DataFrame) -> None:
    gaps, other = published.gaps_between_methods(sweeps), Effect("table 1", 1, 0, 2, 5, p=0.5)
    family = published.comparisons(gaps, [other], published.effects_by_task(sweeps, seeds))
    assert len(family) == len(gaps) + 1 + 6 * len(TASKS)
    assert len({e.name for e in family}) == len(family)
    assert benjamini_hochberg([e.p for e in family]).sum() == len(family) - 1


def test_what_stays_is_counted() -> None:
    family = [Effect("flips, a", 1, 0.5, 2, 5), Effect("flips, b", 1, -1, 3, 5), Effect("against", -1, -2, -0.5, 5)]
    words = published.kept_in_words(family, np.array([True, False, True]))
    assert "3 comparisons; 2 intervals exclude 0; at a false discovery rate of 5 % 2 stay" in words
    assert "under flips that stay: 1; effects against a finding that stay: against" in words


def test_tables_are_compared_line_by_line() -> None:
    rows = [(1, "style", "FF", np.nan, np.nan, np.nan, 0.8), (1, "style", "LoRA", np.nan, np.nan, np.nan, 0.9)]
    rows += [(2, np.nan, "LoRA", k, "kaiming_uniform", q, 0.9 - q - k / 10) for k in (0.33, 1.0, 2.0) for q in (0, 0.1)]
    rows += [(3, "style", "FF", np.nan, np.nan, np.nan, 0.5), (3, "style", "LoRA", np.nan, np.nan, np.nan, 0.4)]
    names = ["table", "attack", "method", "variance_times_n", "init", "poison_rate", "mean"]
    tables = pd.DataFrame(rows, columns=names).assign(std=0.01)
    method, start = published.effects_in_tables(tables)
    assert (method.name, start.name) == ("table 1, style: LoRA − FF", "table 2, kaiming_uniform: k = 0.33 − k = 2")
    assert (method.value, start.value) == pytest.approx((0.1, 0.167))
    fewer = published.effects_in_tables(tables, runs=3)
    assert [e.n for e in fewer] == [6, start.n]
    assert fewer[0].error == pytest.approx((5 / 3) ** 0.5 * method.error)
    assert published.initialisations(tables).label.iloc[0] == "kaiming uniform, k = 0.33"
    assert len(draw_tables(tables).axes) == 3


def test_curves_tell_lines_apart(figures: pd.DataFrame) -> None:
    by_poison_rate, by_rank = (published.accuracy_curves(figures, x) for x in ("poison_rate", "rank"))
    assert set(by_poison_rate.experiment) == {"flipped labels", "backdoor, triggered", "backdoor, clean"}
    assert set(by_poison_rate.method) == {"FF", "LoRA"}
    with_poison = by_rank[(by_rank.arm == "with poison") & (by_rank.experiment == "flipped labels")]
    assert with_poison["mean"].unique() == pytest.approx([0.62, 0.63, 0.68])
    recall = published.metric_curves(figures.assign(metric="recall"), "rank")
    assert set(recall.line) == {"with poison, recall", "without, recall"}
    assert published.metric_curves(figures, "rank").empty
    floors = pd.Series(0.5, TASKS)
    assert len(draw_accuracies(by_poison_rate, "poison_rate", floors).axes) == 12
    assert draw_accuracies(by_rank, "rank").axes[0].get_xscale() == "log"
    assert draw_metrics(recall, "rank").axes[0].get_xscale() == "log"


def test_the_variance_is_read_as_shares_and_as_gaps(sweeps: dict[str, pd.DataFrame]) -> None:
    shares = published.shares_of_variance(sweeps)
    assert [e.name for e in shares["flips"]] == [*TASKS, "flips, share that k explains"]
    assert shares["backdoor"][-1].low > 0
    gaps = published.gaps_of_variances(sweeps)
    assert list(gaps) == ["flips", "backdoor"]
    average = published.average_task(
        published.robustness(sweeps["backdoor_by_variance"], "variance_times_n"), "variance_times_n"
    )
    assert gaps["backdoor"].value == pytest.approx(average.groupby("variance_times_n")["mean"].mean().pipe(np.ptp))
    assert gaps["backdoor"].p == pytest.approx(shares["backdoor"][-1].p)
    assert published.shares_in_words(shares).index.tolist() == [*TASKS, "these tasks"]


def test_one_thing_is_changed_at_a_time(figures: pd.DataFrame) -> None:
    wide = (figures.experiment == "untargeted_by_rank") & (figures["rank"] == 256) & (figures.poison_rate > 0)
    figures.loc[wide & (figures.task == "CoLA"), "std"] = 0.2
    variants = sensitivity.variants(figures, collapsed=0.1)
    assert len(figures) - len(variants["collapsed points dropped"][0]) == 2  # with poison, and the same without
    assert len(variants["without CoLA"][0]) == len(figures) * 3 / 4
    found = sensitivity.effects_under_variants(variants)
    assert list(found.index) == list(variants)
    loss = found["LoRA's extra loss, flips"].str.split().str[0].astype(float)
    assert loss["as analysed"] == pytest.approx(0.13)
    assert loss["clean level not taken off"] == pytest.approx(0.15)
    decade = found["per decade of k, backdoor"].str.split().str[0].astype(float)
    assert decade.tolist() == pytest.approx([PER_DECADE] * len(variants), rel=5e-3)


def test_any_threshold_leaves_numbers_or_says_that_none_is_left(figures: pd.DataFrame) -> None:
    for collapsed in [*np.linspace(0, figures["std"].max(), 8), 1.0]:
        row = sensitivity.effects_under_variants(sensitivity.variants(figures, collapsed)).loc[
            "collapsed points dropped"
        ]
        assert all(" to " in text or text == "fewer than two tasks are left" for text in row)
    assert row.str.contains(" to ").all()


def test_trends_in_order_are_rank_correlations(sweeps: dict[str, pd.DataFrame]) -> None:
    found = sensitivity.trends_in_order(sweeps, np.random.default_rng(0), draws=50)
    values = found.map(lambda text: float(text.split()[0]))
    assert set(values["untargeted, rank"]) == {1.0}
    assert set(values["backdoor, variance"]) == {-1.0}


def test_confounders_are_differences_without_poison(sweeps: dict[str, pd.DataFrame]) -> None:
    found = sensitivity.confounders(sweeps, pd.Series(0.5, TASKS)).loc["QQP"].tolist()
    assert found == pytest.approx([0.02, 0.0, 0.14, 0.3])
