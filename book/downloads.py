"""What a reader takes home from a chapter: its source, the executed notebook, and the line that reruns it."""

from __future__ import annotations

import base64
import html
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import yaml
from bs4 import BeautifulSoup
from chapters import Chapter

from evidence.tables import Code, Table

KEPT = ("kernelspec", "language_info")
"""Metadata that a notebook needs to run; the rest says where and when it ran here."""


SETUP = """# on another machine than the project's: fetch the project and what it needs
import importlib.util
if importlib.util.find_spec("lorantk") is None:
    !git clone -q --depth 1 --branch {branch} https://github.com/{name} project
    %cd project
    %pip install -q -e .[book,experiments,hf]"""
"""First cell of a notebook that is taken where the project is not installed, such as Colab."""

INSIDE = "This notebook runs in a copy of the project, whose README says how to set it up (`make book`, Python ≥ 3.11)."
"""First cell where no address of the project is known."""


@dataclass(frozen=True)
class Repository:
    """Where the project lies on GitHub: "owner/name", and the branch of its sources."""

    name: str
    branch: str

    @classmethod
    def of(cls, root: Path) -> Repository | None:
        """The one that _config.yml names; None while it names none."""
        config: dict[str, Any] = yaml.safe_load((root / "_config.yml").read_text())
        options = config["sphinx"]["config"]["html_theme_options"]
        address = urlsplit(options.get("repository_url", ""))
        if address.netloc != "github.com":
            return None
        return cls(address.path.strip("/").removesuffix(".git"), options.get("repository_branch", "main"))


def write_downloads(chapter: Chapter, pages: Path) -> None:
    """Write the chapter's source and executed notebook into the folder downloads of the rendered `pages`."""
    folder = pages / "downloads"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(chapter.source, folder / f"{chapter.name}.md")
    notebook = portable(nbformat.read(chapter.executed, as_version=4), pages / "notebooks")
    if repository := Repository.of(chapter.root):
        setup = SETUP.format(name=repository.name, branch=repository.branch)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(setup, id="setup"))
    else:
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(INSIDE, id="setup"))
    nbformat.write(notebook, folder / f"{chapter.name}.ipynb")


def portable(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook with its pictures inside it; their addresses count from `folder`. Changed in place."""
    notebook.metadata = {key: notebook.metadata[key] for key in KEPT if key in notebook.metadata}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if "outputs" in cell:  # warnings speak of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/papermill.record", None)
            if "metadata" in output:
                output.metadata = {}
            page = output.get("data", {}).get("text/html", "")
            if "lorantk-figure" in page:
                output.data["text/html"] = _with_pictures(page, folder)
    return notebook


def _with_pictures(page: str, folder: Path) -> str:
    """A figure's HTML with its light picture as data and without links to files that stay behind."""
    soup = BeautifulSoup(page, "html.parser")
    for unwanted in soup.select(".only-dark, source, figcaption a"):
        unwanted.decompose()
    for image in soup.find_all("img"):
        data = base64.b64encode((folder / image["src"]).with_suffix(".png").read_bytes()).decode()
        image.attrs = {"src": f"data:image/png;base64,{data}", "alt": image["alt"], "width": "720"}
    return str(soup)


def rerun_section(chapter: Chapter) -> str:
    """The last section of a chapter's page: its line, its parameters, its files, and where to launch it."""
    parameters, number = chapter.defaults(), chapter.name.split("-")[0]
    line = f"make notebook N={number}"
    seconds = chapter.recorded().get("seconds", 0)
    time = f" (it took {seconds / 60:.1g} minutes here)" if seconds >= 60 else ""
    paragraphs = [f"In a copy of the project, <code>{line}</code> executes this page again{time}."]
    if settings := example(parameters):
        shown = html.escape(f'{line} SET="{settings}"', quote=False)
        text = (
            f"<code>{shown}</code> tries it with other values, in the folder <code>book/_build/trial</code>, and says "
            "which verdicts and numbers move"
        )
        quick = (
            "; <code>profile=quick</code> makes every computation small, which moves numbers by itself"
            if "profile" in parameters
            else ""
        )
        paragraphs.append(f"{text}{quick}.")
    rows = [(Code(name), Code(repr(value))) for name, value in parameters.items()]
    table = Table(("parameter", "value here"), rows).html() if rows else ""
    files = "".join(
        f'<li><a href="../downloads/{chapter.name}{suffix}" download="{chapter.name}{suffix}">{text}</a></li>'
        for suffix, text in ((".md", "Source (.md)"), (".ipynb", "Notebook, executed, with its pictures (.ipynb)"))
    )
    launch = "".join(
        f'<li><a class="launch" href="{html.escape(target)}">{text}</a></li>'
        for text, target in launch_links(chapter).items()
    )
    return (
        '<section id="rerun-this-page" class="rerun"><h2>Rerun this page'
        '<a class="headerlink" href="#rerun-this-page" title="Link to this heading">#</a></h2>'
        f"{''.join(f'<p>{text}</p>' for text in paragraphs)}{table}"
        f"<ul>{files}{launch}<li>All pages in JupyterLab: <code>make lab</code></li></ul></section>"
    )


def example(parameters: Mapping[str, Any]) -> str:
    """Settings that a reader may try: twice the first number that is no seed, else the next seed; the quick profile."""
    numbers = [f"{name}={2 * value}" for name, value in parameters.items() if name != "seed" and _is_number(value)]
    numbers += [f"seed={value + 1}" for name, value in parameters.items() if name == "seed"]
    return " ".join(numbers[:1] + ["profile=quick"] * ("profile" in parameters))


def launch_links(chapter: Chapter) -> dict[str, str]:
    """Where the chapter can be run in a browser: nowhere until _config.yml names a repository on GitHub.

    Binder opens the source in JupyterLab, where a right click offers to open it as a notebook. Colab opens the
    executed notebook, which CI pushes to the branch "executed".
    """
    repository = Repository.of(chapter.root)
    if repository is None:
        return {}
    binder = f"https://mybinder.org/v2/gh/{repository.name}/{repository.branch}"
    colab = f"https://colab.research.google.com/github/{repository.name}/blob/executed"
    return {
        "Run on Binder, in JupyterLab": f"{binder}?urlpath=lab/tree/notebooks/{chapter.name}.md",
        "Run on Colab": f"{colab}/{chapter.name}.ipynb",
    }


def _is_number(value: object) -> bool:
    return type(value) in (int, float)
