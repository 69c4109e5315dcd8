"""The whole book as one PDF: headless Chromium prints each page, in the order of the table of contents."""

from __future__ import annotations

import io
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FOOTER = '<div style="font-size:8px;width:100%;text-align:center"><span class="pageNumber"></span></div>'
READY = """async () => {
  await (window.MathJax && MathJax.startup ? MathJax.startup.promise : null);
  document.documentElement.dataset.theme = "light";
  document.querySelectorAll("details").forEach(d => { d.open = true; });
  const images = [...document.querySelectorAll("article img.only-light, article img:not(.only-dark)")];
  images.forEach(i => { i.loading = "eager"; });
  await Promise.all(images.map(i => i.decode()));
}"""


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def page_names(toc: Path) -> list[str]:
    """Pages of the book in the order of its table of contents, without suffix."""
    table = yaml.safe_load(toc.read_text())
    return [table["root"], *(chapter["file"] for part in table["parts"] for chapter in part["chapters"])]


def print_book(html: Path, names: list[str], target: Path) -> int:
    """Write the pages `names` of the rendered book `html` to `target`; return the number of sheets.

    Raises
    ------
    FileNotFoundError
        If there is no Chromium, or a page was not rendered.
    """
    from playwright.sync_api import sync_playwright
    from pypdf import PdfWriter

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    missing = [name for name in names if not (html / f"{name}.html").exists()]
    if chromium is None or missing:
        raise FileNotFoundError(f"printing needs Chromium and a rendered book; missing: {missing or 'chromium'}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    book = PdfWriter()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(color_scheme="light")
        for name in names:
            page.goto(f"http://127.0.0.1:{server.server_port}/{name}.html")
            page.evaluate(READY)
            margin = {"top": "16mm", "bottom": "16mm", "left": "14mm", "right": "14mm"}
            sheets = page.pdf(
                format="A4", margin=margin, print_background=True, display_header_footer=True,
                header_template="<span></span>", footer_template=FOOTER,
            )  # fmt: skip
            book.append(io.BytesIO(sheets), outline_item=page.title().split(" — ")[0])
        browser.close()
    server.shutdown()
    book.compress_identical_objects()
    target.parent.mkdir(parents=True, exist_ok=True)
    book.write(target)
    return len(book.pages)


if __name__ == "__main__":
    output = ROOT / "book" / "_build" / "lorantk.pdf"
    count = print_book(ROOT / "book" / "_build" / "html", page_names(ROOT / "book" / "_toc.yml"), output)
    print(f"{count} sheets: {output}")
