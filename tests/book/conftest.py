"""Headless Chromium for tests of the book's scripts, which need no rendered book."""

import os
import shutil

import pytest


@pytest.fixture(scope="module")
def page():
    """An empty page; skipped without Chromium, unless the book is required."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None and os.environ.get("LORANTK_REQUIRE_BOOK") != "1":
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser.new_page()
        browser.close()
