"""What is rendered from claims and findings: parts of the book's pages, and the README's lines of results."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advice import advice
from cards import claim_card, finding_card
from survives import survives

from evidence.artifacts import CorruptFile, read_record, table_rows, write_atomically
from evidence.claims import VERDICTS, claims_table, load_claims
from evidence.findings import STYLES, load_findings, overall_verdicts, rows_of_findings
from evidence.statements import FINDINGS, SOURCES, STATEMENTS
from evidence.tables import Cell, Code, Link, Table, cell_html, cell_markdown, join, tally

RESULTS_START, RESULTS_END = "<!-- results:start -->", "<!-- results:end -->"
HEADLINES = ("thm-relation", "thm-nsd", "direction")
"""Statements that the README shows, a line each: where the argument starts, what it rests on, where it ends."""


FIGURE = "order-plane"
"""The figure on the front page, of which `docs` holds a copy for the README."""

SPECTRA = "layer-spectra"
"""The figure whose numbers the explorer takes: eigenvalues of one layer's kernel on digits, full and by rank."""


def write_generated_pages(root: Path) -> None:
    """Write book/claims.md, and what the front page and the page of tests include, from the book's own records."""
    book = root / "book"
    claims, findings = load_claims(book / "_static" / "claims"), load_findings(book / "_static" / "findings")
    page = (book / "claims.template.md").read_text()
    cards = {
        "claims": "".join(claim_card(record, claim_links(record)) for record in claims),
        "findings": "".join(finding_cards(book / "_static" / "findings")),
    }
    page = re.sub(r"\{\{ (claims|findings) \}\}", lambda match: cards[match[1]], page)
    write_atomically(book / "claims.md", page)
    (book / "_generated").mkdir(exist_ok=True)
    write_atomically(book / "_generated" / "summary.md", summary(book / "_static"))
    write_atomically(book / "_generated" / "advice.md", advice(findings))
    write_atomically(book / "_generated" / "survives.md", survives(claims, findings))
    write_atomically(book / "_generated" / "figure.md", shown_figure(book / "notebooks", FIGURE))
    write_atomically(book / "_generated" / "spectra.md", spectra(book / "_static" / "figures" / f"{SPECTRA}.csv"))
    write_atomically(book / "_generated" / "tests.md", tests())
    write_atomically(book / "_generated" / "mistakes.md", mistakes(root / "tests" / "mutants" / "results.csv"))


def finding_cards(directory: Path) -> list[str]:
    """A card for each finding from the records in `directory`."""
    records = load_findings(directory)
    cards = []
    for id in FINDINGS:
        mine = {source: records[id, source] for source in SOURCES if (id, source) in records}
        cards.append(finding_card(id, mine, {source: finding_links(record) for source, record in mine.items()}))
    return cards


def readme_with_results(root: Path) -> str:
    """README.md with its lines of results from the reference, which does not vary between machines."""
    readme = (root / "README.md").read_text()
    before, _, rest = readme.partition(RESULTS_START)
    _, end, after = rest.partition(RESULTS_END)
    if not end:
        raise CorruptFile(root / "README.md", 1, f"must hold {RESULTS_START} and, after it, {RESULTS_END}")
    lines = "".join(f"- {cell_markdown(line)}\n" for line in results(root / "tests" / "reference"))
    return f"{before}{RESULTS_START}\n{lines}{RESULTS_END}{after}"


def results(directory: Path) -> list[Cell]:
    """The README's lines: all verdicts on statements, the headlines with their decisive numbers, all on findings."""
    claims, findings = load_claims(directory / "claims"), load_findings(directory / "findings")
    verdicts = tally([record["verdict"] for record in claims], VERDICTS)
    lines = [join([f"{len(claims)} statements: ", verdicts, "; ", Link("each", "tests/reference/claims"), "."], "")]
    rows = {row[0]: row for row in claims_table(directory / "claims", source_link).rows}
    for head in map(Code, HEADLINES):
        if head in rows:
            _, statement, badge, decisive, link = rows[head]
            lines.append(join([statement, ": ", badge, "; ", decisive, "; chapter ", link, "."], ""))
    chapters = {record["chapter"]: source_link(record) for record in findings.values()}
    verdicts = tally(overall_verdicts(directory / "findings"), STYLES)
    links = join([chapters[name] for name in sorted(chapters)])
    halves = len(rows_of_findings())
    lines.append(
        join([f"{len(FINDINGS)} empirical findings, {halves} by attack: ", verdicts, "; chapters ", links, "."], "")
    )
    return lines


def summary(directory: Path) -> str:
    """Two sentences: how many statements, and how many findings, ended in which verdict."""
    records, findings = load_claims(directory / "claims"), overall_verdicts(directory / "findings")
    claims = [record["verdict"] for record in records]
    parts = [part["verdict"] for record in records for part in record["parts"]]
    return (
        f"Of {len(claims)} statements, the paper's and those that its argument needs: "
        f"{cell_html(tally(claims, VERDICTS))}; of their {len(parts)} parts, "
        f"{cell_html(tally([word for word in parts if word == 'fails'], VERDICTS))}.\n\n"
        f"Of the {len(FINDINGS)} empirical findings, {len(rows_of_findings())} when told apart by attack, over "
        f"{len(SOURCES)} sources of evidence: "
        f"{cell_html(tally(findings, STYLES))}.\n"
    )


def shown_figure(notebooks: Path, name: str) -> str:
    """A figure of an executed chapter, as HTML for a page one folder up, with a link to its place; empty without it."""
    for path in sorted(notebooks.glob("*.ipynb")):
        outputs = [output for cell in read_record(path)["cells"] for output in cell.get("outputs", [])]
        for output in outputs:
            page = "".join(output.get("data", {}).get("text/html", ""))
            if page.startswith(f'<figure id="fig-{name}"'):
                source = cell_html(("From ", Link("this chapter", f"notebooks/{path.stem}.html#fig-{name}"), "."))
                return (
                    page.replace("../_static/", "_static/").replace("</figcaption>", f" {source}</figcaption>") + "\n"
                )
    return ""


def spectra(path: Path) -> str:
    """The explorer's data, as JSON in a script: eigenvalues by arm, and the layer's width; empty without the figure."""
    if not path.exists():
        return ""
    header, *rows = table_rows(path, path.read_text())
    found: dict[str, list[float]] = {}
    for row in rows:
        cell = dict(zip(header, row, strict=True))
        found.setdefault(cell["arm"], []).append(float(cell["eigenvalue"]))
    full = found.pop("full")
    width = read_record(path.with_suffix(".json"))["parameters"]["width"]
    content = json.dumps({"width": width, "full": full, "lora": found}, separators=(",", ":"))
    return f'<script type="application/json" id="digits-spectra">{content}</script>\n'


def tests() -> str:
    """A section for each statement with the code of its test."""
    sections = []
    for id, statement in STATEMENTS.items():
        package, module, name = statement.test.split(".")
        path = f"tests/{package}/test_{module}.py"
        options = f":language: python\n:pyobject: {name}\n"
        code = f"```{{literalinclude}} ../{path}\n{options}```\n"
        sections.append(f"(test-{id})=\n## {id}\n\n{statement.text}. From `{path}`:\n\n{code}")
    return "\n".join(sections)


def mistakes(path: Path) -> str:
    """How many of the mistakes made on purpose the tests noticed when `make mutants` last ran, and which test did."""
    header, *rows = table_rows(path, path.read_text()) if path.exists() else [["mistake", "file", "noticed by"]]
    noticed = sum(bool(by) for *_, by in rows)
    cells = [(what, Code(file), in_words(by) if by else "no test") for what, file, by in rows]
    return f"{noticed} of {len(rows)} were noticed.\n\n{Table(header, cells).html()}\n"


def in_words(name: str) -> str:
    """What a test is named to hold: its name as pytest prints it, without the file, as words."""
    return name.partition("::")[2].removeprefix("test_").replace("_", " ")


def claim_links(record: Mapping[str, Any]) -> list[Link]:
    """From the book's card to a claim's proof, figure, code and test."""
    page = f"notebooks/{record['chapter']}.html"
    package, module, name = STATEMENTS[record["id"]].code.split(".")
    targets = {
        "proof": f"{page}#{record['proof']}",
        "figure": f"{page}#fig-{record['figure']}" if record["figure"] else "",
        "code": f"_modules/{package}/{module}.html#{name}",
        "test": f"tests.html#test-{record['id']}",
    }
    return [Link(text, target) for text, target in targets.items() if target]


def finding_links(record: Mapping[str, Any]) -> Cell:
    """From the book's card to a finding's figure and method, and the command that reruns it."""
    page = f"notebooks/{record['chapter']}.html"
    figure = Link("figure", f"{page}#fig-{record['figure']}")
    return join([figure, Link("method", f"{page}#{record['id']}-{record['source']}"), Code(record["command"])])


def source_link(record: Mapping[str, Any]) -> Cell:
    """From the README to the source of a record's chapter, by its number."""
    return Link(record["chapter"].split("-")[0], f"notebooks/{record['chapter']}.md")
