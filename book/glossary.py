"""Words that explain themselves: on each page the first use of a glossary's word leads there and shows its meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from bs4 import BeautifulSoup, NavigableString

PROSE = "article p, article li, article dd"
"""Where a word is explained."""

APART = ["a", "code", "pre", "h1", "h2", "h3", "figcaption", "form", "table", "label", "button", "dt", "script"]
"""Elements whose words stay as they are."""


class Entry(NamedTuple):
    """Where the glossary explains a word, and how."""

    anchor: str
    meaning: str


def entries(page: BeautifulSoup) -> dict[str, Entry]:
    """The words of the glossary on a rendered page, in small letters unless they are capitals all through."""
    found = {}
    for term in page.select("dl.glossary > dt"):
        meaning = term.find_next("dd").get_text(" ", strip=True)
        name = next(iter(term.stripped_strings))
        found[name] = Entry(term["id"], meaning)
    return found


def explain(soup: BeautifulSoup, words: Mapping[str, Entry], glossary: str) -> None:
    """Link the first use of each word on a page to the page `glossary`, in place; its meaning is the link's tip."""
    left = dict(words)
    for block in soup.select(PROSE):
        for text in list(block.find_all(string=True)):
            if left and text.parent and not _is_apart(text):
                _link_first(soup, text, left, glossary)


def _is_apart(text: NavigableString) -> bool:
    """Whether a text belongs to a formula, a link, a heading, code or a card."""
    return any(
        parent.name in APART or {"math", "mathjax_process", "card-of", "verdict", "sig"} & set(parent.get("class", []))
        for parent in text.parents
    )


def _link_first(soup: BeautifulSoup, text: NavigableString, left: dict[str, Entry], glossary: str) -> None:
    """Replace the words of `left` in one text by links, and take them, with all that mean the same, out of `left`."""
    while left:
        names = "|".join(re.escape(name) for name in sorted(left, key=len, reverse=True))
        match = re.search(rf"(?<![\w-])({names})(?:s|es)?(?![\w-])", text, re.IGNORECASE)
        if not match:
            return
        entry = next(entry for name, entry in left.items() if name.lower() == match[1].lower())
        for name in [name for name, other in left.items() if other.meaning == entry.meaning]:
            del left[name]
        link = soup.new_tag("a", href=f"{glossary}#{entry.anchor}", **{"class": "word", "data-tip": entry.meaning})
        link.string = match[0]
        before, after = NavigableString(text[: match.start()]), NavigableString(text[match.end() :])
        text.replace_with(before)
        before.insert_after(link)
        link.insert_after(after)
        text = after
