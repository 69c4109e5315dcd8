"""The claims page: a card for each statement and each finding, from the book's own records."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from printed import PAPER, PRINTED

from evidence.claims import READINGS, VERDICTS, decisive_number
from evidence.findings import STYLES, deciding_effects, overall
from evidence.statements import FINDINGS, SOURCES
from evidence.tables import Badge, Cell, Code, Link, cell_html, join


def claim_card(record: Mapping[str, Any], links: Sequence[Link]) -> str:
    """One statement: as printed, the verdict with its decisive number, its checks by reading, and where to look."""
    place, text = PRINTED.get(record["id"], ("", ""))
    printed = f'{html.escape(place)}: <span class="mathjax_process">{html.escape(text, quote=False)}</span>'
    entries = [
        *([("on the poster", printed)] if place else []),
        *([("parts", _items(map(part_line, record["parts"])))] if len(record["parts"]) > 1 else []),
        ("decided by", html.escape(decisive_number(record))),
        ("checks", _items(readings(record["evidence"]))),
        ("see", _list([*links, Link("paper", PAPER)] if place else links)),
    ]
    badge = Badge(record["verdict"], VERDICTS[record["verdict"]])
    return _card(record["id"], record["statement"], badge, entries)


def part_line(part: Mapping[str, Any]) -> str:
    """One conclusion of a statement and its verdict, as HTML."""
    return cell_html((f"{part['text']}: ", Badge(part["verdict"], VERDICTS[part["verdict"]])))


def readings(evidence: Iterable[Mapping[str, Any]]) -> list[str]:
    """For each reading of a statement, how many of its checks are met, and where its meaning is taken from; as HTML."""
    lines = []
    for reading in READINGS:
        checks = [e for e in evidence if e["reading"] == reading]
        if checks:
            met = sum(e["passes"] for e in checks)
            sources = "; ".join(dict.fromkeys(e["source"] for e in checks if e["source"]))
            lines.append(html.escape(f"{reading}: {met} of {len(checks)} met" + (f" ({sources})" if sources else "")))
    return lines


def finding_card(id: str, records: Mapping[str, dict[str, Any]], links: Mapping[str, Cell]) -> str:
    """One finding: what each source of evidence says, by the effects that decide it; `links` by source."""
    entries = []
    for source in SOURCES:
        record = records.get(source)
        verdict = record["verdict"] if record else "missing"
        shown = [Badge(verdict, STYLES[verdict])]
        if record:
            shown += [deciding_effects(record), links[source]]
        entries.append((source, cell_html(join(shown, " "))))
    verdict = overall(list(records.values()))
    return _card(id, FINDINGS[id], Badge(verdict, STYLES[verdict]), entries)


def _card(id: str, title: str, badge: Badge, entries: Iterable[tuple[str, str]]) -> str:
    """A card on one line of HTML, as markdown wants it: a blank line would end it."""
    terms = "".join(f"<dt>{html.escape(term)}</dt><dd>{text}</dd>" for term, text in entries)
    return (
        f'<section class="card-of" id="card-{id}" aria-label="{id}"><h3>{Code(id).html()} '
        f"<span>{html.escape(title)}</span> {badge.html()}</h3><dl>{terms}</dl></section>\n"
    )


def _items(lines: Iterable[str]) -> str:
    return f'<ul class="parts">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def _list(links: Iterable[Link]) -> str:
    items = "".join(f"<li>{link.html()}</li>" for link in links)
    return f'<ul class="links">{items}</ul>'
