"""pyproject.toml, constraints.txt, environment.yml, the Makefile and what is installed describe one environment."""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

INSTALLED = ("book", "experiments", "distributed", "hf", "dev")


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(root):
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


def requirements(project):
    extras = project["optional-dependencies"]
    return [Requirement(r) for r in project["dependencies"] + [r for extra in extras.values() for r in extra]]


def test_every_requirement_is_pinned_to_a_version_it_allows(project, pins):
    wrong = [str(r) for r in requirements(project) if pins.get(canonicalize_name(r.name)) not in r.specifier]
    assert wrong == []


def test_what_is_installed_is_what_is_pinned(project, pins):
    optional = {Requirement(r).name for extra in ("lab", "glue") for r in project["optional-dependencies"][extra]}
    wrong = {}
    for r in requirements(project):
        try:
            installed = version(r.name).split("+")[0]
        except PackageNotFoundError:
            installed = None
        if installed != pins[canonicalize_name(r.name)] and not (installed is None and r.name in optional):
            wrong[r.name] = installed
    assert wrong == {}


def test_all_that_comes_along_is_pinned(pins):
    reached, left = set(), [Requirement(f"lorantk[{','.join(INSTALLED)}]")]
    while left:
        r = left.pop()
        key = canonicalize_name(r.name), frozenset(r.extras)
        if key in reached:
            continue
        reached.add(key)
        for needed in map(Requirement, requires(r.name) or []):
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ["", *r.extras]):
                left.append(needed)
    loose = {name for name, _ in reached} - pins.keys() - {"lorantk"}
    assert {name for name in loose if not re.match("nvidia-|cuda-|triton", name)} == set()  # those of torch for GPUs


def test_conda_and_make_install_the_same_extras_under_the_same_constraints(root):
    environment = yaml.safe_load((root / "environment.yml").read_text())
    python = next(d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python="))
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert python == "python=3.11"
    assert "-c constraints.txt" in pip
    extras = f".[{','.join(INSTALLED)}]"
    make = (root / "Makefile").read_text()
    assert f"EXTRAS := {','.join(INSTALLED)}\n" in make
    assert make.count("-c constraints.txt -e '.[$(EXTRAS)]'") == 1  # by pip, where uv finds nothing
    assert re.search(r"^INSTALL = .*uv pip install .*-c constraints.txt$", make, re.MULTILINE)
    assert f"-e {extras}" in pip


def test_python_and_jupyter_book_stay_within_their_bounds(project, pins):
    assert project["requires-python"] == ">=3.11"
    assert pins["jupyter-book"].startswith("1.")
    assert pins["torch"] == "2.13.0"


def test_every_imported_library_is_declared(root, project):
    names = {"sklearn": "scikit-learn", "mathjax": "django-static-mathjax", "yaml": "pyyaml", "sphinx": "jupyter-book"}
    names |= {"cycler": "matplotlib", "IPython": "ipykernel", "bs4": "beautifulsoup4"}
    declared = {canonicalize_name(r.name) for r in requirements(project)}
    folders = ("lorantk", "evidence", "book", "tests", "experiments", "checks", "benchmarks")
    modules = [path for folder in folders for path in root.glob(f"{folder}/*.py")] + [*root.glob("tests/*/*.py")]
    imported = set()
    for path in [*modules, *root.glob("notebooks/*.md")]:
        imported |= set(re.findall(r"^\s*(?:from|import) ([a-zA-Z_0-9]+)", path.read_text(), re.MULTILINE))
    own = {*folders, *(path.stem for path in modules)}
    assert {canonicalize_name(names.get(m, m)) for m in imported - own - sys.stdlib_module_names} <= declared
