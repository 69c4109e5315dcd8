"""Which runs stand behind each figure: hand-made runs whose means and differences are known."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from experiments import arms, run_figures

POISON_RATES = {"untargeted": 0.3, "backdoor": 0.02}
NONE = np.nan
CELLS = [
    ("full", NONE, NONE, NONE, 0.5),
    ("head", NONE, NONE, NONE, 0.1),
    ("matched", 8.0, NONE, NONE, 0.4),
    ("lora", 1.0, "peft", "1", 0.1),
    ("lora", 8.0, "peft", "1", 0.2),
    ("lora", 64.0, "peft", "1", 0.3),
    ("lora", 64.0, "peft", "2", 0.7),
    ("lora", 8.0, "0.01/n", "1", 0.25),
    ("lora", 8.0, "1/r", "1", 0.45),
]
"""method, rank, variance, scaling and harm, the same for each optimizer and attack."""


@pytest.fixture
def attacked() -> pd.DataFrame:
    """Runs of 3 seeds at the poison rates above and, for the backdoor, at 0.1, with twice the harm; also 100 steps."""
    settings = [("untargeted", 0.3, 1), ("backdoor", 0.02, 1), ("backdoor", 0.1, 2)]
    rows = [
        {"optimizer": optimizer, "attack": attack, "poison_rate": share, "steps": steps, "seed": seed,
         "method": method, "rank": rank, "variance": variance, "scaling": scaling,
         "harm": factor * harm * steps / 300, "accuracy_without": 0.9, "poison_accuracy": harm,
         "clean_accuracy": 0.9, "attack_success": harm}
        for optimizer, (attack, share, factor), steps, seed in itertools.product(
            ("sgd", "adamw"), settings, (300, 100), range(3))
        for method, rank, variance, scaling, harm in CELLS
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(id=table.index.astype(str))


@pytest.fixture
def usual(attacked: pd.DataFrame) -> pd.DataFrame:
    return arms.at_poison_rates(arms.with_scaling_1(attacked, 300), POISON_RATES)


def means(curves: pd.DataFrame, *by: str) -> dict[tuple[object, ...], float]:
    some = curves[curves.optimizer == "SGD"]
    return dict(zip(zip(*(some[column] for column in by), strict=True), some["mean"], strict=True))


def test_rows_are_those_of_the_setting(attacked: pd.DataFrame, usual: pd.DataFrame) -> None:
    assert set(usual.steps) == {300}
    assert set(zip(usual.attack, usual.poison_rate, strict=True)) == set(POISON_RATES.items())
    assert "2" not in set(usual.scaling)
    assert len(usual) == 2 * 2 * 3 * (len(CELLS) - 1)
    swapped = arms.at_poison_rates(attacked, {"untargeted": 0.02, "backdoor": 0.3})
    assert swapped.empty


def test_levels_without_a_rank_span_the_ranks(usual: pd.DataFrame) -> None:
    curves = arms.rank_curves(usual, POISON_RATES)
    found = means(curves[curves.attack == "harm, 2% triggers"], "method", "rank")
    levels = {("full", 1.0): 0.5, ("full", 64.0): 0.5, ("head", 1.0): 0.1, ("head", 64.0): 0.1}
    assert found == pytest.approx(levels | {("lora", 1.0): 0.1, ("lora", 8.0): 0.2, ("lora", 64.0): 0.3})
    assert len(run_figures.draw_ranks(curves).axes) == 4


def test_a_backdoor_is_followed_over_its_poison_rates(attacked: pd.DataFrame) -> None:
    curves = arms.poison_curves(arms.with_scaling_1(attacked, 300), POISON_RATES)
    found = means(curves, "arm", "poison_rate")
    assert set(arm for arm, _ in found) == set(arms.ARMS.values())
    assert (found["LoRA, r = 8", 0.02], found["LoRA, r = 8", 0.1]) == pytest.approx((0.2, 0.4))
    assert run_figures.draw_poison_rates(curves).axes[2 - 1].get_xlabel() == "share of poisoned samples"


def test_variances_are_told_apart_by_the_rule_for_the_learning_rate(attacked: pd.DataFrame) -> None:
    own = attacked.assign(harm=attacked.harm + 0.1)
    curves = arms.variance_curves(attacked, own, POISON_RATES, rank=8, steps=300)
    found = means(curves[curves.attack == "harm, 30% flips"], "rate", "k")
    expected = {("one rate", 0.01): 0.25, ("one rate", 1 / 3): 0.2}
    assert found == pytest.approx(expected | {("a rate each", k): harm + 0.1 for (_, k), harm in expected.items()})
    legend = run_figures.draw_variances(curves).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["one learning rate", "a learning rate each"]


def test_scalings_and_budgets(attacked: pd.DataFrame) -> None:
    scaled = arms.scaling_curves(attacked, POISON_RATES, 300)
    found = means(scaled[scaled.attack == "harm, 30% flips"], "arm", "rule")
    assert found == pytest.approx({("r = 1", "α = r"): 0.1, ("r = 64", "α = r"): 0.3, ("r = 64", "α = 2r"): 0.7})
    longer = arms.over_budgets(attacked, POISON_RATES)
    budgets = arms.budget_curves(longer, POISON_RATES)
    found = means(budgets[budgets.attack == "harm, 2% triggers"], "arm", "steps")
    assert found["full", 100] == pytest.approx(0.5 / 3)
    assert found["LoRA, r = 64", 300] == pytest.approx(0.3)
    learned = arms.flipped_labels_learned(longer)
    assert learned.loc[("AdamW", "LoRA, r = 1")].tolist() == pytest.approx([0.1, 0.1])
    assert [len(draw(rows).axes) for draw, rows in
            ((run_figures.draw_scalings, scaled), (run_figures.draw_budgets, budgets))] == [4, 4]  # fmt: skip


def test_spared_is_full_minus_the_arm_at_one_seed(usual: pd.DataFrame) -> None:
    noise = np.random.default_rng(0).normal(size=3)
    usual = usual.assign(harm=usual.harm + noise[usual.seed])  # seeds differ; pairs do not
    effect = arms.harm_spared(
        usual, "matched", 8, "matched", attack="untargeted", optimizer="sgd", poison_rate=0.3, steps=300
    )
    assert (effect.value, effect.low, effect.high) == pytest.approx((0.1, 0.1, 0.1))
    on_tasks = pd.concat([usual.assign(task="spam"), usual.assign(task="reuters", harm=2 * usual.harm)])
    spared = arms.spared_on_text(on_tasks, POISON_RATES, rank=8, steps=300)
    values = {(e.unit, e.name): e.value for e in spared}
    assert values["backdoor", "mail: LoRA"] == pytest.approx(0.3)
    assert values["untargeted", "newswire: isotropic"] == pytest.approx(0.1)
    assert len(values) == 2 * 2 * 3
    assert arms.spared_table(spared).pairs.tolist() == [3] * 12
    titles = [ax.get_title() for ax in run_figures.draw_spared(spared, POISON_RATES, 3.0, "harm spared").axes]
    assert titles == ["harm, 30% flips", "harm, 2% triggers"]


def test_isotropic_arms_are_taken_from_the_slow_runs(usual: pd.DataFrame) -> None:
    extra = [usual[usual["rank"] == 8].assign(rank=rank) for rank in (1.0, 64.0)]
    every = pd.concat([usual[usual["rank"].isna() | (usual["rank"] == 8)], *extra])
    found = arms.spared_on_digits(every, every.assign(harm=3 * every.harm), POISON_RATES, 300)
    values = {(e.unit, e.name): e.value for e in found}
    assert len(values) == 2 * 3 * 3
    assert values["backdoor", "matched, r = 64"] == pytest.approx(0.1)
    assert values["backdoor", "isotropic, r = 1"] == pytest.approx(3 * (0.5 - 0.45))


def test_text_is_shown_by_attack_and_task(usual: pd.DataFrame) -> None:
    both = pd.concat([usual.assign(task=task) for task in ("spam", "reuters")])
    rows = arms.text_rows(both)
    curves = arms.text_curves(rows)
    panels = ["triggers,\nmail", "triggers,\nnewswire", "flips,\nmail", "flips,\nnewswire"]
    assert curves.panel.unique().tolist() == panels
    assert means(curves, "panel", "arm")["flips,\nmail", "head"] == pytest.approx(0.1)
    assert arms.clean_accuracies(rows).to_numpy() == pytest.approx(np.full((4, 5), 0.9))
    assert len(run_figures.draw_text(curves).axes) == 8


def test_groups_are_labelled_by_their_values(usual: pd.DataFrame) -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, len(usual))
    found = arms.effects_by_group(
        usual.assign(harm=usual.harm + noise), ["optimizer", "attack"], rank=8, tolerance=0.01
    )
    names = [group["finding-1"][0].name.split(":")[0] for group in found]
    assert names == ["AdamW, backdoor", "AdamW, flips", "SGD, backdoor", "SGD, flips"]
    assert found[0]["finding-1"][0].value == pytest.approx(0.3, abs=0.03)


def test_an_example_names_its_command(usual: pd.DataFrame) -> None:
    rows = arms.examples(usual, 8)
    assert rows.method.tolist() == ["full", "lora"]
    assert rows.command.str.fullmatch(r"python -m experiments rerun \d+").all()


def test_learning_rates_are_those_over_all_ranks() -> None:
    fields = {"optimizer": "sgd", "validation_accuracy": 0.9, "standard_error": 0.01, "runs": 5}
    rates = pd.DataFrame(
        [{"method": m, "rank": r, "learning_rate": lr} | fields for m, r, lr in
         (("full", NONE, 0.1), ("lora", 1.0, 0.3), ("lora", NONE, 0.2))]
    )  # fmt: skip
    assert arms.learning_rates(rates).learning_rate.tolist() == [0.1, 0.2]
