"""What a reader takes home from a chapter: its source, the executed notebook, and the line that reruns it."""

from __future__ import annotations

import base64
import html
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import yaml
from bs4 import BeautifulSoup
from chapters import Chapter

KEPT = ("kernelspec", "language_info")
"""Metadata that a notebook needs to run; the rest says where and when it ran here."""


def write_downloads(chapter: Chapter, pages: Path) -> None:
    """Write the chapter's source and executed notebook into the folder downloads of the rendered `pages`."""
    folder = pages / "downloads"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(chapter.source, folder / f"{chapter.name}.md")
    notebook = nbformat.read(chapter.executed, as_version=4)
    nbformat.write(portable(notebook, pages / "notebooks"), folder / f"{chapter.name}.ipynb")


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
    example = next((f"{name}={value + 1}" for name, value in parameters.items() if type(value) is int), "")
    rows = "".join(
        f"<tr><td><code>{html.escape(name)}</code></td><td><code>{html.escape(repr(value))}</code></td></tr>"
        for name, value in parameters.items()
    )
    trial = f", with another value by <code>{html.escape(f'{line} SET={example}')}</code>" if example else ""
    table = f"<tr><th>parameter</th><th>value here</th></tr>{rows}"
    table = f'<div class="claim-table" tabindex="0"><table>{table}</table></div>' if rows else ""
    files = "".join(
        f'<li><a href="../downloads/{chapter.name}{suffix}" download="{chapter.name}{suffix}">{text}</a></li>'
        for suffix, text in ((".md", "Source (.md)"), (".ipynb", "Notebook, executed, with its pictures (.ipynb)"))
    )
    launch = "".join(
        f'<li><a href="{html.escape(target)}">{text}</a></li>' for text, target in launch_links(chapter).items()
    )
    return (
        '<section id="rerun-this-page" class="rerun"><h2>Rerun this page'
        '<a class="headerlink" href="#rerun-this-page" title="Link to this heading">#</a></h2>'
        f"<p>In a copy of the project: <code>{line}</code>{trial}.</p>{table}<ul>{files}{launch}</ul></section>"
    )


def launch_links(chapter: Chapter) -> dict[str, str]:
    """Where the chapter can be run in a browser: nowhere until _config.yml names a repository on GitHub."""
    config: dict[str, Any] = yaml.safe_load((chapter.root / "_config.yml").read_text())
    options = config["sphinx"]["config"]["html_theme_options"]
    address = urlsplit(options.get("repository_url", ""))
    if address.netloc != "github.com":
        return {}
    place = f"{address.path.strip('/')}/{options.get('repository_branch', 'main')}"
    return {
        "Launch in JupyterLab on Binder": f"https://mybinder.org/v2/gh/{place}?urlpath=lab/tree/notebooks/{chapter.name}.md"
    }
