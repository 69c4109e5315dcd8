"""Whatever dies in mid-grid, worker or driver, every configuration ends up in the table exactly once."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from waiting import wait_for

from experiments import schedule
from experiments.config import Run, load_grid
from experiments.schedule import execute, jobs, left, sweep
from experiments.table import ResultsTable

GRID = """
many:
  task: digits
  optimizer: sgd
  steps: 50
  seeds: 0-1
  learning_rate: [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.10]
  methods: [{method: full}, {method: lora, rank: 2, variance: peft, scaling: "1"}]
"""
SIZE = 2


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "many.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture
def runs(grid):
    return load_grid(grid)["many"]


@pytest.fixture
def started(tmp_path, root):
    """A function that starts `python -m MODULE *arguments`; what it started is killed in the end, by group."""
    processes = []
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    def start(module, *arguments):
        log = (tmp_path / f"{len(processes)}.log").open("w")
        command = [sys.executable, "-m", module, *map(str, arguments)]
        processes.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def cluster(tmp_path, started):
    """Address of a scheduler on loopback, and its two workers' processes by worker name."""
    distributed = pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    started(
        "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", file, "--no-dashboard"
    )
    wait_for(file.exists, 90)
    arguments = ["--scheduler-file", file, "--host", "127.0.0.1", "--nthreads", 1, "--no-nanny", "--no-dashboard"]
    workers = {
        name: started("distributed.cli.dask_worker", *arguments, "--name", name, "--local-directory", tmp_path / name)
        for name in ("doomed", "survivor")
    }
    with distributed.Client(scheduler_file=str(file)) as client:
        client.wait_for_workers(2, timeout=90)
        yield client, workers


def assert_each_exactly_once(results, runs):
    ids = list(ResultsTable(results, "digits").read().id)
    assert sorted(ids) == sorted(run.id for run in runs)


def test_jobs_hold_what_can_train_together_and_lose_nothing():
    adapters = {"method": "lora", "variance": "peft", "scaling": "1", "optimizer": "sgd"}
    every = [Run("digits", rank=rank, seed=seed, **adapters) for seed in range(7) for rank in (1, 2)]
    parts = jobs(every, 3)
    assert [len(part) for part in parts] == [3, 3, 3, 3, 1, 1]
    assert [part[-1].seed for part in parts] == [2, 2, 5, 5, 6, 6]  # a grid that stops early leaves whole seeds
    assert all(len({schedule.trainer("digits").together(run) for run in part}) == 1 for part in parts)
    assert sorted(run.id for part in parts for run in part) == sorted(run.id for run in every)


def test_checkpoints_of_one_network_stay_in_one_job():
    every = [Run("digits", steps=steps, seed=seed) for seed in range(5) for steps in (10, 20, 30)]
    for size, lengths in ((1, [3] * 5), (7, [6, 6, 3])):
        parts = jobs(every, size)
        assert [len(part) for part in parts] == lengths
        assert all(len(part) == 3 * len({run.seed for run in part}) for part in parts)


def test_a_rerun_trains_what_is_left_only(tmp_path, runs, monkeypatch):
    assert sweep(runs[:3], tmp_path, processes=1, size=SIZE) == 3
    trained = []
    monkeypatch.setattr(schedule, "execute", lambda job: trained.extend(job) or execute(job))
    assert [run.id for run in left(runs[:6] + runs[:6], tmp_path)] == [run.id for run in runs[3:6]]
    assert sweep(runs[:6] + runs[:6], tmp_path, processes=1, size=SIZE) == 3
    assert sorted(run.id for run in trained) == sorted(run.id for run in runs[3:6])
    assert_each_exactly_once(tmp_path, runs[:6])
    assert sweep(runs[:6], tmp_path, processes=1) == 0


def test_a_trainer_that_loses_a_run_is_caught(runs, monkeypatch):
    monkeypatch.setattr(schedule.trainer("digits"), "finetune", lambda job: [{"id": run.id} for run in job[1:]])
    with pytest.raises(RuntimeError, match="a row for each"):
        execute(runs[:2])


def test_without_the_extra_the_error_names_it(tmp_path, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"lorantk\[distributed\]"):
        sweep(runs, tmp_path, scheduler="tcp://127.0.0.1:1")
    assert not list(tmp_path.glob("*.csv"))


@pytest.mark.slow
def test_processes_of_this_machine_give_the_numbers_of_one_run_alone(tmp_path, runs):
    assert sweep(runs[:5], tmp_path, processes=2, size=SIZE) == 5
    assert_each_exactly_once(tmp_path, runs[:5])
    table = ResultsTable(tmp_path, "digits").read().set_index("id")
    alone = execute([runs[3]])[0]
    assert table.loc[runs[3].id, "clean_accuracy"] == alone["clean_accuracy"]


@pytest.mark.slow
def test_a_worker_killed_in_mid_grid_costs_no_run(tmp_path, runs, cluster, monkeypatch):
    client, workers = cluster
    append, held = ResultsTable.append, []

    def append_then_kill(table, rows):
        new = append(table, rows)
        if not held:
            names = {address: worker["name"] for address, worker in client.scheduler_info(-1)["workers"].items()}
            held.extend(
                key for address, keys in client.processing().items() if names[address] == "doomed" for key in keys
            )
            if held:
                workers["doomed"].kill()
        return new

    monkeypatch.setattr(ResultsTable, "append", append_then_kill)
    assert sweep(runs, tmp_path, scheduler=client.scheduler.address, size=SIZE) == len(runs)
    assert held
    assert workers["doomed"].wait() == -signal.SIGKILL
    assert workers["survivor"].poll() is None
    assert_each_exactly_once(tmp_path, runs)
    table = ResultsTable(tmp_path, "digits").read().set_index("id")
    for run in runs[::13]:
        assert table.loc[run.id, "clean_accuracy"] == execute([run])[0]["clean_accuracy"]


@pytest.mark.slow
def test_a_driver_killed_in_mid_grid_resumes(tmp_path, grid, runs, cluster, started):
    client, _ = cluster
    table = ResultsTable(tmp_path, "digits")
    options = ["--results", tmp_path, "--runs-per-job", SIZE, "--scheduler", client.scheduler.address]
    driver = started("experiments", "run", grid, *options)
    wait_for(table.ids, 90)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    before = table.ids()
    assert 0 < len(before) < len(runs)
    lines = [line for line in table.path.read_text().splitlines() if line[:12] in before]
    with table.path.open("a") as stream:
        stream.write(f"{runs[-1].id},none,0.0,fu")  # what a kill between two blocks of a write leaves
    assert sweep(runs, tmp_path, scheduler=client.scheduler.address, size=SIZE) == len(runs) - len(before)
    assert_each_exactly_once(tmp_path, runs)
    assert set(lines) <= set(table.path.read_text().splitlines())  # not trained again
