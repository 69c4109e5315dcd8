"""One table, three renderings, each of which escapes what it must, once."""

from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner

from evidence.__main__ import main
from evidence.tables import (
    Badge,
    Code,
    Link,
    Table,
    cell_html,
    cell_markdown,
    escape_markdown,
    interval,
    join,
    number,
    short,
    tally,
)

HOSTILE = '<b>a</b> | & "c"'


class Text(HTMLParser):
    """The text and the tags of a piece of HTML."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags = "", []
        self.feed(page)
        self.close()

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@given(st.text() | st.text("<>&;\"'/ab "))
@example(HOSTILE)
def test_any_text_comes_back_from_html_as_it_was(text):
    text = text.replace("\r", " ").replace("\0", " ")
    page = Text(cell_html((text, Badge(text, "holds"), Code(text), Link(text, text))))
    assert page.text == 4 * text
    assert [tag for tag, _ in page.tags] == ["span", "code", "a"]
    assert page.tags[2][1]["href"] == text


def test_markdown_reads_no_table_and_no_tag_whatever_a_cell_holds():
    line = cell_markdown((HOSTILE, Link(HOSTILE, "to.md"), Badge("holds", "holds")))
    assert line.replace("\\|", "").count("|") == 0
    assert line.count("\\<b>") == 2
    assert line.endswith("](to.md)**holds**")
    assert escape_markdown("a*b`c") == "a\\*b\\`c"


def test_a_terminal_shows_the_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    Table(("one", "two"), [(("[red] ", Badge("holds", "holds")), Link("03", "there.md"))]).show("title")
    said = capsys.readouterr().out
    assert "[red] holds" in said
    assert "there" not in said


def test_verdicts_are_counted_in_the_order_of_their_styles():
    styles = {"holds": "holds", "fails": "fails", "definition": "definition"}
    assert tally(["fails", "holds", "fails"], styles) == (
        *("1 ", Badge("holds", "holds")),
        *(", ", "2 ", Badge("fails", "fails")),
    )
    assert join([]) == ()


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0, 1, "0 to 1"),
        (0, None, "at least 0"),
        (-float("inf"), 2, "at most 2"),
        (None, None, "anything"),
        (1 - 1e-6, 1 + 1e-6, "1 ± 1e-06"),
    ],
)
def test_intervals_in_words(low, high, words):
    assert interval(low, high) == words


def test_numbers_that_are_round_off_or_none_say_so():
    assert [number(v) for v in (3e-16, 1.23456, None)] == ["below 1e-12", "1.23", "no number"]


def test_both_tables_in_a_terminal(root, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    app = Typer()
    app.command()(main)
    result = CliRunner().invoke(app, [str(root / "tests" / "reference")])
    assert result.exit_code == 0
    assert "thm-nsd" in result.output
    assert "finding-5" in result.output
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
    refused = CliRunner().invoke(app, [str(tmp_path)])
    assert refused.exit_code == 2
    assert "directory must hold claims and findings" in " ".join(refused.output.split())


def test_cells_of_data_tables_are_short():
    cells = [0.214737, 1008.0, 12345.6, 8.0, 1e-7, float("nan"), "text", 3]
    assert [short(cell) for cell in cells] == ["0.2147", "1008", "12,346", "8", "1e-07", "n/a", "text", "3"]
