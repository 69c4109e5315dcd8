"""Links to the glossary: the first use of each word on a page, and nothing else."""

import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book"))

from glossary import entries, explain  # noqa: E402

GLOSSARY = """<dl class="glossary"><dt id="term-kernel">tangent kernel<a class="headerlink">#</a></dt>
<dt id="term-NTK">NTK</dt><dd><p>A product of gradients.</p></dd>
<dt id="term-rank">rank</dt><dd><p>Of A.</p></dd></dl>"""


@pytest.fixture
def words():
    return entries(BeautifulSoup(GLOSSARY, "html.parser"))


def explained(words, text):
    soup = BeautifulSoup(f"<article>{text}</article>", "html.parser")
    explain(soup, words, "../notation.html")
    return soup


def test_the_first_use_leads_to_the_glossary_and_shows_its_meaning(words):
    soup = explained(words, "<p>Tangent kernels and <em>rank</em>; the NTK, rank 2 and tangent kernel.</p>")
    links = soup.find_all("a")
    assert [(link.text, link["href"], link["data-tip"]) for link in links] == [
        ("Tangent kernels", "../notation.html#term-kernel", "A product of gradients."),
        ("rank", "../notation.html#term-rank", "Of A."),
    ]
    assert soup.text == "Tangent kernels and rank; the NTK, rank 2 and tangent kernel."


@pytest.mark.parametrize(
    "text",
    [
        "<h2>rank</h2>",
        "<p><code>rank</code></p>",
        "<p><a href='x'>rank</a></p>",
        '<p><span class="math">rank</span></p>',
        "<p>rank-stabilised, franks, low-rank</p>",
        '<div class="card-of"><dl><dd>rank</dd></dl></div>',
    ],
)
def test_code_formulas_links_heads_and_other_words_stay(words, text):
    assert explained(words, text).find("a", class_="word") is None


def test_every_page_starts_anew(words):
    assert explained(words, "<p>rank</p>").a
    assert explained(words, "<p>rank</p>").a
