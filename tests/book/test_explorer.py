"""The explorer, its page made from its source, in headless Chromium: what it says, its address, keys and touches."""

import json
import re
from pathlib import Path

import pytest
import torch

from lorantk import cosine_law, information_bits, renyi_entropy
from lorantk.audit import plan

BOOK = Path(__file__).resolve().parents[2] / "book"
SPECTRA = {"width": 64, "full": [9.0, 3.0, 0.5], "lora": {"1": [0.6, 0.01, 0.001], "8": [1.0, 0.4, 0.1]}}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page as a file, without its prose: what it needs is there without a server."""
    blocks = re.findall(r"^<(?:form|p|div).*?(?=\n\n)", (BOOK / "explorer.md").read_text(), re.DOTALL | re.MULTILINE)
    scripts = [(BOOK / "_static" / "interactive" / name).read_text() for name in ("laws.js", "explorer.js")]
    data = f'<script type="application/json" id="digits-spectra">{json.dumps(SPECTRA)}</script>'
    style = f"<style>{(BOOK / '_static' / 'custom.css').read_text()}</style>"
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    parts = [style, *blocks, data, *(f"<script>{script}</script>" for script in scripts)]
    path.write_text("<!DOCTYPE html><meta charset=utf-8>" + "\n".join(parts))
    return path.as_uri()


@pytest.fixture
def explore(page, address):
    """Opens the explorer at a setting."""

    def go(setting=""):
        page.goto("about:blank")
        page.goto(f"{address}#{setting}")
        return page

    return go


def said(page, figure):
    """The numbers in bold in a figure's words."""
    values = page.locator(f"#{figure} .words b").all_inner_texts()
    return [float(value.replace("−", "-")) for value in values]


def ratios(page):
    return [float(value) for value in page.locator("#reading b").all_inner_texts()]


def test_a_shared_address_gives_the_setting_and_its_laws(explore):
    page = explore("width=512&rank=5&alpha=20&draw=gaussian&dimension=100&cosine=0.5&tau=0.1&normalised=0")
    p = plan(5, 20.0, 512, "gaussian", dimension=100)
    assert ratios(page) == pytest.approx([p.order[1], p.order_on_data[1]], rel=6e-3)
    assert said(page, "spectrum") == pytest.approx([p.order[1] - 1, p.order_on_data[1] - 1], rel=6e-3)
    assert said(page, "plane") == [p.largest_dimension]
    assert said(page, "angles") == pytest.approx(cosine_law(5, 0.5), rel=6e-3)
    p = plan(8, 20.0, 64, "gaussian")  # the network's own width, and the nearest rank that was measured
    full = torch.tensor(SPECTRA["full"], dtype=torch.float64)
    lora = torch.tensor(SPECTRA["lora"]["8"], dtype=torch.float64) * p.scaling**2 * p.variance * 64
    bits = [information_bits(s, regularization=0.9).item() for s in (full, lora)]
    assert said(page, "eigenvalues") == pytest.approx(bits, rel=6e-3)
    assert said(page, "entropy") == pytest.approx([renyi_entropy(s, 2.0).item() for s in (full, lora)], rel=6e-3)
    assert page.locator("output[for=set-rank]").inner_text() == "5"
    assert page.locator("#set-rank").get_attribute("aria-valuetext") == "5"


def test_keys_move_a_slider_and_the_address_keeps_what_they_did(explore):
    page = explore("rank=8")
    page.locator("#set-rank").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    assert page.evaluate("location.hash") == "#rank=12"
    page.wait_for_function("document.querySelector('#plane .words').textContent.startsWith('At rank 12')")
    page.reload()
    assert page.locator("output[for=set-rank]").inner_text() == "12"
    assert ratios(page)[0] == pytest.approx(plan(12, 16.0, 768).order[1], rel=6e-3)


def test_a_touch_in_the_plane_goes_there(explore):
    page = explore()
    plane = page.locator("#plane > svg")
    box = plane.bounding_box()
    x, y = 0.6 * box["width"], 0.4 * box["height"]
    plane.click(position={"x": x, "y": y})
    found = dict(pair.split("=") for pair in page.evaluate("location.hash.slice(1)").split("&"))
    assert 10 < int(found["rank"]) < 100
    assert 10 < int(found["dimension"]) < 200
    page.wait_for_function(f"document.querySelector('#plane .words').textContent.startsWith('At rank {found['rank']}')")
    plane, here = plane.bounding_box(), page.locator("#plane .here").bounding_box()
    assert here["x"] + here["width"] / 2 - plane["x"] == pytest.approx(x, abs=0.02 * box["width"])
    assert here["y"] + here["height"] / 2 - plane["y"] == pytest.approx(y, abs=0.02 * box["height"])


@pytest.mark.parametrize(
    "setting", ["rank=-3&width=abc", "draw=<b>&alpha=0", "cosine=2&level=-1", "dimension=1.5&tau=x"]
)
def test_an_address_that_makes_no_sense_gives_the_start(explore, setting):
    assert ratios(explore(setting)) == ratios(explore())


def test_rank_and_dimension_are_at_most_the_width(explore):
    page = explore("width=16&rank=64&dimension=500")
    assert page.locator("output[for=set-rank]").inner_text() == "16"
    assert page.locator("output[for=set-dimension]").inner_text() == "16"


@pytest.mark.parametrize("draw", ["peft", "gaussian", "orthonormal", "level"])
def test_every_draw_is_drawn(explore, draw):
    trouble = []
    page = explore(f"draw={draw}&rank=16")
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.locator("#again").click()
    page.wait_for_timeout(100)
    assert trouble == []
    pictures = page.locator(".charts svg[role=img]")
    assert pictures.count() == 5
    for picture in pictures.all():
        assert "NaN" not in picture.inner_html()
        assert len(picture.get_attribute("aria-label")) > 30
    assert page.locator("#set-level").is_disabled() == (draw != "level")
    assert (page.locator("#spectrum svg path.lora:not(.thick)").count() == 16) == (draw != "orthonormal")
