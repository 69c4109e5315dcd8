"""Make each mistake of mutants.yaml in a copy of the tree and see which tests notice; write results.csv."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from evidence.artifacts import write_atomically

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]


def load(root: Path = ROOT) -> list[dict]:
    """The mistakes, each of which can be made: its old text stands once in its file."""
    mutants = yaml.safe_load((FOLDER / "mutants.yaml").read_text())
    for mutant in mutants:
        found = (root / mutant["file"]).read_text().count(mutant["old"])
        if found != 1:
            raise ValueError(f"old must stand once in {mutant['file']}; {mutant['old']!r} stands there {found} times")
    return mutants


def copy_tree(target: Path) -> None:
    """Copy the files that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


def killer(tree: Path, tests: list[str]) -> str:
    """Name of the first test that fails in `tree`; empty if all pass.

    Raises
    ------
    RuntimeError
        If the tests could not be run.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    failed = re.search(r"^FAILED (\S+?)(\[| |$)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}")
    return failed[1]


def main() -> None:
    """Try all, print and write what noticed each; exit with 1 if one was not, or by a test that fails anyway."""
    mutants, rows = load(), []
    with tempfile.TemporaryDirectory(prefix="mutants.") as folder:
        tree = Path(folder)
        copy_tree(tree)
        for number, mutant in enumerate(mutants, 1):
            path = tree / mutant["file"]
            whole = path.read_text()
            path.write_text(whole.replace(mutant["old"], mutant["new"]))
            by = killer(tree, mutant["tests"])
            path.write_text(whole)
            if by and killer(tree, [by]):
                sys.exit(f"{by} fails without the mistake too")
            print(f"{number} of {len(mutants)}: {mutant['mistake']}: {by or 'SURVIVED'}", flush=True)
            rows.append((mutant["mistake"], mutant["file"], by))
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([("mistake", "file", "noticed by"), *rows])
    write_atomically(FOLDER / "results.csv", stream.getvalue())
    killed = sum(bool(by) for *_, by in rows)
    print(f"{killed} of {len(rows)} mistakes noticed")
    sys.exit(killed < len(rows))


if __name__ == "__main__":
    main()
