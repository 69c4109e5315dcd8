"""The front page's calculator, its form taken from the page's source, in headless Chromium."""

import re
from pathlib import Path

import pytest

from lorantk.audit import plan
from lorantk.spectra import order_doubt

BOOK = Path(__file__).resolve().parents[2] / "book"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def form(page):
    form = re.search(r"<form id=\"calculator\".*?</form>", (BOOK / "index.md").read_text(), re.DOTALL)[0]
    scripts = [(BOOK / "_static" / "interactive" / name).read_text() for name in ("laws.js", "calculator.js")]
    page.set_content("".join([form, *(f"<script>{script}</script>" for script in scripts)]))


def answer(page, name):
    return page.locator(f"[data-answer={name}]").inner_text()


def numbers(text):
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


@pytest.mark.parametrize(
    ("rank", "alpha", "width", "dimension", "draw", "stabilised"),
    [
        (8, 16, 768, 320, "peft", False),
        (64, 16, 4096, 4096, "peft", True),
        (8, 8, 768, 20, "gaussian", False),
        (16, 24, 512, 40, "orthonormal", False),
        (4, 4, 64, 64, "orthonormal", False),
    ],
)
def test_answers_are_those_of_the_plan(page, rank, alpha, width, dimension, draw, stabilised):
    for name, value in {"rank": rank, "alpha": alpha, "width": width, "dimension": dimension, "other": 5}.items():
        page.locator(f"[name={name}]").fill(str(value))
    page.locator("[name=draw]").select_option(draw)
    page.locator("[name=stabilised]").set_checked(stabilised)
    p = plan(rank, alpha, width, draw, stabilised, dimension)
    for name, (_, high), d in (("everywhere", p.order, width), ("data", p.order_on_data, dimension)):
        text = answer(page, name)
        assert numbers(text)[0] == pytest.approx(high, rel=6e-3)
        certain = high <= 1 and (
            p.scaling <= 1
            if draw == "orthonormal"
            else draw == "gaussian" and order_doubt(rank, d, p.variance, p.scaling) <= 0.01
        )
        word = "not guaranteed" if high > 1 else "guaranteed" if certain else "expected"
        assert text.startswith(word)
    assert numbers(answer(page, "step")) == pytest.approx([p.sgd, p.adam], rel=6e-3)
    assert numbers(answer(page, "kept")) == pytest.approx(p.alpha_at(5), rel=6e-3)
    above = f"Above dimension {p.largest_dimension} it depends" in answer(page, "data")
    assert above == (p.largest_dimension < width)
    link = page.locator("a[href*=explorer]").get_attribute("href")
    assert (
        f"rank={rank}&alpha={alpha}&width={width}&dimension={dimension}&draw={draw}&stabilised={stabilised:d}" in link
    )


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("rank", "800", "The rank is at most the hidden size, 768."),
        ("other", "1000", "The other rank is at most the hidden size, 768."),
        ("rank", "2.5", "The rank must be a whole number above 0."),
        ("width", "", "The hidden size must be a whole number above 0."),
        ("alpha", "0", "Alpha must be a number above 0."),
    ],
)
def test_a_wrong_setting_is_named_and_no_answer_stays(page, field, value, said):
    page.locator(f"[name={field}]").fill(value)
    assert answer(page, "step") == said
    assert answer(page, "data") == answer(page, "everywhere") == answer(page, "kept") == ""


def test_more_tokens_than_inputs_span_no_more_than_all_directions(page):
    page.locator("[name=dimension]").fill("769")
    beyond = answer(page, "data")
    page.locator("[name=dimension]").fill("768")
    assert answer(page, "data") == beyond
    kept = answer(page, "step")
    page.locator("[name=dimension]").fill("")
    assert answer(page, "data") == "The number of tokens must be a whole number above 0."
    assert answer(page, "step") == kept


def test_every_field_has_a_label(page):
    unlabelled = "[...document.querySelectorAll('input, select')].filter(e => !e.labels.length && !e.ariaLabel).length"
    assert page.evaluate(unlabelled) == 0
