"""Which of our own runs stand behind each figure, averaged over seeds: arms by rank, poison rate, variance and budget.

Rows come from `runs.harms`. `poison_rates` names the poison rate of each attack, {"untargeted": 0.3, "backdoor": 0.02};
tables of means are those of `runs.summary`, with attacks and optimizers named as the figures print them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from evidence.effects import Effect

from .runs import at_rate, by_seed, compare, effects_of_findings, harms, summary, times_n

ARMS = {"full": "full", "head": "head", 1.0: "LoRA, r = 1", 8.0: "LoRA, r = 8", 64.0: "LoRA, r = 64"}
"""Method, or rank of LoRA -> name of the arm, in the order of legends."""

KINDS = {
    "LoRA": {"method": "lora", "variance": "peft", "scaling": "1"},
    "matched": {"method": "matched"},
    "isotropic": {"method": "lora", "variance": "1/r"},
}
"""Arms that tell a small step from low rank -> the fields that name their runs, beside the rank."""

SCALINGS = {"1": "α = r", "2": "α = 2r", "8/r": "α = 8", "4/sqrt(r)": "4/√r"}
"""Scaling as recorded -> the rule in PEFT's terms."""

WORDS = {
    "sgd": "SGD",
    "adamw": "AdamW",
    "untargeted": "flips",
    "backdoor": "backdoor",
    "spam": "mail",
    "reuters": "newswire",
}
"""Value of a column of runs -> what effects and figures call it."""

ATTACKS = {"untargeted": "flips", "backdoor": "triggers"}
"""Attack -> what there is a share of."""

PoisonRates = Mapping[str, float]


def chosen_runs(runs: pd.DataFrame, rates: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Harms at the learning rates that `rule` of `runs.at_rate` chooses: SGD before AdamW, flips before backdoors."""
    order = ["attack", "optimizer", "poison_rate", "rank", "steps"]
    return harms(at_rate(runs, rates, rule)).sort_values(order, ascending=[False, False, True, True, True])


def on_tasks(tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], rule: str) -> pd.DataFrame:
    """Harms on several tasks, with a column "task"; `tables` holds runs and learning rates by task, `rule` chooses."""
    return pd.concat([harms(at_rate(*both, rule)).assign(task=task) for task, both in tables.items()])


def with_scaling_1(attacked: pd.DataFrame, steps: int) -> pd.DataFrame:
    """The rows after that many steps whose scaling, if they have one, is 1."""
    return attacked[(attacked.steps == steps) & attacked.scaling.isin(["1", np.nan])]


def at_poison_rates(attacked: pd.DataFrame, poison_rates: PoisonRates) -> pd.DataFrame:
    """The rows of each attack at its poison rate."""
    return attacked[attacked.poison_rate == attacked.attack.map(poison_rates)]


def learning_rates(rates: pd.DataFrame) -> pd.DataFrame:
    """The learning rate of each method and optimizer, LoRA's being that of all its ranks."""
    methods = rates[(rates.method != "lora") | rates["rank"].isna()]
    return methods[["method", "optimizer", "learning_rate", "validation_accuracy", "standard_error", "runs"]]


def peft(attacked: pd.DataFrame) -> pd.Series:
    """Whether a row is LoRA's with PEFT's variance."""
    return (attacked.method == "lora") & (attacked.variance == "peft")


def printed(attacked: pd.DataFrame, poison_rates: PoisonRates) -> pd.DataFrame:
    """The rows with attack and optimizer named for a figure, such as "harm, 30% flips" and "SGD"."""
    attacks = {attack: f"harm, {share:.0%} {ATTACKS[attack]}" for attack, share in poison_rates.items()}
    return attacked.replace({"attack": attacks, "optimizer": WORDS})


def named_arms(attacked: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column "arm", of `ARMS`."""
    return attacked.assign(arm=attacked["rank"].where(attacked.method == "lora", attacked.method).map(ARMS))


def rank_curves(usual: pd.DataFrame, poison_rates: PoisonRates) -> pd.DataFrame:
    """Mean harm by attack, optimizer, method and rank; levels without a rank stand at LoRA's lowest and highest."""
    lora, levels = usual[peft(usual)], usual[usual.method.isin(["full", "head"])]
    ends = [levels.assign(rank=r) for r in (lora["rank"].min(), lora["rank"].max())]
    return summary(printed(pd.concat([*ends, lora]), poison_rates), ["attack", "optimizer", "method", "rank"])


def poison_curves(attacked: pd.DataFrame, poison_rates: PoisonRates) -> pd.DataFrame:
    """Mean attack success by optimizer, arm and poison rate of the backdoor."""
    levels = attacked.method.isin(["full", "head"])
    lora = peft(attacked) & attacked["rank"].isin(ARMS)
    rows = named_arms(attacked[(attacked.attack == "backdoor") & (levels | lora)])
    found = summary(printed(rows, poison_rates), ["attack", "optimizer", "arm", "poison_rate"])
    return found.assign(attack="attack success")


def variance_curves(
    one: pd.DataFrame, own: pd.DataFrame, poison_rates: PoisonRates, *, rank: int, steps: int
) -> pd.DataFrame:
    """Mean harm of LoRA with s = 1 by attack, optimizer and k: at one learning rate and at each arm's own.

    Parameters
    ----------
    one, own : DataFrame
        Of `chosen_runs` by the rules "shared" and "selected"; told apart in the column "rate".
    """
    both = pd.concat([one.assign(rate="one rate"), own.assign(rate="a rate each")])
    both = both.sort_values(["attack", "optimizer"], ascending=False, kind="stable")
    lora = both[(both.method == "lora") & (both["rank"] == rank) & (both.scaling == "1") & (both.steps == steps)]
    lora = at_poison_rates(lora, poison_rates).assign(k=lambda rows: times_n(rows.variance))
    lora = lora.dropna(subset="k").sort_values("k", kind="stable")
    return summary(printed(lora, poison_rates), ["attack", "optimizer", "rate", "k"])


def scaling_curves(chosen: pd.DataFrame, poison_rates: PoisonRates, steps: int) -> pd.DataFrame:
    """Mean harm of LoRA at ranks 1 and 64 ("arm") by attack, optimizer and rule for the scaling (`SCALINGS`)."""
    lora = chosen[peft(chosen) & chosen["rank"].isin([1, 64]) & (chosen.steps == steps)]
    lora = at_poison_rates(lora, poison_rates)
    lora = lora.assign(rule=lora.scaling.map(SCALINGS), arm="r = " + lora["rank"].astype(int).astype(str))
    rows = printed(lora.sort_values("rule", kind="stable"), poison_rates)
    return summary(rows, ["attack", "optimizer", "arm", "rule"])


def over_budgets(chosen: pd.DataFrame, poison_rates: PoisonRates) -> pd.DataFrame:
    """Rows of full fine-tuning and of LoRA with s = 1 at ranks 1 and 64, each with its "arm", fewest steps first."""
    lora = peft(chosen) & (chosen.scaling == "1") & chosen["rank"].isin([1, 64])
    rows = at_poison_rates(chosen[(chosen.method == "full") | lora], poison_rates)
    return named_arms(rows).sort_values("steps", kind="stable")


def budget_curves(longer: pd.DataFrame, poison_rates: PoisonRates) -> pd.DataFrame:
    """Mean harm of `over_budgets` by attack, optimizer, arm and steps."""
    return summary(printed(longer, poison_rates), ["attack", "optimizer", "arm", "steps"])


def flipped_labels_learned(longer: pd.DataFrame) -> pd.DataFrame:
    """Mean share of flipped labels that the rows of `over_budgets` learned: a row an optimizer and arm, by steps."""
    flipped = longer[longer.attack == "untargeted"].replace({"optimizer": WORDS})
    learned = summary(flipped, ["optimizer", "arm", "steps"], "poison_accuracy")
    return learned.pivot_table(index=["optimizer", "arm"], columns="steps", values="mean")


def text_rows(written: pd.DataFrame) -> pd.DataFrame:
    """Rows of `on_tasks` with the columns "arm" and "panel", such as "flips, mail", as the figure orders them."""
    rows = named_arms(written[written.method.isin(["full", "head"]) | peft(written)])
    rows = rows.replace({"optimizer": WORDS, "task": WORDS})
    rows = rows.assign(panel=rows.attack.map(ATTACKS) + ",\n" + rows.task)
    return rows.sort_values(["attack", "task", "optimizer"], ascending=[True, True, False])


def text_curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean harm of `text_rows` by panel, optimizer and arm."""
    return summary(rows, ["panel", "optimizer", "arm"])[["panel", "optimizer", "arm", "mean", "half", "runs"]]


def clean_accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean clean accuracy without attack of `text_rows`: a row a task and optimizer, a column an arm."""
    found = summary(rows, ["task", "optimizer", "arm"], "accuracy_without")
    return found.pivot_table(index=["task", "optimizer"], columns="arm", values="mean")[list(ARMS.values())]


def harm_spared(attacked: pd.DataFrame, kind: str, rank: int, name: str, **setting: object) -> Effect:
    """Harm of full fine-tuning minus that of an arm of `KINDS`, paired by seed, both at one learning rate.

    `setting` names attack, poison rate, optimizer and steps; the attack is the effect's unit too.
    """
    full = by_seed(attacked, "harm", method="full", **setting)
    other = by_seed(attacked, "harm", rank=rank, **KINDS[kind], **setting)
    return compare([full, other], [1, -1], name, str(setting["attack"]))


def spared_on_digits(at_full: pd.DataFrame, slow: pd.DataFrame, poison_rates: PoisonRates, steps: int) -> list[Effect]:
    """`harm_spared` under SGD for each attack, each of `KINDS` and ranks 1, 8 and 64.

    Parameters
    ----------
    at_full, slow : DataFrame
        Harms at full fine-tuning's learning rate, and at a lower one, at which the isotropic arm does not diverge.
    """
    return [
        harm_spared(
            slow if kind == "isotropic" else at_full, kind, rank, f"{kind}, r = {rank}",
            attack=attack, poison_rate=poison_rate, optimizer="sgd", steps=steps,
        )
        for attack, poison_rate in poison_rates.items()
        for kind in KINDS
        for rank in (1, 8, 64)
    ]  # fmt: skip


def spared_on_text(at_full: pd.DataFrame, poison_rates: PoisonRates, *, rank: int, steps: int) -> list[Effect]:
    """`harm_spared` under SGD for each task, attack and arm of `KINDS`; `at_full` is of `on_tasks`."""
    return [
        harm_spared(
            at_full, kind, rank, f"{WORDS[task]}: {kind}",
            task=task, attack=attack, poison_rate=poison_rate, optimizer="sgd", steps=steps,
        )
        for task in at_full.task.unique()
        for attack, poison_rate in poison_rates.items()
        for kind in KINDS
    ]  # fmt: skip


def spared_table(effects: Sequence[Effect]) -> pd.DataFrame:
    """Effects of `harm_spared` as rows: attack, arm, spared, low, high, pairs."""
    return pd.DataFrame(
        {"attack": e.unit, "arm": e.name, "spared": e.value, "low": e.low, "high": e.high, "pairs": e.n}
        for e in effects
    )


def effects_by_group(
    attacked: pd.DataFrame, by: Sequence[str], *, rank: int, tolerance: float
) -> list[dict[str, list[Effect]]]:
    """`runs.effects_of_findings` of each group of rows, labelled with its values of the columns in `by`."""
    return [
        effects_of_findings(rows, ", ".join(WORDS[str(key)] for key in keys), rank=rank, tolerance=tolerance)
        for keys, rows in attacked.groupby(list(by))
    ]


def examples(usual: pd.DataFrame, rank: int) -> pd.DataFrame:
    """The backdoored runs of seed 0 under AdamW, full and LoRA at `rank`, with the command that repeats each."""
    first = usual[(usual.attack == "backdoor") & (usual.seed == 0) & (usual.optimizer == "adamw")]
    first = first[(first.method == "full") | (peft(first) & (first["rank"] == rank))]
    first = first.assign(command="python -m experiments rerun " + first.id)
    return first[["method", "rank", "clean_accuracy", "attack_success", "command"]]
