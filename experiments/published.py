"""The paper's published means and standard deviations, read again: curves by sweep, and effects with intervals.

A sweep varies one thing, such as the poison rate, on every task. The sweeps are keyed by the column ``experiment`` of
the table ``published/figures``; an effect per task is followed by two over tasks (`SCOPES`). Statements ``finding-1``
to ``finding-5``; every effect points the way of its finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evidence.effects import Effect, contrast
from evidence.variance import LevelGap, gap_between_groups, variance_explained

from .contrasts import average_task, groups, method_cells, rest_cells, robustness, summarise, trend_cells
from .published_seeds import seed_cells

TASKS = {"sst2": "SST-2", "cola": "CoLA", "qnli": "QNLI", "qqp": "QQP"}
"""Task as recorded -> as printed."""

SCOPES = (*sorted(TASKS.values()), "these tasks", "in general")
"""What the effects of `contrasts.summarise` are about, in their order."""

NEAR_CLEAN = "backdoor_by_rate_clean_test"
"""The sweep that stands for no poison: a few poisoned samples in a thousand, tested on clean inputs."""

RUNS = 5
"""Seeds behind each published mean."""

PANELS = {
    "poison_rate": {
        "untargeted_by_rate": "flipped labels",
        "backdoor_by_rate": "backdoor, triggered",
        NEAR_CLEAN: "backdoor, clean",
    },
    "rank": {"untargeted_by_rank": "flipped labels", "backdoor_by_rank": "backdoor, triggered"},
    "variance_times_n": {"untargeted_by_variance": "flipped labels", "backdoor_by_variance": "backdoor, triggered"},
}
"""What is varied -> the sweeps that vary it, with the title of their panel."""

Effects = dict[tuple[str, str], list[Effect]]
"""(finding, title) -> one effect for each of `SCOPES`."""


def printed_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its tasks named as `TASKS` prints them."""
    return table.replace({"task": TASKS})


def accuracy_sweeps(figures: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows on accuracy of each sweep."""
    return {str(name): rows for name, rows in figures[figures.metric == "accuracy"].groupby("experiment")}


def size_in_words(figures: pd.DataFrame) -> str:
    """How many points of how many seeds each, from how many sweeps."""
    seeds = " or ".join(map(str, figures.seeds.unique()))
    return f"{len(figures)} points of {seeds} seeds each, from {figures.experiment.nunique()} sweeps"


def accuracy_curves(figures: pd.DataFrame, x: str) -> pd.DataFrame:
    """Accuracy against `x`, a key of `PANELS`.

    Returns
    -------
    DataFrame
        experiment (the panel's title), task, a column that tells lines apart, the column `x`, mean, std. Lines are
        methods over the poison rate ("method"), else runs with poison and without ("arm").
    """
    line = "method" if x == "poison_rate" else "arm"
    rows = figures[(figures.metric == "accuracy") & figures.experiment.isin(PANELS[x])]
    rows = rows.assign(arm=_with_poison(rows)).replace({"experiment": PANELS[x]})
    return rows[["experiment", "task", line, x, "mean", "std"]]


def metric_curves(figures: pd.DataFrame, x: str) -> pd.DataFrame:
    """Precision, recall and F1 against `x`, as `accuracy_curves`; lines are named "arm, metric" (column "line")."""
    rows = figures[(figures.metric != "accuracy") & figures.experiment.isin(PANELS[x])]
    arm = rows.method if x == "poison_rate" else _with_poison(rows)
    rows = rows.assign(line=arm + ", " + rows.metric).replace({"experiment": PANELS[x]})
    return rows[["experiment", "task", "line", x, "mean", "std"]]


def _with_poison(rows: pd.DataFrame) -> pd.Series:
    return (rows.poison_rate > 0).map({True: "with poison", False: "without"})


def effects_by_task(sweeps: Mapping[str, pd.DataFrame], seeds: pd.DataFrame) -> Effects:
    """What the sweeps of accuracy, and `seeds`, say of findings 1, 2, 4 and 5, on each task and over tasks."""
    return method_effects(sweeps, seeds) | rank_effects(sweeps) | lowest_rank_effects(sweeps) | variance_effects(sweeps)


def method_effects(sweeps: Mapping[str, pd.DataFrame], seeds: pd.DataFrame) -> Effects:
    """finding-1: accuracy that LoRA loses more than full fine-tuning under flips, and keeps more under a backdoor.

    Flips by seed (`published_seeds`); the backdoor's runs are not published, so its means count as independent.
    """
    near = sweeps[NEAR_CLEAN]
    flips, backdoor = seed_cells(seeds, near), method_cells(sweeps["backdoor_by_rate"], near)
    return {
        ("finding-1", "flips: extra loss of LoRA"): summarise(flips, "flips, extra loss of LoRA"),
        ("finding-1", "backdoor: LoRA − FF, triggered"): _reversed(summarise(backdoor, "backdoor, LoRA − FF")),
    }


def rank_effects(sweeps: Mapping[str, pd.DataFrame]) -> Effects:
    """finding-2: trend of the change that poison makes, over the whole range of ranks: up under flips, else down."""
    flips, backdoor = (trend_cells(sweeps[name], np.log2(sweeps[name]["rank"])) for name in PANELS["rank"])
    return {
        ("finding-2", "flips: gain over the ranks"): summarise(flips, "flips, gain over the ranks"),
        ("finding-2", "backdoor: loss over the ranks"): _reversed(summarise(backdoor, "backdoor, loss over the ranks")),
    }


def lowest_rank_effects(sweeps: Mapping[str, pd.DataFrame]) -> Effects:
    """finding-4: what rank 4 keeps under a backdoor, beside the average of the higher ranks and beside rank 8."""
    backdoor = sweeps["backdoor_by_rank"]
    pair = backdoor[backdoor["rank"] <= 8]
    others, next_one = (rest_cells(rows, rows["rank"] == 4) for rows in (backdoor, pair))
    return {
        ("finding-4", "backdoor: r = 4 − higher ranks"): summarise(others, "backdoor, r = 4 − higher ranks"),
        ("finding-4", "backdoor: r = 4 − r = 8"): summarise(next_one, "backdoor, r = 4 − r = 8"),
    }


def next_rank_effects(sweeps: Mapping[str, pd.DataFrame]) -> list[Effect]:
    """finding-4: what the lowest rank that performs keeps under a backdoor, beside the next one that does.

    A rank performs if its mean accuracy without poison is at least the best rank's minus that one's standard error;
    accuracies on validation data are not published. A task of which fewer than two ranks perform has no effect.
    """
    backdoor, parts = sweeps["backdoor_by_rank"], []
    for _, rows in backdoor.groupby("task"):
        clean = rows[rows.poison_rate == 0]
        best = clean.sort_values("mean").iloc[-1]
        ranks = sorted(clean[clean["mean"] >= best["mean"] - best["std"] / best.seeds**0.5]["rank"])[:2]
        if len(ranks) == 2:
            pair = rows[rows["rank"].isin(ranks)]
            parts.append(rest_cells(pair, pair["rank"] == ranks[0]))
    if len(parts) < 2:
        raise ValueError(f"sweeps must hold two tasks of which two ranks perform; got {len(parts)}")
    return summarise(pd.concat(parts), "backdoor, lowest rank that performs − next")


def variance_effects(sweeps: Mapping[str, pd.DataFrame]) -> Effects:
    """finding-5: trend of the change that poison makes on log10 k, over the whole range of k: down is positive."""
    effects: Effects = {}
    for attack, name in zip(("flips", "backdoor"), PANELS["variance_times_n"], strict=True):
        cells = trend_cells(sweeps[name], np.log10(sweeps[name].variance_times_n))
        title = f"{attack}, loss over the values of k"
        effects["finding-5", f"{attack}: loss over the values of k"] = _reversed(summarise(cells, title))
    return effects


def clean_cost_of_rank_4(sweeps: Mapping[str, pd.DataFrame]) -> list[Effect]:
    """Clean accuracy at higher ranks, averaged, minus that at rank 4: one effect for each of `SCOPES`."""
    backdoor = sweeps["backdoor_by_rank"]
    return _reversed(summarise(rest_cells(backdoor, backdoor["rank"] == 4, "clean"), "clean cost of r = 4"))


def _reversed(effects: Sequence[Effect]) -> list[Effect]:
    return [-effect for effect in effects]


def effects_table(effects: Effects) -> pd.DataFrame:
    """The effects as rows: finding, effect (its title), scope, value, low, high."""
    return pd.DataFrame(
        {"finding": finding, "effect": title, "scope": scope, "value": e.value, "low": e.low, "high": e.high}
        for (finding, title), found in effects.items()
        for scope, e in zip(SCOPES, found, strict=True)
    )


def initialisations(tables: pd.DataFrame) -> pd.DataFrame:
    """The rows of the paper's table 2 with a column "label": the initialisation and k."""
    rows = tables[tables.table == 2]
    return rows.assign(label=rows.init.str.replace("_", " ") + ", k = " + rows.variance_times_n.astype(str))


def effects_in_tables(tables: pd.DataFrame, runs: int = RUNS) -> list[Effect]:
    """Triggered accuracy in the paper's tables: LoRA - FF for each attack of table 1, k = 0.33 - k = 2 in table 2.

    `runs` is the number of seeds behind table 1: the paper says five, its published script trains three.
    """
    tables = tables.assign(seeds=RUNS)
    tables["seeds"] = tables.seeds.mask(tables.table == 1, runs)
    methods = tables[tables.table == 1].sort_values("method", ascending=False).groupby("attack")
    poisoned = tables[(tables.table == 2) & (tables.poison_rate > 0)].sort_values("variance_times_n")
    named = [(f"table 1, {attack}: LoRA − FF", rows) for attack, rows in methods]
    named += [(f"table 2, {init}: k = 0.33 − k = 2", rows.iloc[[0, -1]]) for init, rows in poisoned.groupby("init")]
    return [contrast(groups(rows), [1, -1], name, "accuracy") for name, rows in named]


def gaps_between_methods(sweeps: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """LoRA against full fine-tuning at each poison rate: attack, task, poison_rate and effect (an `Effect`).

    The clean level is taken off; the effect is LoRA's extra loss under flips, its extra accuracy under a backdoor.
    """
    near, rows = sweeps[NEAR_CLEAN], []
    for attack, sign, name in (("flips", 1, "untargeted_by_rate"), ("backdoor", -1, "backdoor_by_rate")):
        for (task, poison_rate), both in sweeps[name].groupby(["task", "poison_rate"]):
            cells = method_cells(both, near[near.task == task])
            label = f"{attack}, {task}, {poison_rate:g}"
            effect = contrast(groups(cells), (sign * cells.weight).tolist(), label, "accuracy")
            rows.append({"attack": attack, "task": task, "poison_rate": poison_rate, "effect": effect})
    return pd.DataFrame(rows)


def comparisons(gaps: pd.DataFrame, in_tables: Sequence[Effect], effects: Effects) -> list[Effect]:
    """All that is tested at once: `gaps`, the effects in tables, and the trends over rank and variance on each task."""
    trends = [
        effect.renamed(f"{finding}, {title}, {effect.name}")
        for (finding, title), found in effects.items()
        if finding != "finding-1"
        for effect in found[: len(TASKS)]
    ]
    return [*gaps.effect, *in_tables, *trends]


def kept_in_words(family: Sequence[Effect], kept: NDArray[np.bool_]) -> str:
    """Two lines on a family of comparisons: how many stay, how many of them under flips, and which point against."""
    excluding = sum(e.low > 0 or e.high < 0 for e in family)
    stay = [effect for effect, stays in zip(family, kept, strict=True) if stays]
    return (
        f"{len(family)} comparisons; {excluding} intervals exclude 0; "
        f"at a false discovery rate of 5 % {len(stay)} stay\n"
        f"differences between the methods under flips that stay: {sum(e.name.startswith('flips') for e in stay)}; "
        f"effects against a finding that stay: {', '.join(e.name for e in stay if e.value < 0) or 'none'}"
    )


def gaps_table(gaps: pd.DataFrame, kept: NDArray[np.bool_]) -> pd.DataFrame:
    """`gaps` with value, low and high in place of the effect, and whether it is kept: the first entries of `kept`."""
    ends = {name: [getattr(effect, name) for effect in gaps.effect] for name in ("value", "low", "high")}
    return gaps.drop(columns="effect").assign(**ends, kept=kept[: len(gaps)])


def shares_of_variance(sweeps: Mapping[str, pd.DataFrame]) -> dict[str, list[Effect]]:
    """finding-3: the share of the variance between runs that k explains, on each task and for the average task.

    Returns
    -------
    dict of "flips", "backdoor" to effects
    """
    shares = {}
    for attack, change in _changes_by_variance(sweeps).items():
        each = [variance_explained(groups(rows), str(task)) for task, rows in change.groupby("task")]
        average = groups(average_task(change, "variance_times_n"))
        shares[attack] = [*each, variance_explained(average, f"{attack}, share that k explains")]
    return shares


def gaps_of_variances(sweeps: Mapping[str, pd.DataFrame]) -> dict[str, LevelGap]:
    """finding-3: the largest gap between values of k in the change of accuracy, for the average task, by half."""
    return {
        half: gap_between_groups(
            groups(average_task(change, "variance_times_n")), "largest gap between values of k", "accuracy"
        )
        for half, change in _changes_by_variance(sweeps).items()
    }


def _changes_by_variance(sweeps: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Change of accuracy under each attack, by task and k."""
    names = zip(("flips", "backdoor"), PANELS["variance_times_n"], strict=True)
    return {half: robustness(sweeps[name], "variance_times_n") for half, name in names}


def shares_in_words(shares: Mapping[str, Sequence[Effect]]) -> pd.DataFrame:
    """`shares_of_variance` as text with p-values: a row a scope, a column an attack."""
    texts = {attack: [f"{e}, p = {e.p:.2f}" for e in found] for attack, found in shares.items()}
    return pd.DataFrame(texts, index=SCOPES[:-1])
