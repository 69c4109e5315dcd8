"""What makes Sphinx start afresh: every page shows the contents, so an incremental run would leave old ones."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "book"))

from render import _contents


def test_the_contents_are_titles_and_their_order(tmp_path: Path) -> None:
    for name in ("notebooks", "book"):
        (tmp_path / name).mkdir()
    page, toc = tmp_path / "notebooks" / "01-a.md", tmp_path / "book" / "_toc.yml"
    page.write_text("---\n---\n\n# One\n\ntext\n")
    toc.write_text("root: index\n")
    before = _contents(tmp_path)
    page.write_text("---\n---\n\n# One\n\nother text\n")
    assert _contents(tmp_path) == before
    page.write_text("# Another\n")
    assert _contents(tmp_path) != before
    page.write_text("# One\n")
    toc.write_text("root: index\nparts: []\n")
    assert _contents(tmp_path) != before
