"""What a chapter is: its notebook source, its parameters, and the content hash that says whether to run it again."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from evidence.artifacts import CorruptFile

PACKAGES = ("lorantk", "evidence", "experiments", "checks", "benchmarks")
"""Packages of the project, whose code a chapter's numbers depend on."""


@dataclass(frozen=True)
class Chapter:
    """One notebook of the project whose root directory is `root`; `name` is its stem, e.g. "03-kernel-of-lora"."""

    root: Path
    name: str

    @property
    def source(self) -> Path:
        return self.root / "notebooks" / f"{self.name}.md"

    @property
    def executed(self) -> Path:
        return self.root / "book" / "notebooks" / f"{self.name}.ipynb"

    def read(self) -> nbformat.NotebookNode:
        """The notebook as jupytext reads it, with cell ids that depend on its text only."""
        notebook = jupytext.read(self.source)
        for index, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{index}"
        return notebook

    def code(self) -> list[str]:
        """Sources of the code cells, all of which are Python.

        Raises
        ------
        CorruptFile
            If one is not.
        """
        sources = [cell.source for cell in self.read().cells if cell.cell_type == "code"]
        for source in sources:
            try:
                ast.parse(source)
            except SyntaxError as error:
                before = self.source.read_text().partition(source)[0]
                raise CorruptFile(self.source, before.count("\n") + (error.lineno or 1), f"{error.msg}") from error
        return sources

    def defaults(self) -> dict[str, Any]:
        """Values assigned in the cell tagged "parameters": literals, one per line."""
        for cell in self.read().cells:
            if "parameters" in cell.metadata.get("tags", []):
                statements = ast.parse(cell.source).body
                try:
                    return {s.targets[0].id: ast.literal_eval(s.value) for s in statements}  # type: ignore[attr-defined]
                except (AttributeError, ValueError) as error:
                    raise CorruptFile(self.source, 1, f"parameters must be literals, one a line: {error}") from error
        return {}

    def content_hash(self, parameters: dict[str, Any]) -> str:
        """Hash of all that the chapter's numbers depend on: text, parameters, package code, data read, versions."""
        cells = self.code()
        modules = imported_modules(self.root, cells)
        readers = [*cells, *(path.read_text() for path in modules)]
        tables = [path for path in data_files(self.root, readers) if path.exists()]  # reading an absent one will fail
        digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
        for path in [self.source, self.root / "constraints.txt", *modules, *tables]:
            digest.update(f"{path.relative_to(self.root).as_posix()}\n".encode() + path.read_bytes())
        return digest.hexdigest()

    def recorded(self) -> dict[str, Any]:
        """What the last good execution noted about itself: hash, seconds, files; empty if no notebook is there whole.

        "files" maps each file that it wrote below book/_static to its SHA-256.
        """
        try:
            noted = json.loads(self.executed.read_bytes())["metadata"]["lorantk"]
            return {"hash": noted["hash"], "seconds": noted["seconds"], "files": dict(noted["files"])}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}

    def damaged(self) -> list[Path]:
        """Files of the last execution that are no longer as it wrote them; the notebook if it is not whole."""
        if not self.executed.exists():
            return []
        recorded = self.recorded()
        if not recorded:
            return [self.executed]
        files = {self.root / "book" / "_static" / name: digest for name, digest in recorded["files"].items()}
        return [path for path, digest in files.items() if _file_hash(path) != digest]

    def is_current(self) -> bool:
        """Whether the executed notebook and all it wrote are there, whole, and belong to the present sources."""
        return self.recorded().get("hash") == self.content_hash(self.defaults()) and not self.damaged()


def _file_hash(path: Path) -> str | None:
    """SHA-256 of a file; None if there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def foreign_packages(root: Path) -> dict[str, str]:
    """Package -> where it would be imported from, for each of the project's packages that is not the one in `root`."""
    specs = {package: importlib.util.find_spec(package) for package in PACKAGES}
    found = {package: spec.origin if spec and spec.origin else "not installed" for package, spec in specs.items()}
    return {p: origin for p, origin in found.items() if Path(origin).resolve().parent != (root / p).resolve()}


def find_chapters(root: Path, only: list[str] | None = None) -> list[Chapter]:
    """Chapters of the project in order; `only` selects by number ("03", "3") or name; an unknown one is refused."""
    chapters = [Chapter(root, path.stem) for path in sorted((root / "notebooks").glob("*.md"))]
    if not only:
        return chapters
    numbers = {chapter.name: chapter.name.split("-")[0] for chapter in chapters}
    known = {key: c for c in chapters for key in (c.name, numbers[c.name], numbers[c.name].lstrip("0"))}
    unknown = [key for key in only if key not in known]
    if unknown:
        raise ValueError(f"--only must name chapters among {[c.name for c in chapters]}; got {unknown}")
    return [chapter for chapter in chapters if any(known[key] == chapter for key in only)]


def parse_settings(chapters: list[Chapter], settings: list[str]) -> dict[str, dict[str, Any]]:
    """Name of a chapter -> its overrides, for chapters that have one of the parameters set; some chapter must."""
    known = {name for chapter in chapters for name in chapter.defaults()}
    parsed = {}
    for chapter in chapters:
        own = chapter.defaults()
        mine = [s for s in settings if (name := s.partition("=")[0]) in own or name not in known]
        if mine:
            parsed[chapter.name] = parse_overrides(chapter, mine)
    return parsed


def parse_overrides(chapter: Chapter, settings: list[str]) -> dict[str, Any]:
    """`name=value` settings, each checked against the name and type of the chapter's parameter."""
    defaults = chapter.defaults()
    overrides = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set must be name=value; got {setting!r}")
        if name not in defaults:
            raise ValueError(f"--set must name a parameter of {chapter.name} among {sorted(defaults)}; got {name!r}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        overrides[name] = _like(name, value, defaults[name], _choices(chapter, name))
    return overrides


def _like(name: str, value: Any, default: Any, choices: Collection[str]) -> Any:
    """`value` if it may stand in for `default`: of its type, finite, above 0 or not below it as the default is."""
    wanted = type(default)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise ValueError(f"--set {name} must be of type {wanted.__name__}, as {default!r} is; got {value!r}")
    if wanted is list:
        if not value:
            raise ValueError(f"--set {name} must hold at least one entry, as {default!r} does; got {value!r}")
        return [_like(name, entry, default[0], choices) for entry in value]
    if wanted in (int, float) and not (0 < value < 2**63 if default > 0 else 0 <= value < 2**63):
        raise ValueError(
            f"--set {name} must be {'above 0' if default > 0 else '0 or more'}, below 2**63; got {value!r}"
        )
    if wanted is str and value not in choices:
        raise ValueError(f"--set {name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
    return value


def _choices(chapter: Chapter, name: str) -> list[str]:
    """Values of a text parameter: keys of the dictionaries that the chapter picks from with it, as {...}[name]."""
    trees = [ast.parse(source) for source in chapter.code()]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    picked = [node.value for node in nodes if isinstance(node.slice, ast.Name) and node.slice.id == name]
    keys = [key for value in picked if isinstance(value, ast.Dict) for key in value.keys]
    return list(dict.fromkeys(key.value for key in keys if isinstance(key, ast.Constant)))


def data_files(root: Path, sources: list[str]) -> list[Path]:
    """Committed files that the sources read by `recorded` and `benchmark`, by literal name.

    Raises
    ------
    ValueError
        If a name is not a literal: the hash could not follow what the chapter reads.
    """
    return sorted({root / name for source in sources for name in _data_read(source)})


@cache
def _data_read(source: str) -> frozenset[str]:
    places = {"recorded": ("experiments", ".csv"), "benchmark": ("benchmarks/results", ".json")}
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
        if called in places:
            match [*node.args, *(k.value for k in node.keywords)]:
                case [ast.Constant(value=str(name))]:
                    folder, suffix = places[called]
                    found.add(f"{folder}/{name}{suffix}")
                case _:
                    raise ValueError(f"{called} must be given one literal name; got {ast.unparse(node)}")
    return frozenset(found)


def imported_modules(root: Path, sources: list[str]) -> list[Path]:
    """Files of the project's packages that the sources import, directly or through each other; nothing is imported.

    A name taken from a package itself is traced to the module that defines it, so that the re-exports of an __init__
    do not make every chapter depend on every module. What a module does when it is run as a program does not count.
    """
    found: set[Path] = set()
    todo = [("", source) for source in sources]
    while todo:
        package, source = todo.pop()
        for path in _modules_imported(root, package, source) - found:
            found.add(path)
            todo.append((path.parent.name, path.read_text()))
    return sorted(found)


@cache
def _imports(source: str) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """All import statements but those of the part that runs as a program."""
    kept = [s for s in ast.parse(source).body if not (isinstance(s, ast.If) and "__name__" in ast.unparse(s.test))]
    return tuple(node for s in kept for node in ast.walk(s) if isinstance(node, (ast.Import, ast.ImportFrom)))


def _modules_imported(root: Path, package: str, source: str) -> set[Path]:
    """Files of modules named by the imports of `source`, which stands in `package`."""
    found: set[Path] = set()
    for node in _imports(source):
        if isinstance(node, ast.ImportFrom):
            parts = ([package] if node.level else []) + (node.module or "").split(".")
            names = {alias.name for alias in node.names}
        else:
            parts, names = node.names[0].name.split("."), set()
        parts = [part for part in parts if part]
        if not parts or parts[0] not in PACKAGES:
            continue
        folder = root / parts[0]
        if len(parts) > 1:
            found.add(folder / f"{parts[1]}.py")
        elif names:
            origins = _origins(folder)
            found |= {folder / f"{origins.get(name, name)}.py" for name in names}
        else:
            found |= {folder / f"{module}.py" for module in _origins(folder).values()}
    return {path for path in found if path.exists()}


def _origins(folder: Path) -> dict[str, str]:
    """Name -> module of the package in `folder` for each name that its __init__ takes from one."""
    imports = [
        node
        for node in _imports((folder / "__init__.py").read_text())
        if isinstance(node, ast.ImportFrom) and node.level == 1
    ]
    return {alias.name: str(node.module) for node in imports for alias in node.names}
