"""Grids become runs, their rates are chosen fairly, any recorded row can be repeated."""

import itertools
import re
from dataclasses import replace

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from evidence.artifacts import CorruptFile
from experiments import __main__ as command
from experiments.config import CELL, RESULTS, TASKS, Run, cell, load_grid, read_rates
from experiments.rates import check_rates, choose, write_rates
from experiments.table import ResultsTable

LORA = {"method": "lora", "rank": 2, "variance": "peft", "scaling": "1"}


def load(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
    return load_grid(path, tmp_path)


# Runs and grids


def test_each_list_of_a_block_is_an_axis(tmp_path):
    text = """
    first: {task: digits, steps: [10, 20], seeds: 3-5, learning_rate: 1e-2}
    second:
      task: digits
      optimizer: sgd
      attacks: [{attack: none}, {attack: backdoor, poison_rate: 0.02}]
      adapters: [{method: full}, {method: lora, rank: 8, variance: 1/n, scaling: "2"}]
    """
    grid = load(tmp_path, text)
    pairs = itertools.product((10, 20), (3, 4, 5))
    assert grid["first"] == [Run("digits", steps=steps, seed=seed, learning_rate=0.01) for steps, seed in pairs]
    kinds = [(run.attack, run.poison_rate, run.method, run.rank) for run in grid["second"]]
    assert kinds == [
        ("none", 0.0, "full", None),
        ("none", 0.0, "lora", 8),
        ("backdoor", 0.02, "full", None),
        ("backdoor", 0.02, "lora", 8),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must map the names of blocks"),
        ("block: 3", "must map the names of blocks"),
        ("block: {steps: 3}", "block 'block'.*must name its task"),
        ("block: {task: digits, rnk: 3}", r"block 'block'.*\['rnk'\]"),
        ("block: {task: mnist}", "task must be one of .*'digits'.*; got 'mnist'"),
        ("block: {task: digits, seeds: 5-3}", "seeds must be a range such as '0-19'.*got '5-3'"),
        ("block: {task: digits, seeds: [1, 2]}", "seeds must be a range"),
        ("block: {task: digits, attacks: backdoor}", "attacks must be a list of mappings"),
        ("block: {task: digits, seeds: 0-99999999}", "seeds must be at most 100000 numbers; got '0-99999999'"),
        ("block: {task: digits, seeds: 0-99999, steps: [1, 2]}", "must come to at most 100000 runs; got 200000"),
        ("block: {task: digits, batch_size: []}", r"batch_size must hold at least one value; got \[\]"),
        ("block: {task: digits, attacks: []}", "attacks must hold at least one value"),
        ("block: {task: digits, seed: -1}", "seed must be at least 0"),
        ("block: {task: digits, seed: 9223372036854775808}", r"seed must be below 2\*\*63"),
        ("block: {task: digits, batch_size: 0}", "batch_size must be at least 1"),
        ("block: {task: digits, method: lora, rank: 0, variance: peft, scaling: '1'}", "rank must be at least 1"),
        ("block: {task: digits, attack: backdoor}", "poison_rate must be 0 without an attack"),
        ("block: {task: digits, learning_rate: fast}", "learning_rate must be a real number; got 'fast'"),
        ("block: {task: digits, steps: 2.5}", "steps must be an int"),
        ("block: {task: digits, rank: 4}", "method 'full' takes no rank"),
        ("block: {task: digits, method: lora, rank: 4}", "method 'lora' needs rank, variance and scaling"),
        ("block: {task: digits, method: lora, rank: 4, variance: peft, scaling: 1}", "scaling must be a string"),
        ("block: {task: digits, method: lora, rank: 4, variance: peft, scaling: 1/n}", "scaling must be a number, 'al"),
        ("block: {task: digits, method: lora, rank: 4, variance: 1/m, scaling: '1'}", "variance must be .*got '1/m'"),
        ("block: {task: digits, method: matched, rank: 4, variance: peft, scaling: '1'}", "needs optimizer 'sgd'"),
        (
            "block: {task: digits, learning_rate: selected}",
            "no learning rate was selected for task digits, method full",
        ),
    ],
)
def test_a_bad_grid_says_what_is_wrong(tmp_path, text, message):
    with pytest.raises((ValueError, TypeError), match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("rule", "rates"), [("selected", (0.25, 0.125)), ("shared", (0.5, 0.125)), ("full", (0.125,) * 2)]
)
def test_a_rate_is_the_cells_own_or_the_methods_or_that_of_full_fine_tuning(tmp_path, rule, rates):
    wide = Run("digits", method="lora", rank=64, variance="1/r", scaling="1", optimizer="sgd")
    chosen = {
        cell(wide): 0.25,
        cell(wide, rank=None, variance="peft"): 0.5,
        cell(Run("digits", optimizer="sgd")): 0.125,
    }
    table = [dict(zip(CELL, values, strict=True)) | {"learning_rate": rate} for values, rate in chosen.items()]
    write_rates(pd.DataFrame(table), tmp_path / "rates-digits.csv")
    assert read_rates(tmp_path / "rates-digits.csv") == chosen
    point = {"task": "digits", "optimizer": "sgd", "rank": 64, "variance": "1/r", "scaling": "1", "learning_rate": rule}
    runs = load(tmp_path, {"block": point | {"method": ["lora", "matched"]}})["block"]
    assert runs == [replace(wide, learning_rate=rates[0]), replace(wide, method="matched", learning_rate=rates[1])]


def test_an_id_names_the_settings_and_nothing_else():
    run = Run("digits", learning_rate=1, **LORA)
    assert run.id == Run("digits", learning_rate=1.0, **LORA).id
    fields = {"seed": 1, "steps": 2, "variance": "1/n", "learning_rate": 0.5, "rank": 3, "optimizer": "sgd"}
    assert len({run.id, *(replace(run, **{name: value}).id for name, value in fields.items())}) == 1 + len(fields)


@pytest.mark.parametrize("fan_in", [8, 64, 256])
def test_isotropic_adapters_are_so_in_narrow_layers_too(fan_in):
    lora = Run("digits", method="lora", rank=64, variance="1/r", scaling="1").lora(fan_in)
    assert lora.rank == min(64, fan_in)
    assert lora.rank * lora.entry_variance(fan_in) == 1.0  # E[A^T A] = I


@pytest.mark.parametrize("path", sorted(command.GRIDS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_committed_grid_is_one(path):
    assert sum(map(len, load_grid(path).values())) > 0


@pytest.mark.parametrize("path", sorted(p for p in RESULTS.glob("*.csv") if p.stem in TASKS), ids=lambda p: p.stem)
def test_settings_of_a_committed_row_give_its_id(path):
    table = ResultsTable(path.parent, path.stem).read()
    assert table.id.is_unique
    settings = table[list(Run.__dataclass_fields__)].astype(object)
    for identifier, values in zip(table.id, settings.where(settings.notna(), None).to_dict("records"), strict=True):
        assert Run(**values).id == identifier


@pytest.mark.parametrize("text", ["", "task,method\n", "task,method\n<<<<<<< HEAD\n", "a,b\n1,2,3\n"])
def test_a_damaged_table_of_rates_is_named(tmp_path, text):
    (tmp_path / "rates-digits.csv").write_text(text)
    with pytest.raises(CorruptFile, match=r"rates-digits\.csv:1: .*learning.rate"):
        load(tmp_path, "block: {task: digits, learning_rate: selected}")


# Learning rates


def clean_runs(rates=(0.1, 0.2, 0.4), seeds=range(3), **kind):
    return [Run("digits", optimizer="sgd", learning_rate=rate, seed=seed, **kind) for rate in rates for seed in seeds]


def test_the_best_mean_wins_in_each_cell_and_of_equals_the_smallest_rate():
    accuracy = {("full", 0.1): (0.5, 0.7, 0.9), ("full", 0.2): (0.9, 0.5, 0.7), ("full", 0.4): (0.69, 0.7, 0.7)}
    accuracy |= {("lora", 0.1): (0.1, 0.1, 1.0), ("lora", 0.2): (0.4, 0.4, 0.4), ("lora", 0.4): (0.5, 0.5, 0.5)}
    runs = clean_runs() + clean_runs(**LORA)
    table = pd.DataFrame([vars(r) | {"validation_accuracy": accuracy[r.method, r.learning_rate][r.seed]} for r in runs])
    chosen = choose(table.sample(frac=1, random_state=0))
    assert list(chosen.method) == ["full", "lora", "lora"]
    assert list(chosen["rank"].fillna(0)) == [0, 0, 2]
    assert list(chosen.learning_rate) == [0.1, 0.4, 0.4]
    assert list(chosen.validation_accuracy) == [0.7, 0.5, 0.5]
    assert chosen.standard_error[0] == pytest.approx(0.2 / 3**0.5, abs=1e-6)
    assert chosen.at_edge.all()
    assert not choose(table[table.method == "full"].replace({"learning_rate": {0.4: 0.05}})).at_edge.any()
    table.loc[table.learning_rate == 0.4, "validation_accuracy"] = float("nan")  # diverged
    assert list(choose(table).learning_rate) == [0.1, 0.1, 0.1]


def test_the_rate_of_a_method_is_the_best_on_average_over_its_ranks():
    accuracy = {(1, 0.1): 0.9, (1, 0.2): 0.5, (2, 0.1): 0.3, (2, 0.2): 0.8}
    runs = [run for rank in (1, 2) for run in clean_runs((0.1, 0.2), **LORA | {"rank": rank})]
    runs += clean_runs((0.1, 0.2), **LORA | {"variance": "1/n"})
    table = pd.DataFrame([vars(r) | {"validation_accuracy": accuracy[r.rank, r.learning_rate]} for r in runs])
    table.loc[table.variance == "1/n", "validation_accuracy"] = 0.99  # of no account for PEFT's variance
    rates = choose(table)
    peft = rates[rates.variance == "peft"]
    assert dict(zip(peft["rank"].fillna(0), peft.learning_rate, strict=True)) == {0: 0.2, 1: 0.1, 2: 0.2}
    assert dict(zip(peft["rank"].fillna(0), peft.runs, strict=True)) == {0: 6, 1: 3, 2: 3}
    assert set(rates.variance) == {"peft", "1/n"}
    assert str(rates["rank"].dtype) == "Int64"


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (
            clean_runs() + clean_runs(rates=(0.1, 0.2), **LORA),
            r"method lora, .* lacks \(learning rate, seed\) \(0.4, 0\)",
        ),
        (clean_runs() + clean_runs(seeds=(0, 1), **LORA), r"method lora, .* lacks \(learning rate, seed\) \(0.1, 2\)"),
        ([*clean_runs(), Run("digits", optimizer="sgd", steps=7)], r"one budget; .* \(7, 64\), \(300, 64\)"),
        (clean_runs(attack="backdoor", poison_rate=0.1), "without an attack; got attack 'backdoor'"),
    ],
)
def test_rates_are_chosen_among_the_same_and_on_clean_data(runs, message):
    check_rates(clean_runs() + clean_runs(**LORA))
    with pytest.raises(ValueError, match=message):
        check_rates(runs)


# The command line


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call `python -m experiments` with its grids and results in tmp_path; one job at a time, in this process."""
    monkeypatch.setattr(command, "GRIDS", tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments):
        jobs = ["--jobs", "1"] if arguments[0] in ("run", "select") and "--jobs" not in arguments else []
        return CliRunner().invoke(command.app, [*arguments, *jobs, "--results", str(tmp_path)])

    return invoke


RATES = """
probe:
  task: digits
  optimizer: sgd
  steps: 2
  seeds: 0-1
  learning_rate: [0.01, 0.1]
  methods: [{method: full}, {method: head}]
"""
ATTACKED = """
clean: {task: digits, optimizer: sgd, steps: 2, learning_rate: selected}
attacked: {task: digits, optimizer: sgd, steps: 2, learning_rate: selected, attack: untargeted, poison_rate: 0.3}
"""


def test_rates_are_selected_once_and_then_used(tmp_path, call):
    (tmp_path / "rates-digits.yaml").write_text(RATES)
    (tmp_path / "attacked.yaml").write_text(ATTACKED)
    assert "no learning rate was selected" in call("run", "attacked").output
    assert "8 runs trained" in call("select", "digits").output
    assert "0 runs trained, 8 were there" in call("select", "digits").output
    rates = read_rates(tmp_path / "rates-digits.csv")
    assert len(rates) == 2
    table = ResultsTable(tmp_path, "digits").read()
    means = table[table.method == "full"].groupby("learning_rate").validation_accuracy.mean()
    attacked = load_grid(tmp_path / "attacked.yaml", tmp_path)["attacked"][0]
    assert attacked.learning_rate == means.idxmax()

    listed = call("list").output
    assert "attacked" in listed
    dry = call("run", "attacked", "--dry-run")
    assert [line.split("│")[1:4] for line in dry.output.splitlines() if "in all" in line] == [
        [" in all   ", " 2    ", " 1    "]
    ]
    assert "1 runs trained, 0 were there" in call("run", "attacked", "--block", "attacked").output
    assert "0 runs trained, 2 were there" in call("run", "attacked").output


def test_any_row_can_be_repeated_and_a_changed_one_is_noticed(tmp_path, call):
    lora = Run("digits", "backdoor", 0.1, optimizer="sgd", steps=2, **LORA)
    table = ResultsTable(tmp_path, "digits")
    table.append(command.execute([lora]))
    again = call("rerun", lora.id)
    assert again.exit_code == 0, again.output
    assert again.output.count("differs") == 0
    accuracy = table.read().clean_accuracy[0]
    table.path.write_text(table.path.read_text().replace(f",{accuracy},", f",{accuracy + 0.0041:.4f},", 1))
    changed = call("rerun", lora.id)
    assert changed.exit_code == 1
    assert changed.output.count("differs") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nowhere"), r"grid must be .*\(broken, damaged, good\); got 'nowhere'"),
        (("run", "good", "--block", "third"), "block must be among first, second; got third"),
        (("run", "broken"), "task must be one of"),
        (("run", "good", "--runs-per-job", "0"), "runs-per-job"),
        (("run", "good", "--scheduler", "here"), "scheduler must be .* tcp://HOST:PORT; got 'here'"),
        (("run", "good", "--jobs", "0"), "jobs must be at least 1, or -1"),
        (("run", "damaged"), "damaged.yaml must be YAML"),
        (("select", "digits"), "grid must be .*got 'rates-digits'"),
        (("rerun", "0123456789ab"), "ID must be that of a row .*got '0123456789ab'"),
    ],
)
def test_wrong_arguments_are_answered_with_what_is_allowed(tmp_path, call, arguments, message):
    (tmp_path / "good.yaml").write_text("{first: {task: digits}, second: {task: digits}}")
    (tmp_path / "broken.yaml").write_text("{first: {task: mnist}}")
    (tmp_path / "damaged.yaml").write_bytes(b"first: {task: [\xff")
    answer = call(*arguments)
    assert answer.exit_code == 2
    words = " ".join(answer.output.replace("│", " ").split())
    assert re.search(message, words), words
    assert not list(tmp_path.glob("*.csv"))


# The documentation


def test_examples_in_the_readme_are_what_the_code_takes(tmp_path, root):
    text = (root / "experiments" / "README.md").read_text()
    grids = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert [sum(map(len, load(tmp_path, grid).values())) for grid in grids] == [3 * 2 * 2 * 5, 4 * 2 * 3 * 5]
    (slurm,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(slurm, "slurm.py", "exec")
    named = re.findall(r"^    python -m experiments (\w+)", text, re.MULTILINE)
    assert set(named) == {info.name or info.callback.__name__ for info in command.app.registered_commands}
    headers = []
    for task in ("digits-exact", "digits"):
        ResultsTable(tmp_path, task).append(command.execute([Run(task, optimizer="sgd", steps=1)]))
        headers.append((tmp_path / f"{task}.csv").read_text().split("\n")[0].split(","))
    documented = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert documented == headers[0]
    assert [name for name in documented if name not in ("poisoned", "diverged")] == headers[1]
