"""Numbers that the chapters say in words, held against the recorded ones of tests/reference."""

from pathlib import Path

import numpy as np
import pandas as pd

from experiments import published
from experiments.data import recorded

ROOT = Path(__file__).resolve().parents[2]


def numbers(figure):
    """The recorded numbers of a figure; "null" is a word."""
    path = ROOT / "tests" / "reference" / "figures" / f"{figure}.csv"
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def says(chapter, words):
    """Whether the chapter still says this, its lines joined and its strings in code too."""
    (source,) = (ROOT / "notebooks").glob(f"{chapter:02}-*.md")
    return words in " ".join(source.read_text().replace('"\n    "', "").split())


def within(values, low, high):
    return bool(((np.asarray(values) >= low) & (np.asarray(values) <= high)).all())


def test_chapter_2_what_the_printed_sum_does():
    sums = numbers("two-forms-of-sigma")
    assert says(2, "from tens to hundreds. The sum times v over n stays near one")
    assert within(sums.printed_sum, 20, 999)
    assert within(sums.average, 0.95, 1.05)


def test_chapter_3_three_layers_are_less_random_than_one():
    spread = numbers("lora-spread").query("arm != 'one layer' and arm != 'full'")
    assert says(3, "about 40 % lower for three")
    assert within(spread.groupby("width").apply(lambda g: (g.spread / (2 / g["rank"]) ** 0.5).mean()), 0.55, 0.65)


def test_chapter_4_how_far_below_its_limit_the_supremum_is():
    ideal = numbers("ideal-rank")
    assert says(4, "by 10 to 20 percent here")
    assert within(1 - ideal.supremum / ((1 + (10 / ideal.width) ** 0.5) ** 2 - 1), 0.1, 0.2)


def test_chapter_7_the_entropy_of_a_square_A():
    entropy = numbers("entropy-of-a").groupby("rank").normalised.mean()
    assert says(7, "half a nat below at")
    assert within(np.log(entropy.index[-1]) - entropy.iloc[-1], 0.45, 0.55)


def test_chapter_8_inner_products_and_cosines():
    means = numbers("alignment").groupby(["attack", "rank"])[["cosine", "cosine_equal", "batch"]].mean()
    higher = means.query("rank > 1")
    assert says(8, "5 to 14 percent smaller in size from rank 2 on")
    assert within(1 - higher.cosine, 0.045, 0.145)
    assert says(
        8,
        "by at most a sixth, and by no more than two percent from rank 2 on where all layers share one variance",
    )
    assert within(means.cosine, 5 / 6, 7 / 6)
    assert within(higher.cosine_equal, 0.98, 1.02)
    assert says(8, "At the lowest ranks those with the mean clean gradient (right) are larger in size")
    assert within(means.query("rank <= 2").batch, 1.1, np.inf)


def test_chapter_8_room_and_a_null_trigger():
    room = numbers("search-space")
    ratio = room.groupby(["layers", "rank"]).ratio.mean()
    assert says(8, "in the last layer it is 0 up to rank 4, then grows")
    assert within(ratio["last"].loc[:4], 0, 1e-6)
    assert within(ratio["last"].loc[8:].diff().dropna(), 0, 1)
    assert says(8, "passes one where layers are reweighted")
    assert (ratio["all"].loc[4:] > 1).all()
    gain = numbers("null-trigger-training").query("step == 64").groupby("trigger").gain.mean()
    assert says(8, "about two thirds of a random one")
    assert within(gain["null"] / gain["random"], 0.58, 0.75)


def test_chapter_9_what_freezing_A_takes_off_the_drift():
    drift = numbers("drift-with-a-frozen").pivot_table(index="width", columns="arm", values="drift")
    assert says(9, "it moves some five (rank 1) to twenty (rank 16) times less")
    assert within(drift["rank 1"] / drift["A frozen, rank 1"], 3.5, 7)
    assert within(drift["rank 16"] / drift["A frozen, rank 16"], 11, 23)


def test_chapter_11_what_one_rank_does_to_a_trend():
    sweeps = published.accuracy_sweeps(published.printed_tasks(recorded("published/figures")))
    name = "untargeted_by_rank"
    fewer = sweeps | {name: sweeps[name][sweeps[name]["rank"] < 512]}
    trends = [published.rank_effects(each)["finding-2", "flips: gain over the ranks"][0] for each in (sweeps, fewer)]
    assert says(11, ".064 (.006 to .122) with it and .020 (-.014 to .054) without")
    assert [round(e.value, 3) for e in trends] == [0.064, 0.02]
    assert [(round(e.low, 3), round(e.high, 3)) for e in trends] == [(0.006, 0.122), (-0.014, 0.054)]


def test_chapter_11_what_shared_seeds_would_leave_of_a_backdoor():
    sweeps = published.accuracy_sweeps(published.printed_tasks(recorded("published/figures")))
    found = published.method_effects(sweeps, published.printed_tasks(recorded("published/seeds")))
    gap = found["finding-1", "backdoor: LoRA − FF, triggered"][1].value
    rates = sweeps["backdoor_by_rate"]
    arms = rates[rates.task == "QNLI"].groupby("method")[["mean", "std"]].mean()
    error = {"shared": (arms["std"] ** 2 / 5).sum() ** 0.5}
    squares = rates[rates.task == "QNLI"].groupby("method")["std"].apply(lambda std: (std**2).sum() / len(std) ** 2)
    error["apart"] = (squares / 5).sum() ** 0.5
    assert says(11, "may be nearer to three standard errors than to five")
    assert within(gap / error["shared"], 2.5, 3.5)
    assert within(gap / error["apart"], 4.5, 6)


def test_chapter_12_how_low_a_learning_rate():
    frontier = numbers("digits-frontier").query("optimizer == 'AdamW' and attack == 'harm, 150 flips' and admissible")
    ends = frontier.sort_values("learning_rate").groupby("arm")[["learning_rate", "harm"]].agg(["first", "last"])
    assert says(12, "did not tell .0003 from .001 in full fine-tuning, nor .001 from .01 in LoRA of rank 8")
    assert ends.learning_rate.loc["full"].tolist() == [0.0003, 0.001]
    assert ends.learning_rate.loc["LoRA, r = 8"].tolist() == [0.001, 0.01]
    assert says(12, "was .07 at the lower end of both, and .16 and .25 at the upper")
    assert within(ends.harm["first"][["full", "LoRA, r = 8"]], 0.065, 0.075)
    assert within(ends.harm["last"][["full", "LoRA, r = 8"]] - [0.16, 0.25], -5e-3, 5e-3)
    assert says(12, "at its lowest such rate it lost .07 too")
    assert within(ends.harm["first"]["head"], 0.065, 0.075)


def test_chapter_14_memory_beside_what_must_be_held():
    memory = numbers("growth-of-memory")
    assert says(14, "the peak measured above is two to ten times that")
    assert within(memory.bytes / memory.held_bytes, 1.75, 10)
