"""The last step of each page: what Sphinx and the theme leave undone is done in the rendered HTML.

Unused icons and their script go, MathJax is copied beside the pages, hidden cells in a row get one bar, and tables,
lists and landmarks get the roles that a screen reader needs. The chapters' last section comes from `downloads`, links
to the glossary from `glossary`.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from chapters import find_chapters
from downloads import rerun_section, write_downloads
from glossary import entries, explain

from evidence.statements import FINDINGS, STATEMENTS

ICON_RULE = re.compile(r'((?:\.fa-[a-z0-9-]+:before,?)+)\{content:"\\([0-9a-f]+)"\}')
"""A rule of FontAwesome's style sheet: the classes of an icon, and its code point."""

WIDE = 5
"""Columns from which on a table of data does not fit a phone."""


def finish(html: Path, root: Path) -> None:
    """Finish all pages in `html`, the rendered book of the project in `root`."""
    copy_mathjax(html / "_static" / "mathjax")
    pages = sorted(html.rglob("*.html"))
    trim_icons(html / "_static", {name for page in pages for name in re.findall(r"\bfa-[a-z-]+\b", page.read_text())})
    sections = {}
    for chapter in find_chapters(root):
        if (html / "notebooks" / f"{chapter.name}.html").exists():
            write_downloads(chapter, html)
            sections[f"{chapter.name}.html"] = rerun_section(chapter)
    words, glossary = {}, html / "notation.html"
    if glossary.exists():
        words = entries(BeautifulSoup(glossary.read_text(), "html.parser"))
    for page in pages:
        soup = BeautifulSoup(page.read_text(), "html.parser")
        mend(soup)
        if page.name in ("api.html", "code.html"):
            link_statements(soup)
        if page != glossary:
            explain(soup, words, os.path.relpath(glossary, page.parent))
        if page.parent.name == "notebooks" and page.name in sections:
            add_section(soup, sections[page.name])
        page.write_text(str(soup))


def add_section(soup: BeautifulSoup, section: str) -> None:
    """Put a section behind the others of a page, and into both lists of the page's contents."""
    added = BeautifulSoup(section, "html.parser").section
    soup.select_one("article.bd-article > section").append(added)
    title = next(added.h2.strings)
    entry = f'<li class="toc-h2 nav-item toc-entry"><a class="nav-link" href="#{added["id"]}">{title}</a></li>'
    for contents in soup.select('nav[aria-label="Page"] > ul, nav.page-toc > ul'):
        contents.append(BeautifulSoup(entry, "html.parser"))


def mend(soup: BeautifulSoup) -> None:
    """Change one page in place: icons, roles, heads, hidden cells."""
    for script in soup.find_all("script", src=re.compile("fontawesome")):
        script.decompose()
    printed, number = soup.select_one("#jb-print-docs-body h1"), soup.select_one("article h1 .section-number")
    if printed and number:  # the title on paper is another one
        printed.insert(0, number.get_text())
    for entry in soup.select('[role="doc-biblioentry"]'):
        entry["role"] = "listitem"
    for head in soup.find_all("th"):
        if not head.get_text(strip=True):
            head.name = "td"
    for sidebar in soup.select(".sidebar-primary-items__start"):
        sidebar["role"], sidebar["aria-label"] = "navigation", "Book"
    for head in soup.select(".cell_output th"):
        if head.string:
            head.string = head.string.replace("_", " ")  # names of columns, read as words
    for table in soup.select(".cell_output table:not(.listed)"):
        name_cells(table)
    for cell in soup.select("div.cell.tag_hide-input"):
        join_hidden_cells(cell)


def link_statements(soup: BeautifulSoup) -> None:
    """Lead from the id of a statement or finding, as docstrings name it, to its card."""
    for code in soup.select("article code"):
        if (id := code.get_text()) in STATEMENTS or id in FINDINGS:
            code.wrap(soup.new_tag("a", href=f"claims.html#card-{id}"))


def name_cells(table: Tag) -> None:
    """Give each cell of a wide table the head of its column: on a phone its rows become lists."""
    heads = [
        [head.get_text(" ", strip=True) for head in row.find_all(["th", "td"])] for row in table.select("thead tr")
    ]
    rows = [row.find_all(["th", "td"], recursive=False) for row in table.select("tbody tr")]
    if len(heads) != 1 or len(heads[0]) < WIDE or any(len(row) != len(heads[0]) for row in rows):
        return
    table["class"] = [*table.get("class", []), "listed"]
    for row in rows:
        for head, cell in zip(heads[0], row, strict=True):
            cell["data-head"] = head


def join_hidden_cells(cell: Tag) -> None:
    """Move the code of a hidden cell that shows nothing in front of the code of the hidden cell that follows it."""
    following = cell.find_next_sibling()
    output = cell.select_one(".cell_output")
    if output and (output.get_text(strip=True) or output.find("img")):
        return
    if not (following and {"cell", "tag_hide-input"} <= set(following.get("class", []))):
        return
    target, code = following.select_one(".cell_input"), cell.select_one(".cell_input")
    for block in reversed(code.find_all(recursive=False)):
        target.insert(0, block.extract())
    cell.decompose()


def trim_icons(static: Path, used: set[str]) -> None:
    """Keep those rules and glyphs of FontAwesome that pages or style sheets use, and drop its script."""
    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont

    def keep(rule: re.Match[str]) -> str:
        return rule[0] if set(re.findall("fa-[a-z0-9-]+", rule[1])) & used else ""

    theme = static / "styles" / "pydata-sphinx-theme.css"
    style = ICON_RULE.sub(keep, theme.read_text())
    theme.write_text(
        re.sub(r"(webfonts/fa-[a-z]+-[0-9]+)\.woff2\) format\(\"woff2\"\)", r'\1.woff) format("woff")', style)
    )
    points = {
        int(p, 16) for sheet in static.rglob("*.css") for p in re.findall(r"\\([ef][0-9a-f]{3})\b", sheet.read_text())
    }
    fonts = static / "vendor" / "fontawesome" / "webfonts"
    for path in fonts.glob("*.ttf"):
        font = TTFont(path)
        subsetter = Subsetter(Options(layout_features=[], drop_tables=["GSUB", "GPOS"]))
        subsetter.populate(unicodes=points)
        subsetter.subset(font)
        font.flavor = "woff"
        font.save(path.with_suffix(".woff"))
        path.unlink()
        path.with_suffix(".woff2").unlink()
    (static / "scripts" / "fontawesome.js").unlink()


def copy_mathjax(target: Path) -> None:
    """Copy the parts of MathJax 3 that a page asks for from the installed wheel: mathematics without a network.

    Not by way of book/_static: Jupyter Book would load every script it finds there on every page.
    """
    import mathjax

    source = Path(mathjax.__file__).parent / "static" / "mathjax" / "es5"
    shutil.copytree(source / "input" / "tex" / "extensions", target / "input" / "tex" / "extensions")
    shutil.copytree(
        source / "output" / "chtml" / "fonts" / "woff-v2", target / "output" / "chtml" / "fonts" / "woff-v2"
    )
    shutil.copyfile(source / "tex-chtml.js", target / "tex-chtml.js")
