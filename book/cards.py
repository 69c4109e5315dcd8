"""The claims page: a card for each statement and each finding, from the book's own records."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from printed import PAPER, PRINTED

from evidence.claims import ROLES, VERDICTS, decisive_number
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
        ("decided by", html.escape(decisive_number(record))),
        ("checks", f'<ul class="parts">{"".join(f"<li>{line}</li>" for line in readings(record["evidence"]))}</ul>'),
        ("see", _list([*links, Link("paper", PAPER)] if place else links)),
    ]
    verdict = Badge(record["verdict"], VERDICTS[record["verdict"]])
    return _card(record["id"], record["statement"], verdict, entries)


def readings(evidence: Iterable[Mapping[str, Any]]) -> list[str]:
    """For each reading of a statement, how many of its checks are met, and by which routes; as HTML."""
    lines = []
    for role in ROLES:
        checks = [e for e in evidence if e["role"] == role]
        if checks:
            met = sum(e["passes"] for e in checks)
            routes = "; ".join(dict.fromkeys(e["route"] for e in checks))
            lines.append(html.escape(f"{role}: {met} of {len(checks)} met ({routes})"))
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


def _list(links: Iterable[Link]) -> str:
    items = "".join(f"<li>{link.html()}</li>" for link in links)
    return f'<ul class="links">{items}</ul>'
