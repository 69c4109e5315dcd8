"""What a saved figure leaves behind."""

import json
import os
import subprocess
import sys

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.lines import Line2D

from evidence.effects import Effect
from evidence.figures import COLORS, curve_grid, forest, log_axes, save, subplots
from evidence.pictures import INK, INK_DARK, NARROW, stack_panels

FILES = {f"curve{end}" for end in (".svg", "-dark.svg", "-narrow.svg", "-narrow-dark.svg", ".png", ".csv", ".json")}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("LORANTK_RESULTS", str(tmp_path))
    monkeypatch.setenv("LORANTK_PARAMETERS", '{"rank": 8}')
    return tmp_path / "figures"


def draw():
    fig, ax = subplots()
    ax.plot([1, 2], [3, 4])
    ax.set_title("title")
    return fig


def test_a_figure_comes_with_its_numbers_and_its_provenance(results):
    data = pd.DataFrame({"x": [1, 2], "y": [1 / 3, 3e-16]})
    saved = save(draw(), "curve", data, alt="A line.", caption="Up.", tolerance={"y": {"rtol": 1e-3}})
    assert {p.name for p in results.iterdir()} == FILES
    assert (results / "curve.csv").read_text() == "x,y\n1,0.3333333\n2,0\n"  # 7 digits; below atol is 0
    record = json.loads((results / "curve.json").read_text())
    assert record["columns"]["y"] == {"rtol": 1e-3, "atol": 1e-12}
    assert record["parameters"] == {"rank": 8}
    assert {"torch", "numpy", "matplotlib", "lorantk"} <= set(record["versions"])
    assert INK_DARK in (results / "curve-dark.svg").read_text()
    assert INK not in (results / "curve-dark.svg").read_text()
    page = saved._repr_html_()
    assert page.count('alt="A line."') == 2
    assert "curve.csv" in page
    assert plt.get_fignums() == []


def test_a_figure_shows_itself_once_whatever_the_backend(results):
    program = (
        "import matplotlib; before = matplotlib.get_backend(); import evidence.figures; "
        "print(before == matplotlib.get_backend())"
    )
    for backend in ("agg", "svg"):
        run = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"MPLBACKEND": backend}, capture_output=True
        )
        assert run.stdout.decode().strip() == "True", run.stderr
    save(draw(), "curve", {"x": [1.0]}, alt="A line.")
    assert plt.get_fignums() == []  # nothing is left for a backend to show


def test_a_caption_is_text_until_it_becomes_html(results):
    page = save(draw(), "curve", {"x": [1.0]}, alt='"a" < b', caption="\\(a < b\\) & c")._repr_html_()
    assert 'alt="&quot;a&quot; &lt; b"' in page
    assert "\\(a &lt; b\\) &amp; c" in page


def test_same_input_same_bytes(results):
    first = {}
    for _ in range(2):
        save(draw(), "curve", {"x": [1.0]}, alt="A line.")
        content = {p.name: p.read_bytes() for p in results.iterdir()}
        first = first or content
    assert content == first


def test_nothing_half_written_is_left_behind(results, monkeypatch):
    save(draw(), "curve", {"x": [1.0]}, alt="A line.")
    before = {p.name: p.read_bytes() for p in results.iterdir()}
    monkeypatch.setenv("LORANTK_PARAMETERS", "not json")
    with pytest.raises(ValueError, match="Expecting value"):
        save(draw(), "curve", {"x": [2.0]}, alt="A line.")
    assert {p.name: p.read_bytes() for p in results.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alt": " "}, "alt must say what figure 'curve' shows"),
        ({"data": {"x": []}}, "data of figure 'curve' must hold"),
        ({"name": "größe"}, "name must be lower-case"),
        ({"name": "curve-"}, "name must be lower-case"),
        ({"name": "My Figure"}, "name must be lower-case"),
        ({"tolerance": {"z": {"rtol": 1}}}, "tolerance must name columns among"),
    ],
)
def test_bad_input_is_named(results, arguments, message):
    good = {"fig": draw(), "name": "curve", "data": {"x": [1.0]}, "alt": "A line."}
    with pytest.raises(ValueError, match=message):
        save(**(good | arguments))
    assert not results.exists() or not list(results.iterdir())


def test_short_log_axes_have_enough_labels():
    _, ax = subplots()
    ax.plot([1, 2, 4], [0.1, 0.2, 0.9])
    log_axes(ax, "x", "y", [1, 2, 4])
    low, high = ax.get_ylim()
    assert sum(low <= tick <= high for tick in ax.get_yticks()) >= 3
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "4"]


def test_small_multiples_hold_every_number_once():
    rows = [(t, e, m, x, x / 10) for t in "ab" for e in "cd" for m in ("one", "two") for x in (1, 2, 3)]
    data = pd.DataFrame(rows, columns=["task", "sweep", "arm", "rate", "mean"]).assign(std=0.1)
    styles = {"one": {"color": COLORS["full"]}, "two": {"color": COLORS["lora"]}}
    _, axes = curve_grid(data, "rate", row="task", column="sweep", line="arm", styles=styles)
    assert list(axes) == [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]
    for ax in axes.values():
        curves = [container.lines[0] for container in ax.containers]
        assert [curve.get_xdata().tolist() for curve in curves] == [[1, 2, 3]] * 2
        assert [curve.get_color() for curve in curves] == [COLORS["full"], COLORS["lora"]]
    assert axes["b", "c"].get_xlabel() == "rate"


def test_a_forest_fills_only_what_is_shown():
    _, ax = subplots()
    forest(ax, [Effect("up", 1, 0.5, 2, 5), Effect("flat", 0, -1, 1, 5), Effect("down", -1, -2, -0.5, 5)], "lora")
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() for dot in dots] == [COLORS["lora"], "none", COLORS["lora"]]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["up", "flat", "down"]


def test_panels_are_stacked_for_a_narrow_page_with_the_labels_they_shared():
    fig, axes = subplots(2, 2, figsize=(7, 4), sharey="row", sharex="col")
    axes[0, 0].set(title="one", ylabel="up")
    axes[0, 1].set(title="two")
    axes[1, 1].set(xlabel="along")
    stack_panels(fig)
    fig.draw_without_rendering()
    tops = [ax.get_position().y1 for ax in axes.ravel()]
    assert tops == sorted(tops, reverse=True)
    assert len({round(ax.get_position().x1, 2) for ax in axes.ravel()}) == 1
    assert fig.get_size_inches()[0] == NARROW
    assert axes[0, 1].get_ylabel() == "up"
    assert axes[1, 1].get_title() == "two"


def test_a_legend_moves_below_stacked_panels_and_keeps_the_looks_of_its_curves():
    fig, axes = subplots(1, 2)
    axes[0].errorbar([1, 2], [1, 2], [0.1, 0.1], ls="--", marker="D", label="one")
    axes[1].plot([1, 2], [1, 2], ":", label="two")
    axes[0].legend()
    stack_panels(fig)
    assert axes[0].get_legend() is None
    drawn = fig.legends[0].findobj(Line2D)
    assert "--" in {line.get_linestyle() for line in drawn}
    assert "D" in {line.get_marker() for line in drawn}
