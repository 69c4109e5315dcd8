"""What is rendered from claims and findings: parts of the book's pages, and the README's lines of results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evidence.artifacts import write_atomically
from evidence.claims import VERDICTS, claims_table, load_claims
from evidence.findings import STYLES, findings_table, load_findings, overall_verdicts
from evidence.statements import FINDINGS, SOURCES, STATEMENTS
from evidence.tables import Cell, Code, Link, cell_html, cell_markdown, join, tally

RESULTS_START, RESULTS_END = "<!-- results:start -->", "<!-- results:end -->"
HEADLINES = ("thm-relation", "thm-nsd", "direction")
"""Statements that the README shows, a line each: where the argument starts, what it rests on, where it ends."""


def write_generated_pages(root: Path) -> None:
    """Write book/claims.md, and what the front page and the page of tests include, from the book's own records."""
    book = root / "book"
    page = (book / "claims.template.md").read_text()
    page = page.replace("{{ claims }}", claims_table(book / "_static" / "claims", claim_links).html())
    page = page.replace("{{ findings }}", findings_table(book / "_static" / "findings", finding_links).html())
    write_atomically(book / "claims.md", page)
    (book / "_generated").mkdir(exist_ok=True)
    write_atomically(book / "_generated" / "summary.md", summary(book / "_static"))
    write_atomically(book / "_generated" / "tests.md", tests())


def readme_with_results(root: Path) -> str:
    """README.md with its lines of results from the reference, which does not vary between machines."""
    before, rest = (root / "README.md").read_text().split(RESULTS_START)
    lines = "".join(f"- {cell_markdown(line)}\n" for line in results(root / "tests" / "reference"))
    return f"{before}{RESULTS_START}\n{lines}{RESULTS_END}{rest.split(RESULTS_END)[1]}"


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
    lines.append(join([f"{len(FINDINGS)} empirical findings: ", verdicts, "; chapters ", links, "."], ""))
    return lines


def summary(directory: Path) -> str:
    """Two sentences: how many statements, and how many findings, ended in which verdict."""
    claims = [record["verdict"] for record in load_claims(directory / "claims")]
    findings = overall_verdicts(directory / "findings")
    return (
        f"Of {len(claims)} statements checked so far: {cell_html(tally(claims, VERDICTS))}.\n\n"
        f"Of the {len(FINDINGS)} empirical findings, over {len(SOURCES)} sources of evidence: "
        f"{cell_html(tally(findings, STYLES))}.\n"
    )


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


def claim_links(record: Mapping[str, Any]) -> Cell:
    """From the book's table to a claim's proof, figure, code and test."""
    page = f"notebooks/{record['chapter']}.html"
    package, module, name = STATEMENTS[record["id"]].code.split(".")
    targets = {
        "proof": f"{page}#{record['proof']}",
        "figure": f"{page}#fig-{record['figure']}" if record["figure"] else "",
        "code": f"_modules/{package}/{module}.html#{name}",
        "test": f"tests.html#test-{record['id']}",
    }
    return join([Link(text, target) for text, target in targets.items() if target])


def finding_links(record: Mapping[str, Any]) -> Cell:
    """From the book's table to a finding's figure and method, and the command that reruns it."""
    page = f"notebooks/{record['chapter']}.html"
    figure = Link("figure", f"{page}#fig-{record['figure']}")
    return join([figure, Link("method", f"{page}#{record['id']}-{record['source']}"), Code(record["command"])])


def source_link(record: Mapping[str, Any]) -> Cell:
    """From the README to the source of a record's chapter, by its number."""
    return Link(record["chapter"].split("-")[0], f"notebooks/{record['chapter']}.md")
