"""Growth of a made-up cost: twice the count, with known exponents."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.growth_figures import AXES, QUANTITIES, draw_growth, growth_curves, growth_exponents

GROWTH = {
    "curves": [
        {"axis": axis, "value": n, "seconds": 2.0 * n, "operations": n, "bytes": 3e6 * n, "held_bytes": 1e6 * n}
        for axis in AXES
        for n in (1, 2, 4)
    ],
    "lines": [
        {"what": f"exponent of {quantity} in {axis}", "measured": 1.25, "expected": 1.0}
        for quantity, axis in itertools.product(QUANTITIES, AXES)
    ],
}


def test_bytes_are_shown_in_megabytes() -> None:
    assert growth_curves(GROWTH).megabytes.tolist() == [3.0, 6.0, 12.0] * 4
    assert growth_exponents(GROWTH)["CPU time in n"] == (1.25, 1.0)


@pytest.mark.parametrize("quantity", list(QUANTITIES))
def test_the_count_meets_the_last_point(quantity: str) -> None:
    axes = draw_growth(GROWTH, quantity).axes
    assert len(axes) == 4
    for ax in axes:
        measured, expected = (line.get_ydata() for line in ax.lines)
        assert expected == pytest.approx(measured)  # the cost is proportional to the count
        assert ax.get_title() == "exponent 1.25, expected 1.00"
