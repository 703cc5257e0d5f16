"""A real browser, and pages that are watched: nothing said on the console, nothing asked of a network."""

from pathlib import Path

import pytest

from tests.browser.chromium import CHROMIUM, FLAGS, READY, WAIT


@pytest.fixture(scope="module")
def browser():
    """Chromium, once per file. Skips without it or without playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser tests")
    if not Path(CHROMIUM).exists():
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def watched(browser):
    """watched(url, ...) -> page, drawn. Afterwards nothing may have been said or asked for, except of `own`, an address's beginning.

    `errors`: only these count of what is said on the console (TensorBoard's own pages say more).
    """
    seen, contexts = [], []

    def go(url, ready=READY, own="file://", errors=False, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        page = context.new_page()
        page.on("console", lambda m: seen.append(f"{m.type}: {m.text}") if m.type == "error" or not errors else None)
        page.on("pageerror", lambda e: seen.append(f"error: {e}"))
        page.on("dialog", lambda d: (seen.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", lambda r: None if r.url.startswith((own, "blob:", "data:")) else seen.append(f"request: {r.url}"))
        page.goto(url)
        if ready:
            page.wait_for_selector(ready, timeout=WAIT, state="attached")
        contexts.append(context)
        return page

    yield go
    for context in contexts:
        context.close()
    assert seen == []
