"""What is done to pages after Sphinx, and what a reader takes home."""

import base64
import re
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book"))

import downloads  # noqa: E402
import finish  # noqa: E402
import pdf  # noqa: E402
from chapters import Chapter, find_chapters, parse_overrides  # noqa: E402

from evidence.tables import Code  # noqa: E402

HIDDEN = (
    '<div class="cell tag_hide-input"><details class="hide above-input"><div class="cell_input"><pre>{code}</pre></div>'
    '</details><div class="cell_output">{output}</div></div>'
)


def mended(text):
    soup = BeautifulSoup(text, "html.parser")
    finish.mend(soup)
    return soup


def test_hidden_cells_in_a_row_share_one_bar_in_their_order():
    cells = [("one", ""), ("two", ""), ("three", "<p>shown</p>"), ("four", "")]
    soup = mended("".join(HIDDEN.format(code=code, output=output) for code, output in cells))
    bars = [[pre.text for pre in details.find_all("pre")] for details in soup.find_all("details")]
    assert bars == [["one", "two", "three"], ["four"]]
    assert soup.get_text().count("shown") == 1


def test_heads_and_roles_are_what_a_screen_reader_needs():
    soup = mended(
        '<script src="_static/scripts/fontawesome.js?digest=1"></script><div role="doc-biblioentry"></div>'
        '<div class="cell_output"><table><tr><th> </th><th>learning_rate</th></tr></table></div>'
    )
    assert soup.script is None
    assert soup.find("div")["role"] == "listitem"
    assert [head.text for head in soup.find_all("th")] == ["learning rate"]


def test_cells_of_a_wide_table_are_named_by_their_heads_unless_heads_have_two_levels():
    heads, cells = ("".join(f"<t{kind}>{i}</t{kind}>" for i in range(5)) for kind in "hd")
    wide = f"<table><thead><tr>{heads}</tr></thead><tbody><tr>{cells}</tr></tbody></table>"
    two = wide.replace("<thead>", f"<thead><tr>{heads}</tr>")
    narrow = wide.replace("<th>4</th>", "").replace("<td>4</td>", "")
    soup = mended(f'<div class="cell_output">{wide}{two}{narrow}</div>')
    named = [[cell.get("data-head") for cell in table.select("tbody td")] for table in soup.find_all("table")]
    assert named == [["0", "1", "2", "3", "4"], [None] * 5, [None] * 4]
    assert [table.get("class") for table in soup.find_all("table")] == [["listed"], None, None]


@pytest.fixture
def executed(tmp_path):
    """A notebook as papermill leaves it, with one figure beside it, and the folder it lies in."""
    folder = tmp_path / "notebooks"
    folder.mkdir(exist_ok=True)
    (tmp_path / "curve.png").write_bytes(b"a picture")
    page = (
        '<figure class="lorantk-figure"><picture><source srcset="../curve-narrow.svg"><img class="only-light" '
        'src="../curve.svg" alt="A line."></picture><img class="only-dark" src="../curve-dark.svg" alt="A line.">'
        '<figcaption>Up. <a href="../curve.csv">Numbers</a></figcaption></figure>'
    )
    cell = new_code_cell("save()", metadata={"papermill": {"start_time": "now"}, "tags": ["hide-input"]})
    cell.outputs = [new_output("execute_result", {"text/html": page}, metadata={"where": "/home"})]
    return new_notebook(
        cells=[cell],
        metadata={"papermill": {"output_path": "/home"}, "kernelspec": {"name": "python3", "display_name": "Python 3"}},
    ), folder


def test_a_notebook_taken_home_holds_its_pictures_and_nothing_of_this_machine(executed):
    taken = downloads.portable(*executed)
    page = taken.cells[0].outputs[0].data["text/html"]
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(source) for source in sources] == [b"a picture"]
    assert "srcset" not in page
    assert "href" not in page
    assert "Up." in page
    assert "/home" not in nbformat.writes(taken)
    assert taken.cells[0].metadata == {"tags": ["hide-input"]}


def test_a_chapter_ends_with_its_line_parameters_and_files():
    chapter = find_chapters(ROOT, ["4"])[0]
    section = downloads.rerun_section(chapter)
    assert "<code>make notebook N=04</code>" in section
    assert '<code>make notebook N=04 SET="width=2048 profile=quick"</code>' in section
    for name, value in chapter.defaults().items():
        cells = f'{Code(name).html()}</td><td data-head="value here">{Code(repr(value)).html()}'
        assert cells in section
    assert section.count("download=") == 2


@pytest.mark.parametrize("chapter", find_chapters(ROOT), ids=lambda chapter: chapter.name)
def test_what_a_page_offers_to_try_is_accepted(chapter):
    settings = downloads.example(chapter.defaults()).split()
    assert settings or not chapter.defaults()
    parse_overrides(chapter, settings)


@pytest.fixture
def named(tmp_path):
    """A chapter of a project whose _config.yml names a repository."""
    config = (ROOT / "_config.yml").read_text()
    address = "repository_url: https://github.com/someone/lorantk"
    (tmp_path / "_config.yml").write_text(config.replace('repository_url: ""', address))
    (tmp_path / "notebooks").mkdir(exist_ok=True)
    (tmp_path / "book" / "notebooks").mkdir(parents=True)
    return Chapter(tmp_path, "04-matrix-m")


def test_launch_links_wait_for_an_address(named):
    assert downloads.launch_links(Chapter(ROOT, named.name)) == {}
    assert list(downloads.launch_links(named).values()) == [
        "https://mybinder.org/v2/gh/someone/lorantk/main?urlpath=lab/tree/notebooks/04-matrix-m.md",
        "https://colab.research.google.com/github/someone/lorantk/blob/executed/04-matrix-m.ipynb",
    ]


def test_a_notebook_without_an_address_says_where_it_runs(named, executed, tmp_path):
    config = named.root / "_config.yml"
    config.write_text(config.read_text().replace("https://github.com/someone/lorantk", '""'))
    named.source.write_text("# M")
    nbformat.write(executed[0], named.executed)
    downloads.write_downloads(named, tmp_path)
    taken = nbformat.read(tmp_path / "downloads" / "04-matrix-m.ipynb", as_version=4)
    assert taken.cells[0].source == downloads.INSIDE


def test_the_last_section_stands_in_the_contents_of_its_page():
    soup = BeautifulSoup(
        '<nav aria-label="Page"><ul></ul></nav><article class="bd-article"><section></section></article>'
        '<nav class="page-toc"><ul></ul></nav>',
        "html.parser",
    )
    finish.add_section(soup, '<section id="more"><h2>More<a href="#more">#</a></h2></section>')
    assert [link["href"] for link in soup.select("nav li a")] == ["#more", "#more"]
    assert [link.get_text() for link in soup.select("nav li a")] == ["More", "More"]


def test_a_notebook_for_elsewhere_fetches_the_project_first(named, executed, tmp_path):
    notebook, _ = executed
    named.source.write_text("# M")
    nbformat.write(notebook, named.executed)
    downloads.write_downloads(named, tmp_path)
    taken = nbformat.read(tmp_path / "downloads" / "04-matrix-m.ipynb", as_version=4)
    assert "git clone -q --depth 1 --branch main https://github.com/someone/lorantk project" in taken.cells[0].source
    assert [cell.source for cell in taken.cells[1:]] == ["save()"]


def test_the_printed_book_has_every_page_of_the_contents(tmp_path):
    names = pdf.page_names(ROOT / "book" / "_toc.yml")
    assert names[0] == "index"
    assert {n for n in names if n.startswith("notebooks/")} == {f"notebooks/{c.name}" for c in find_chapters(ROOT)}
    with pytest.raises(FileNotFoundError, match="missing: \\['index'"):
        pdf.print_book(tmp_path, names, tmp_path / "book.pdf")


def test_a_chapter_has_its_number_on_paper_too():
    soup = BeautifulSoup(
        '<div id="jb-print-docs-body"><h1>Runs</h1></div>'
        '<article><h1><span class="section-number">3. </span>Runs</h1></article>', "html.parser"
    )  # fmt: skip
    finish.mend(soup)
    assert [title.get_text() for title in soup.find_all("h1")] == ["3. Runs", "3. Runs"]


def test_the_id_of_a_statement_leads_to_its_card():
    soup = BeautifulSoup("<article><code>eq-2</code> <code>finding-1</code> <code>ntk</code></article>", "html.parser")
    finish.link_statements(soup)
    assert [link["href"] for link in soup.find_all("a")] == ["claims.html#card-eq-2", "claims.html#card-finding-1"]
    assert soup.get_text() == "eq-2 finding-1 ntk"
