"""Measured speed and memory as a table: recorded by `make bench`, shown with targets and verdicts.

A line says how many times as long a peer took as we did, or how near we came to a bound, with both absolute values. Its
verdict is computed when it is measured: "met" or "not met" against a target, nothing without one. What did not run
says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evidence.artifacts import committed, read_record
from evidence.tables import Badge, Cell, Table, join, number

STYLES = {"met": "holds", "not met": "fails", "not measured": "definition"}
"""Verdict -> style of its badge."""


def benchmark(name: str) -> dict[str, Any]:
    """A committed measurement of speed and memory: ``benchmarks/results/<name>.json``.

    On a page, write the name literally: the file is then part of what the chapter's hash covers.
    """
    return read_record(committed("benchmarks/results", name, ".json"))


class CostTable:
    """Lines of benchmarks as a table that fits a page.

    Parameters
    ----------
    records : sequence of mappings
        As `benchmark` reads them.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self.lines: list[dict[str, Any]] = [line for record in records for line in record["lines"]]

    def _repr_html_(self) -> str:
        heads = ("what", "measured (by CPU time)", "ours / theirs", "target")
        return f'<div class="claim costs">{Table(heads, [self._row(cells(line)) for line in self.lines]).html()}</div>'

    def _row(self, said: Mapping[str, str]) -> Sequence[Cell]:
        cpu = f" ({said['by CPU time']})" if said["by CPU time"] else ""
        verdict = [Badge(said["verdict"], STYLES[said["verdict"]])] if said["verdict"] else []
        amounts = " / ".join(amount for amount in (said["ours"], said["theirs"]) if amount)
        return said["what"], said["measured"] + cpu, amounts, join([*filter(None, [said["target"]]), *verdict], " ")


def cells(line: Mapping[str, Any]) -> dict[str, str]:
    """One line as text by column; empty where it says nothing."""
    measured, reason = line["measured"], str(line.get("not_run") or "")
    bounds = {"at least": line["at_least"], "at most": line["at_most"]}
    return {
        "what": line["what"],
        "measured": reason if measured is None else f"{_short(measured)} {line['unit']}".strip(),
        "by CPU time": "" if line.get("by_cpu") is None else _short(line["by_cpu"]),
        "ours": _amount(line, "ours"),
        "theirs": _amount(line, "peer") or _amount(line, "bound"),
        "target": ", ".join(f"{word} {_short(bound)}" for word, bound in bounds.items() if bound is not None),
        "verdict": {True: "met", False: "not met"}.get(line["met"], "not measured" if measured is None else ""),
    }


def _amount(line: Mapping[str, Any], whose: str) -> str:
    """Seconds or bytes of ours, the peer's or the bound's; empty where there are none."""
    if line.get(f"{whose}_seconds") is not None:
        return f"{_short(line[f'{whose}_seconds'])} s"
    return f"{_short(line[f'{whose}_bytes'] / 1e9)} GB" if line.get(f"{whose}_bytes") is not None else ""


def _short(value: float) -> str:
    """Three significant digits, and no power of ten for thousands."""
    return number(value) if abs(value) < 1000 else f"{float(f'{value:.3g}'):,.0f}"


def circumstances(records: Sequence[Mapping[str, Any]]) -> str:
    """The machine that the records come from, and how busy it was, in a sentence or two.

    Raises
    ------
    ValueError
        If there is no record, or they come from different machines or settings.
    """
    told = {key: [record["machine"][key] for record in records] for key in ("cpu", "cores", "threads", "versions")}
    mixed = [key for key, values in told.items() if any(value != values[0] for value in values)]
    if not records or mixed:
        raise ValueError(f"records must come from one machine and setting; got {len(records)}, which differ in {mixed}")
    machine = records[0]["machine"]
    loads = [record["machine"][key] for record in records for key in ("load_before", "load_after")]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    card = f"{machine['card']}, " if machine.get("card") else ""
    return (
        f"{card}{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"{machine['system']}, "
        f"Python {machine['python']}, {versions}; {machine['threads']} thread{'s' * (machine['threads'] > 1)} a "
        f"contender. Load average during the runs, other processes included: {min(loads):.1f} to {max(loads):.1f}."
    )
