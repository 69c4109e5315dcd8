"""Print all claims and findings, as computed, in a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .artifacts import SOURCE_TREE, CorruptFile
from .claims import claims_table
from .findings import findings_table


def chapter(record: Mapping[str, Any]) -> str:
    """Name of the chapter that computed the record."""
    return str(record["chapter"])


def main(
    directory: Annotated[Path, typer.Argument(help="Where claims/*.json and findings/*.json lie.")] = SOURCE_TREE
    / "tests"
    / "reference",
) -> None:
    """Print all claims and findings, as computed; by default those committed with this source tree."""
    tables = {"claims": claims_table, "findings": findings_table}
    absent = [name for name in tables if not any((directory / name).glob("*.json"))]
    if absent:
        raise typer.BadParameter(f"directory must hold {' and '.join(absent)} as JSON files; got {directory}")
    try:
        filled = {name: table(directory / name, chapter) for name, table in tables.items()}
    except CorruptFile as error:
        raise typer.BadParameter(str(error)) from error
    for name, table in filled.items():
        table.show(f"{name.capitalize()}, as computed")


if __name__ == "__main__":
    typer.run(main)
