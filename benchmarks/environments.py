"""Where a contender runs: in this environment, or in one of a peer's own, installed below .venv-peers on first use."""

from __future__ import annotations

import subprocess
import sys
import venv
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TASKS = {"here": HERE / "tasks.py"}
TASKS |= {name: HERE / "peers" / f"{name}_tasks.py" for name in ("jax", "torch", "attribution")}
"""The tasks of each environment."""


class NotInstalled(Exception):
    """A peer whose environment cannot be made, with pip's reason."""


@cache
def interpreter(name: str) -> Path:
    """Python of an environment; makes it where it is missing or its requirements have changed.

    Raises
    ------
    NotInstalled
        If pip cannot install the requirements, with its last line.
    """
    if name == "here":
        return Path(sys.executable)
    directory, requirements = ROOT / ".venv-peers" / name, HERE / "peers" / f"{name}.txt"
    python, stamp = directory / "bin" / "python", directory / "installed.txt"
    if stamp.exists() and stamp.read_text() == requirements.read_text():
        return python
    venv.create(directory, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(requirements)]
    done = subprocess.run(pip, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise NotInstalled((done.stderr.strip() or "pip failed").splitlines()[-1])
    stamp.write_text(requirements.read_text())
    return python
