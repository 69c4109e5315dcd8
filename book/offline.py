"""Sphinx extension: keep out of the pages what would ask another host, namely the live-code scripts of the theme."""

from typing import Any

from sphinx.application import Sphinx


def drop_live_code(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Remove sphinx-thebe's scripts and style from one page's context."""
    for kind in ("script_files", "css_files"):
        context[kind] = [f for f in context.get(kind, []) if "thebe" not in f"{f.filename} {f.attributes.get('body')}"]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", drop_live_code, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
