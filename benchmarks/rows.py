"""Lines of the table of ratios: what was measured, against which target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .races import ratio

Records = Mapping[str, Mapping[str, Any]]


def faster(records: Records, what: str, ours: str, peer: str, at_least: float | None = None) -> dict[str, Any]:
    """Line that says how many times as fast as `peer` our contender is."""
    return line(
        what, ratio(records, peer, ours), "times", at_least=at_least,
        by_cpu=ratio(records, peer, ours, "cpu_seconds"), ours_seconds=records[ours].get("seconds"),
        peer_seconds=records[peer].get("seconds"), not_run=records[peer].get("not_run"),
    )  # fmt: skip


def line(
    what: str,
    measured: float | None,
    unit: str,
    at_least: float | None = None,
    at_most: float | None = None,
    **details: Any,
) -> dict[str, Any]:
    """One line; "met" is None where there is no target or nothing was measured."""
    met = None
    if measured is not None and (at_least is not None or at_most is not None):
        met = (at_least is None or measured >= at_least) and (at_most is None or measured <= at_most)
    return {
        "what": what,
        "measured": measured,
        "unit": unit,
        "at_least": at_least,
        "at_most": at_most,
        "met": met,
        **details,
    }


def agreement(records: Records, what: str, contender: str, at_most: float | None = None) -> dict[str, Any]:
    """Line that says how far a contender's result is from ours."""
    return line(what, records[contender].get("difference"), "relative", at_most=at_most,
                not_run=records[contender].get("not_run"))  # fmt: skip
