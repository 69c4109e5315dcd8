"""Each rendered page in headless Chromium with the network off, on a desktop and on a phone, light and dark."""

import os
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
HTML = Path(os.environ.get("LORANTK_HTML", ROOT / "book" / "_build" / "html"))
SHOTS = os.environ.get("LORANTK_SHOTS")  # a folder for a picture of each page, on each screen, in each theme
PAGES = sorted(p.stem for p in (ROOT / "notebooks").glob("*.md"))
PATHS = [
    "index.html",
    "explorer.html",
    "claims.html",
    "notation.html",
    "api.html",
    "code.html",
    "tests.html",
    "bibliography.html",
    *(f"notebooks/{page}.html" for page in PAGES),
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REQUIRED = os.environ.get("LORANTK_REQUIRE_BOOK") == "1"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

CLIPPED_FORMULAS = """() => {
  document.querySelectorAll('details').forEach(d => { d.open = true });
  const wider = [...document.querySelectorAll('article mjx-container:not([display="true"])')].filter(m => {
    let block = m.parentElement;
    while (getComputedStyle(block).display.startsWith('inline')) block = block.parentElement;
    const room = block.closest('.table-wrapper, .claim-table') ? Infinity : block.getBoundingClientRect().width;
    return m.firstElementChild.getBoundingClientRect().width > room + 18;  // the padding beside a paragraph
  });
  return wider.map(m => m.parentElement.textContent.slice(0, 80));
}"""

CUT_CODE = """() => {
  document.querySelectorAll('details').forEach(d => { d.open = true });
  const all = [...document.querySelectorAll('article div.highlight pre')];
  const cut = all.filter(e => e.scrollWidth > e.clientWidth + 1);
  return cut.map(e => e.textContent.slice(0, 80));
}"""

ONE_OF_A_KIND = """() => {
  const seen = new Set();
  for (const formula of document.querySelectorAll('article mjx-container')) {
    const kind = formula.getAttribute('display') + ' in ' + formula.parentElement.tagName;
    if (seen.has(kind)) formula.replaceChildren('x');
    seen.add(kind);
  }
  for (const token of document.querySelectorAll('article :is(pre, dt.sig) span[class]')) {
    if (token.children.length) continue;
    const kind = token.className + ' in ' + token.closest('pre, dt').parentElement.className;
    if (seen.has(kind)) token.replaceWith(token.textContent);
    seen.add(kind);
  }
}"""

HEAVIEST = 2.5e6
"""Bytes that a page may ask for on its first load, at most."""

SCREENS = {"desktop": (1280, ("light", "dark")), "phone": (390, ("dark", "light"))}
"""Device -> its width, and the two themes: in the first a page is put before axe whole, in the second its contrasts are
measured again.
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="Chromium is not installed"),
    pytest.mark.skipif(not HTML.exists() and not REQUIRED, reason="the book has not been built: make book"),
]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield instance
        instance.close()


def open_page(browser, site, path, *, width=1280, scheme="light"):
    """The page after MathJax has finished, with what it asked other hosts for and what it wrote to the console."""
    viewport = {"width": width, "height": 900}
    context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    trouble = []

    def gate(route):
        if route.request.url.startswith((site, "data:", "blob:")):
            route.continue_()
        else:
            trouble.append(f"request to another host: {route.request.url}")
            route.abort()

    page.route("**/*", gate)
    page.weight = 0
    page.on("response", lambda r: setattr(page, "weight", page.weight + int(r.headers.get("content-length", 0))))
    page.on("console", lambda m: trouble.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(f"script: {error}"))
    page.on("response", lambda r: trouble.append(f"status {r.status}: {r.url}") if r.status >= 400 else None)
    page.goto(site + path)
    page.wait_for_function("!window.MathJax || (MathJax.startup && MathJax.startup.promise)")
    page.evaluate("window.MathJax ? MathJax.startup.promise : null")
    return context, page, trouble


@pytest.fixture(scope="module", params=[(path, device) for path in PATHS for device in SCREENS], ids="-".join)
def opened(request, browser, site):
    """(path, device, page, trouble): each page opened once a device, for the tests below in their order."""
    path, device = request.param
    width, (scheme, _) = SCREENS[device]
    context, page, trouble = open_page(browser, site, path, width=width, scheme=scheme)
    yield path, device, page, trouble
    context.close()


def test_page_renders_whole_without_a_network(opened, root):
    path, _, page, trouble = opened
    assert trouble == []
    page.wait_for_load_state("networkidle")
    assert page.weight <= HEAVIEST, f"the first load asks for {page.weight / 1e6:.2f} MB"
    text = page.evaluate(
        "() => { const a = document.querySelector('article').cloneNode(true);"
        "a.querySelectorAll('pre, code, mjx-container, script').forEach(e => e.remove()); return a.textContent }"
    )
    assert not re.search(r"\\[a-zA-Z]{2,}|\\\(|\$\$|\{(?:eq|cite|prf|doc|ref)[:}]", text), (
        "raw TeX or markup in the text"
    )
    assert page.locator("mjx-merror").count() == 0
    assert page.locator("article div.output.stderr").count() == 0, "a warning or a progress bar on the page"
    if path.startswith("notebooks/"):
        source = (root / Path(path).with_suffix(".md")).read_text()
        assert page.locator("article mjx-container").count() >= page.locator("article .math").count()
        assert page.locator("figure.lorantk-figure").count() >= 1
        assert page.locator(".claim").count() >= len(re.findall(r"\.save\(\)", source))
    broken = page.evaluate(
        "async () => { const all = [...document.querySelectorAll('article img')];"
        "all.forEach(i => i.loading = 'eager'); await Promise.all(all.map(i => i.decode().catch(() => 0)));"
        "return all.filter(i => !i.naturalWidth || !i.alt).map(i => i.src) }"
    )
    assert broken == []


def test_page_fits_its_screen_and_shows_one_variant_of_each_figure(opened):
    path, device, page, _ = opened
    first, other = SCREENS[device][1]
    for scheme, hidden in ((other, first), (first, other)):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
        for figure in page.locator("figure.lorantk-figure").all():
            assert figure.locator(f"img.only-{scheme}").is_visible()
            assert not figure.locator(f"img.only-{hidden}").is_visible()
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 1, f"the page is {overflow} px wider than the screen"
        if SHOTS:
            name = path.removesuffix(".html").replace("/", "-")
            page.screenshot(path=Path(SHOTS) / f"{name}-{device}-{scheme}.png", full_page=True)
    assert page.evaluate(CLIPPED_FORMULAS) == [], "an inline formula is wider than its paragraph"
    assert device == "phone" or page.evaluate(CUT_CODE) == [], "code is cut at 1280 px"


def test_axe_finds_no_violation_in_either_theme(opened):
    from axe_playwright_python.sync_playwright import Axe

    _, device, page, _ = opened
    scheme, other = SCREENS[device][1]
    page.emulate_media(color_scheme=scheme)
    page.evaluate(ONE_OF_A_KIND)  # a colour is measured once a page, not at each of a thousand tokens and formulas
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    page.emulate_media(color_scheme=other)
    page.wait_for_function(f"document.documentElement.dataset.theme === '{other}'")
    contrasts = {"resultTypes": ["violations"], "runOnly": ["color-contrast", "link-in-text-block"]}
    found += Axe().run(page, options=contrasts).response["violations"]
    assert [(v["id"], node["html"][:150], node["failureSummary"]) for v in found for node in v["nodes"]] == []


def test_the_page_of_a_chapter_offers_its_source_and_a_notebook_that_stands_alone():
    for page in PAGES:
        assert (HTML / "downloads" / f"{page}.md").read_text() == (ROOT / "notebooks" / f"{page}.md").read_text()
        text = (HTML / "downloads" / f"{page}.ipynb").read_text()
        notebook = nbformat.reads(text, as_version=4)
        assert set(notebook.metadata) <= {"kernelspec", "language_info"}
        assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
        assert str(ROOT) not in text
        pictures = re.findall(r'<img [^>]*src=\\"(.{30})', text)
        assert pictures
        assert all(start.startswith("data:image/png;base64,") for start in pictures)
        offered = re.findall(r'href="(\.\./downloads/[^"]+)"', (HTML / "notebooks" / f"{page}.html").read_text())
        assert offered == [f"../downloads/{page}.md", f"../downloads/{page}.ipynb"]


def test_paper_has_proofs_open_and_no_code_cut(browser, site):
    context, page, _ = open_page(browser, site, f"notebooks/{PAGES[0]}.html", width=720)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("[...document.querySelectorAll('article details')].filter(d => !d.open).length") == 0
    cut = "[...document.querySelectorAll('article pre')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.evaluate(cut) == 0
    context.close()


@pytest.mark.parametrize("path", PATHS)
def test_internal_links_lead_somewhere(path):
    links = {a["href"] for a in BeautifulSoup((HTML / path).read_text(), "html.parser").select("a[href]")}
    site, dead = "http://book/", []
    for link in links:
        target = urlsplit(urljoin(f"{site}{path}", link))
        if f"{target.scheme}://{target.netloc}/" != site:
            continue
        file = HTML / (unquote(target.path).lstrip("/") or "index.html")
        anchor = "" if "=" in target.fragment else unquote(target.fragment)  # a setting of the explorer is no place
        if not file.exists() or (anchor and f'id="{anchor}"' not in file.read_text()):
            dead.append(link)
    assert links
    assert dead == []


def test_a_link_to_a_proof_opens_its_dropdown(browser, site):
    context, page, _ = open_page(browser, site, "claims.html")
    page.locator('article a[href*="#proof-thm-nsd"]').first.click()
    page.wait_for_load_state()
    assert page.url.endswith("#proof-thm-nsd")
    assert page.evaluate("document.getElementById('proof-thm-nsd').closest('details').open")
    context.close()


def test_a_number_in_a_title_is_that_of_the_line_that_reruns_the_chapter():
    for page in PAGES:
        title = BeautifulSoup((HTML / "notebooks" / f"{page}.html").read_text(), "html.parser").h1
        number = title.select_one(".section-number")
        assert number is None or int(number.text.strip(". ")) == int(page[:2])


def test_every_source_has_its_page():
    assert [path for path in PATHS if not (HTML / path).exists()] == []
