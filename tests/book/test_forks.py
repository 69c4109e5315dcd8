"""Kernels forked from one server: each starts as a kernel of its own would, and none outlives those it belongs to."""

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from waiting import wait_for

BOOK = Path(__file__).resolve().parents[2] / "book"
sys.path.insert(0, str(BOOK))

from chapters import find_chapters  # noqa: E402
from execution import run_trials  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only"),
]

HEAD = """---
kernelspec: {display_name: Python 3, language: python, name: python3}
---
"""
CELL = "```{code-cell} ipython3\n%s\n```\n"
STATE = """
import builtins, hashlib, json, os, random, sys
ours = sorted({name.partition(".")[0] for name in sys.modules} & {"lorantk", "evidence", "experiments", "execution"})
parent = open(f"/proc/{os.getppid()}/cmdline").read()
import matplotlib, numpy as np, pandas as pd, torch
from matplotlib import pyplot as plt
as_alone = {
    "path": sys.path,
    "backend": matplotlib.get_backend(),
    "rc": {key: str(value) for key, value in matplotlib.rcParams.items()},
    "pandas": {name: str(pd.get_option(name)).lower() for name in pd.core.config_init.cf._registered_options},
    "torch": [torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled()],
    "environment": {key: value for key, value in os.environ.items() if key != "JPY_PARENT_PID"},
    "cwd": os.path.basename(os.getcwd()),
    "left": [hasattr(builtins, "left"), "left" in globals(), "LEFT" in os.environ, "left" in sys.modules],
    "ours": ours,
}
random_states = [str(random.getstate()), str(np.random.get_state(legacy=True)), str(torch.get_rng_state().tolist())]
of_its_own = [hashlib.sha256(state.encode()).hexdigest() for state in random_states]
print(json.dumps([parent, as_alone, of_its_own]))
"""
LEAVE = """
builtins.left = left = sys.modules["left"] = os.environ["LEFT"] = "left"
random.seed(0), np.random.seed(0), torch.manual_seed(0)
pd.set_option("display.max_columns", 3), plt.rc("lines", linewidth=9), torch.set_default_dtype(torch.float64)
"""
WAIT = """
import os, pathlib, time
pathlib.Path("../pid.new").write_text(str(os.getpid()))
pathlib.Path("../pid.new").rename("../pid")
time.sleep(600)
"""
DRIVER = """
import pathlib, sys
sys.path.insert(0, {book!r})
import execution, forks
from chapters import find_chapters
forks.LIBRARIES = ("ipykernel.kernelapp", "torch")
root = pathlib.Path({root!r})
chapters = find_chapters(root)
for outcome in execution.run_trials(chapters, {{}}, lambda chapter: root / chapter.name, 1):
    print("ended:", outcome.chapter.name, outcome.traceback)
"""


def write(root, *chapters):
    """A tree whose chapters have these cells."""
    (root / "notebooks").mkdir()
    (root / "book" / "_build").mkdir(parents=True)
    (root / "constraints.txt").write_text("")
    for name, cells in zip(("01-first", "02-second"), chapters, strict=True):
        (root / "notebooks" / f"{name}.md").write_text(HEAD + "".join(CELL % cell for cell in cells))


def states(root, jobs):
    """What each of two chapters found when it began, and who had started its kernel."""
    chapters = find_chapters(root)
    outcomes = run_trials(chapters, {}, lambda chapter: root / f"{chapter.name}-{jobs}", jobs)
    assert [outcome.traceback for outcome in outcomes] == ["", ""]
    notebooks = [root / f"{c.name}-{jobs}" / "notebooks" / f"{c.name}.ipynb" for c in chapters]
    return [json.loads(nbformat.read(path, 4).cells[0].outputs[0].text) for path in notebooks]


def test_a_forked_kernel_starts_as_one_of_its_own_does(tmp_path):
    write(tmp_path, *[[STATE, LEAVE]] * 2)
    forked, alone = states(tmp_path, 1), states(tmp_path, 2)
    assert all("forks.py" in parent for parent, *_ in forked)
    assert not any("forks.py" in parent for parent, *_ in alone)
    for (_, found, _), (_, wanted, _) in zip(forked, alone, strict=True):
        assert found == wanted
    seen = [state for _, _, own in forked + alone for state in own]
    assert len(set(seen)) == len(seen) == 12


@pytest.fixture
def running(tmp_path):
    """A process that runs two chapters, one at a time, the first of which waits; its worker, kernel and server."""
    write(tmp_path, [WAIT], ["print('done')"])
    program = DRIVER.format(book=str(BOOK), root=str(tmp_path))
    driver = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    wait_for((tmp_path / "01-first" / "pid").exists, 60)
    children = psutil.Process(driver.pid).children(recursive=True)
    kernel = psutil.Process(int((tmp_path / "01-first" / "pid").read_text()))
    worker = next(p for p in children if "spawn_main" in " ".join(p.cmdline()))
    yield {"driver": driver, "worker": worker, "kernel": kernel, "server": kernel.parent()}
    for process in [driver, *children]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    driver.communicate()


def gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_a_kernel_ends_with_those_it_belongs_to(running, victim):
    if victim == "worker":
        running["driver"].send_signal(signal.SIGSTOP)  # it would end the rest
    running[victim].kill()
    wait_for(lambda: gone(running["kernel"]), 10)
    if victim == "driver":
        wait_for(lambda: gone(running["worker"]) and gone(running["server"]), 10)


@pytest.mark.parametrize(("victim", "missed"), [("kernel", [True, False]), ("server", [True, True])])
def test_what_is_killed_is_missed_and_the_other_chapter_has_its_turn(running, victim, missed):
    running[victim].kill()
    output, _ = running["driver"].communicate(timeout=120)
    ended = sorted(line for line in output.splitlines() if line.startswith("ended:"))
    assert ["its kernel was killed" in line for line in ended] == missed
    assert gone(running["kernel"])
