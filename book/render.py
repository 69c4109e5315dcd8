"""Render the book in strict mode; the pages are swapped in only when Sphinx is content."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import shutil
import sys
from pathlib import Path

from chapters import PACKAGES
from execution import die_with_parent
from finish import finish
from swap import swap_in


class RenderError(RuntimeError):
    """What Sphinx warned of, and where its whole log is."""


def render(root: Path) -> bool:
    """Render the book unless nothing that goes in changed; return whether Sphinx ran.

    Raises
    ------
    RenderError
        If Sphinx warns or fails; the previous html stays.
    """
    build, html = root / "book" / "_build", root / "book" / "_build" / "html"
    fingerprint = _render_hash(root)
    stamp = html / ".fingerprint"
    if stamp.exists() and stamp.read_text() == fingerprint:
        return False
    stage, unfinished, log = build / "render", build / "render.unfinished", build / "render.log"
    contents, listed = build / "render.contents", _contents(root)
    if unfinished.exists() or not contents.exists() or contents.read_text() != listed:
        # an incremental run would not repeat the warnings of one that failed or was killed, and would leave the old
        # table of contents beside the pages that did not change
        shutil.rmtree(stage, ignore_errors=True)
    unfinished.touch()
    command = ["build", "book", "--config", "_config.yml", "--path-output", str(stage), "-W"]
    sphinx = multiprocessing.get_context("spawn").Process(target=_jupyter_book, args=(command, root, log))
    sphinx.start()
    try:
        sphinx.join()
    finally:
        sphinx.kill()  # where Ctrl-C or SIGTERM ended the wait
    if sphinx.exitcode != 0 or not (stage / "_build" / "html" / "index.html").exists():
        said = [line for line in log.read_text().splitlines() if re.search("warning|error", line, re.IGNORECASE)]
        message = f"the book was not rendered, the previous one stays; the whole log is in {log}"
        raise RenderError("\n".join([*said, message]))
    fresh = build / "html.new"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(stage / "_build" / "html", fresh)
    finish(fresh, root)
    (fresh / ".fingerprint").write_text(fingerprint)
    swap_in(fresh, html)
    contents.write_text(listed)
    unfinished.unlink()
    return True


def _jupyter_book(arguments: list[str], root: Path, log: Path) -> None:
    """Run Jupyter Book in this process, which prints to `log` and ends with the one that started it."""
    die_with_parent()
    os.chdir(root)
    with log.open("w") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    from jupyter_book.cli.main import main

    sys.argv = ["jupyter-book", *arguments]
    main()


def _contents(root: Path) -> str:
    """What every page shows beside its text: the table of contents, and the titles in it."""
    sources = [*sorted((root / "notebooks").glob("*.md")), *sorted((root / "book").glob("*.md"))]
    titles = [next((line for line in p.read_text().splitlines() if line.startswith("# ")), "") for p in sources]
    return "\n".join([(root / "book" / "_toc.yml").read_text(), *titles])


def _render_hash(root: Path) -> str:
    """Hash of all files that Sphinx reads."""
    book = root / "book"
    paths = [p for p in sorted(book.rglob("*")) if p.is_file() and "_build" not in p.relative_to(book).parts]
    digest = hashlib.sha256()
    for path in [
        root / "_config.yml",
        root / "constraints.txt",
        *(path for package in PACKAGES for path in sorted(root.glob(f"{package}/*.py"))),
        *sorted(root.glob("tests/*/*.py")),
        *paths,
    ]:
        if path.suffix not in (".pyc", ".png"):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
