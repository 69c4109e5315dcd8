"""Weights that turn published means into differences, against differences taken by hand."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from evidence.effects import contrast
from experiments.contrasts import average_task, groups, method_cells, rest_cells, robustness, slope_cells, summarise


@pytest.fixture
def sweep():
    """Two tasks, three ranks, with and without poison."""
    rng = np.random.default_rng(0)
    rows = [(t, r, p) for t in ("a", "b") for p in (0.0, 0.3) for r in (4, 8, 16)]
    table = pd.DataFrame(rows, columns=["task", "rank", "poison_rate"])
    return table.assign(mean=rng.uniform(0.5, 1, 12), std=rng.uniform(0.01, 0.02, 12), seeds=5)


def weighted(cells):
    return (cells.weight * cells["mean"]).groupby(cells.task).sum().to_numpy()


def line(rows):
    return scipy.stats.linregress(np.log2(rows["rank"]), rows["mean"]).slope


def test_weights_along_the_rank_are_a_difference_of_slopes(sweep):
    parts = [[line(arm) for _, arm in rows.groupby("poison_rate")] for _, rows in sweep.groupby("task")]
    x = np.log2(sweep["rank"])
    assert weighted(slope_cells(sweep, x)) == pytest.approx([poisoned - clean for clean, poisoned in parts])
    assert weighted(slope_cells(sweep, x, "poison")) == pytest.approx([poisoned for _, poisoned in parts])
    with pytest.raises(ValueError, match="arm must be one of"):
        slope_cells(sweep, x, "dirty")


def test_weights_against_the_rest_and_changes_agree(sweep):
    change = robustness(sweep, "rank").pivot_table(index="task", columns="rank", values="mean")
    expected = change[4] - (change[8] + change[16]) / 2
    assert weighted(rest_cells(sweep, sweep["rank"] == 4)) == pytest.approx(expected.to_numpy())
    assert average_task(robustness(sweep, "rank"), "rank")["mean"].to_numpy() == pytest.approx(change.mean().to_numpy())
    pooled = average_task(robustness(sweep, "rank"), "rank")
    both = [contrast([(m, s, 5) for m, s in zip(rows["mean"], rows["std"], strict=True)], [1, -1, 1, -1], "c")
            for _, rows in sweep.sort_values(["rank", "task", "poison_rate"]).groupby("rank")]  # fmt: skip
    assert (pooled["std"] / 5**0.5).to_numpy() == pytest.approx([e.error / 2 for e in both])


def test_methods_are_compared_where_both_ran_and_the_clean_gap_is_taken_off():
    rows = [("a", "FF", 0.1, 0.9), ("a", "LoRA", 0.1, 0.8), ("a", "FF", 0.2, 0.7), ("a", "LoRA", 0.2, 0.5),
            ("a", "FF", 0.3, 0.1), ("b", "FF", 0.1, 0.6), ("b", "LoRA", 0.1, 0.7)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["task", "method", "poison_rate", "mean"]).assign(std=0.01, seeds=5)
    assert weighted(method_cells(table)) == pytest.approx([0.15, -0.1])
    assert weighted(method_cells(table, table)) == pytest.approx([0, 0])
    a, b, these, general = summarise(method_cells(table), "gap")
    assert (a.name, b.name, these.name) == ("a", "b", "gap, these 2 tasks")
    assert these.value == pytest.approx(0.025)
    assert general.high - general.low > these.high - these.low
    assert groups(table)[0] == (0.9, 0.01, 5)
