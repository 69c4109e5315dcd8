"""The claims page: a card for each statement and each finding, from the book's own records."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from printed import PAPER, PRINTED

from evidence.claims import READINGS, VERDICTS, decisive_number
from evidence.findings import STYLES, badge, overall, primary_effects
from evidence.literature import LITERATURE
from evidence.statements import FINDINGS, HALVES, SOURCES
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
    verdict = Badge(record["verdict"], VERDICTS[record["verdict"]])
    return _card(record["id"], record["statement"], verdict, entries)


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
    """One finding: what each source of evidence says of each half, by its primary effects; `links` by source."""
    entries = []
    for half in HALVES[id]:
        for source in SOURCES:
            record = records.get(source)
            shown: list[Cell] = [badge(record, half)]
            if record:
                shown += [primary_effects(record, half), links[source]]
            entries.append((f"{half}, {source}", cell_html(join(shown, " "))))
        found = [join([Link(paper.who, paper.address), paper.says], ": ") for paper in LITERATURE[id, half]]
        entries.append((f"{half}, others", cell_html(join(found, "; "))))
    verdicts = {half: overall(records.values(), half) for half in HALVES[id]}
    badges = [Badge(f"{half}: {word}", STYLES[word]) for half, word in verdicts.items()]
    return _card(id, FINDINGS[id], join(badges, " "), entries)


def _card(id: str, title: str, badges: Cell, entries: Iterable[tuple[str, str]]) -> str:
    """A card on one line of HTML, as markdown wants it: a blank line would end it."""
    terms = "".join(f"<dt>{html.escape(term)}</dt><dd>{text}</dd>" for term, text in entries)
    return (
        f'<section class="card-of" id="card-{id}" aria-label="{id}"><h3>{Code(id).html()} '
        f"<span>{html.escape(title)}</span> {cell_html(badges)}</h3><dl>{terms}</dl></section>\n"
    )


def _items(lines: Iterable[str]) -> str:
    return f'<ul class="parts">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def _list(links: Iterable[Link]) -> str:
    items = "".join(f"<li>{link.html()}</li>" for link in links)
    return f'<ul class="links">{items}</ul>'
