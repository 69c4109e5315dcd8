"""Grids of runs under kills and races: every row once, nobody left behind, one line that says what to do."""

import json
import signal

import pytest
from small_tree import wait_for

from experiments.config import load_grid
from experiments.table import ResultsTable

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]

GRID = """
many: {task: digits, optimizer: sgd, steps: 1000, seeds: 0-7, learning_rate: 0.05, method: full}
"""


@pytest.fixture
def sweep(tmp_path, root, commands):
    """A function that starts the grid on its table, and that table."""
    (tmp_path / "many.yaml").write_text(GRID)
    table = ResultsTable(tmp_path / "results", "digits")

    def start(*options):
        where = [tmp_path / "many.yaml", "--results", table.path.parent, "--runs-per-job", 1]
        return commands.start(root, "-m", "experiments", "run", *where, *options, cwd=tmp_path)

    start.table, start.ids = table, {run.id for run in load_grid(tmp_path / "many.yaml")["many"]}
    return start


def working(commands):
    """The processes that train, told from their driver and from joblib's tracker of shared memory."""
    return [p for p in commands.alive() if "joblib.externals.loky.backend.popen_loky_posix" in p.cmdline()]


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_drivers_workers_end_with_it_and_its_rows_stay(sweep, commands, by):
    driver = sweep("--jobs", 2)
    wait_for(lambda: working(commands) and sweep.table.ids())
    driver.send_signal(by)
    driver.wait(10)
    wait_for(lambda: not commands.alive(), 20)
    before = sweep.table.ids()
    assert before < sweep.ids
    if by == signal.SIGTERM:
        return
    assert sweep("--jobs", 1).wait(120) == 0
    assert sweep.table.ids() == sweep.ids  # reading refuses an id that stands twice


def test_a_killed_worker_ends_in_one_line(sweep, commands):
    driver = sweep("--jobs", 2)
    wait_for(lambda: working(commands) and sweep.table.ids())
    working(commands)[0].kill()
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert "a worker was killed" in output
    assert "run the same command again for what is left" in output
    assert "Traceback" not in output
    assert sweep.table.ids() <= sweep.ids


def test_two_drivers_at_once_fill_one_table_with_each_row_once(sweep):
    drivers = [sweep("--jobs", 1), sweep("--jobs", 1)]
    assert [driver.wait(120) for driver in drivers] == [0, 0]
    assert sweep.table.ids() == sweep.ids


def test_a_dead_scheduler_ends_in_one_line(sweep, commands, root, tmp_path):
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    common = ["--scheduler-file", file, "--host", "127.0.0.1", "--no-dashboard"]
    scheduler = commands.start(root, "-m", "distributed.cli.dask_scheduler", *common, "--port", 0)
    wait_for(file.exists)
    commands.start(root, "-m", "distributed.cli.dask_worker", *common, "--nthreads", 1, "--no-nanny", cwd=tmp_path)
    address = wait_for(lambda: file.read_text() and json.loads(file.read_text())["address"])
    driver = sweep("--scheduler", address)
    wait_for(sweep.table.ids)
    scheduler.kill()
    output, _ = driver.communicate(timeout=90)
    assert driver.returncode == 1
    assert f"the scheduler at {address} is gone" in output
    assert "Traceback" not in output, output


def test_a_damaged_table_ends_every_command_in_one_line(sweep, commands, root, tmp_path):
    sweep.table.path.parent.mkdir()
    sweep.table.path.write_text("id,attack\n<<<<<<< HEAD\n")
    results = ["--results", sweep.table.path.parent]
    for arguments in (["run", tmp_path / "many.yaml"], ["rerun", "0" * 12]):
        process = commands.start(root, "-m", "experiments", *arguments, *results, cwd=tmp_path)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert f"{sweep.table.path}:2: two versions were merged" in output.replace("\n", "")
        assert "Traceback" not in output
