"""Sphinx extension: which scripts a page loads.

Out go the live-code scripts of the theme, which would ask another host, and those of `_static/interactive` that the
page's front matter does not name, as in ``scripts: laws.js calculator.js``.
"""

from typing import Any

from sphinx.application import Sphinx


def choose_scripts(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Remove from one page's context the scripts and styles that the page does not use."""
    named = str((context.get("meta") or {}).get("scripts", "")).split()

    def used(file: Any) -> bool:
        folder, _, name = str(file.filename).rpartition("interactive/")
        return "thebe" not in f"{file.filename} {file.attributes.get('body')}" and (not folder or name in named)

    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if used(file)]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", choose_scripts, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
