"""What is rendered from claims and findings: parts of the book's pages, and the README's block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evidence.artifacts import write_atomically
from evidence.claims import VERDICTS, claims_table, load_claims
from evidence.findings import STYLES, findings_table, overall_verdicts
from evidence.statements import FINDINGS, SOURCES, STATEMENTS
from evidence.tables import Cell, Code, Link, cell_html, join, tally

CLAIMS_START, CLAIMS_END = "<!-- claims:start -->", "<!-- claims:end -->"


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


def readme_with_claims(root: Path) -> str:
    """README.md with its block of claims and findings from the reference, which does not vary between machines."""
    before, rest = (root / "README.md").read_text().split(CLAIMS_START)
    reference = root / "tests" / "reference"
    claims = claims_table(reference / "claims", source_link).markdown()
    findings = findings_table(reference / "findings", source_link).markdown()
    block = f"{claims}\nThe five empirical findings, by source of evidence:\n\n{findings}"
    return f"{before}{CLAIMS_START}\n{block}{CLAIMS_END}{rest.split(CLAIMS_END)[1]}"


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
