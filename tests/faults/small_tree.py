"""A small tree, copied from this one, whose commands run as processes of their own and are killed as such."""

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest
import waiting

PACKAGES = ("lorantk", "evidence", "experiments", "checks", "benchmarks")
CHAPTER = """---
kernelspec: {{display_name: Python 3, language: python, name: python3}}
---
# Chapter {name}

```{{code-cell}} ipython3
:tags: [parameters]
seed = 0
rank = 2
```

```{{code-cell}} ipython3
import os, pathlib, time
pathlib.Path(os.environ["GATE"], "{name}.started").touch()
while pathlib.Path(os.environ["GATE"], "closed").exists():
    time.sleep(0.05)
```

```{{code-cell}} ipython3
import itertools
import torch
from evidence.claims import Claim, Evidence
from evidence.effects import Effect
from evidence.figures import save, subplots
from evidence.findings import Finding, Member
from evidence.routes import measure
from evidence.statements import FINDINGS, HALVES, SOURCES
```

```{{code-cell}} ipython3
x = torch.randn(50, 50, generator=torch.Generator().manual_seed(seed)).double()
values = torch.linalg.svdvals(x)[: 2 * rank]
fig, ax = subplots()
ax.plot(values)
save(fig, "{name}-figure", {{"value": values.tolist()}}, alt="Singular values, falling.")
```

```{{code-cell}} ipython3
first = Evidence("largest", measure(torch.linalg.matrix_norm, x, 2), 0, 100, "it is larger")
second = Evidence("norm", measure(torch.Tensor.norm, x), 0, 100, "it is larger")
Claim("{claim}", [first, second], "largest").save()
for id, source in itertools.product({findings}, SOURCES):
    effect, margin = Effect("e", 1, 0.5, 2, 5), 0.05
    found = [Member(id, half, source, "s", effect, margin, outcome="supported") for half in HALVES[id]]
    Finding(id, source, found, "{name}-figure", "make book").save()
```
"""


@pytest.fixture(scope="session")
def good(tmp_path_factory, root):
    """A small tree whose book is made, rendered and committed as its reference; to be copied."""
    tree = make_tree(root, tmp_path_factory.mktemp("good") / "tree")
    status, output = Commands().run(tree, "--update-reference")
    assert status == 0, output
    return tree


@pytest.fixture
def tree(tmp_path, good):
    return shutil.copytree(good, tmp_path / "tree")


def make_tree(root, target):
    """A copy of the project's code with two tiny chapters in place of its own."""
    no_output = shutil.ignore_patterns("__pycache__", "results", "published")
    for package in PACKAGES:
        shutil.copytree(root / package, target / package, ignore=no_output)
    (target / "book").mkdir()
    for path in (root / "book").glob("*.py"):
        shutil.copy(path, target / "book")
    (target / "book" / "claims.template.md").write_text("# Claims\n\n{{ claims }}\n\n{{ findings }}\n")
    shutil.copy(root / "constraints.txt", target)
    (target / "notebooks").mkdir()
    for name, claim, findings in (("alpha", "eq-1", "FINDINGS"), ("beta", "eq-2", "[]")):
        number = {"alpha": "01", "beta": "02"}[name]
        text = CHAPTER.format(name=name, claim=claim, findings=findings)
        (target / "notebooks" / f"{number}-{name}.md").write_text(text)
    (target / "README.md").write_text("<!-- results:start --><!-- results:end -->\n")
    (target / "_config.yml").write_text(
        "title: Small\nexecute: {execute_notebooks: 'off'}\nonly_build_toc_files: true\n"
        "sphinx: {config: {html_theme_options: {}}}\n"
    )
    (target / "book" / "_toc.yml").write_text(
        "format: jb-book\nroot: index\n"
        "chapters: [{file: claims}, {file: notebooks/01-alpha}, {file: notebooks/02-beta}]\n"
    )
    (target / "book" / "index.md").write_text("# Small\n")
    (target / "gate").mkdir()
    return target


class Commands:
    """Starts this project's commands in a tree; knows all processes that came of them, by a mark in the environment."""

    def __init__(self):
        self.mark = uuid.uuid4().hex

    def start(self, tree, *arguments, cwd=None, **environment):
        variables = {"PYTHONPATH": str(tree), "GATE": str(tree / "gate"), "FAULTS_MARK": self.mark, "COLUMNS": "400"}
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=cwd or tree,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | variables | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def regenerate(self, tree, *arguments, **options):
        return self.start(tree, tree / "book" / "regenerate.py", *arguments, **options)

    def run(self, tree, *arguments, **options):
        """Exit status and what was printed."""
        process = self.regenerate(tree, *arguments, **options)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def alive(self):
        """Processes of ours that live, apart from joblib's trackers of shared memory, which follow their driver."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("FAULTS_MARK") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


@pytest.fixture
def commands():
    ours = Commands()
    yield ours
    for process in ours.alive():
        process.kill()


def wait_for(condition, seconds=120):
    """`waiting.wait_for` with the patience that whole commands need."""
    return waiting.wait_for(condition, seconds)


def contents(folder):
    """Every file of a folder and what is in it."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}
