"""The trace page in a real browser: draws offline without a word on the console, zooms, hides, sorts; on a phone and in the dark."""

import os
from pathlib import Path

import pytest

from perfscope.trace import diff_page
from perfscope.trace.diff import diff
from perfscope.trace.page import of_trace
from tests.browser.chromium import SCREENSHOTS, until
from tests.trace_fuzz import classic, events, rich

TRACES = Path(os.environ.get("PERFSCOPE_DATA", "/nonexistent")) / "traces"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
pytest.importorskip("plotly", reason="the page carries plotly's bundle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("traces")
    some = events(4)
    (made / "small.json").write_bytes(classic(some))
    (made / "cpu.json").write_bytes(classic([e for e in some if e.get("cat") in ("cpu_op", "user_annotation", None)]))
    (made / "hostile.json").write_bytes(classic([{**e, "name": HOSTILE} if e.get("cat") in ("kernel", "cpu_op") else e for e in some]))
    for path in list(made.glob("*.json")):
        path.with_suffix(".html").write_text(of_trace(path, cache=False), encoding="utf-8")
    (made / "rich.json").write_bytes(classic(rich()))
    (made / "rich.html").write_text(of_trace(made / "rich.json", cache=False), encoding="utf-8")
    slow = [{**e, "dur": "55.003"} if e["name"].startswith("cutlass") else e for e in some]
    (made / "slow.json").write_bytes(classic(slow))
    (made / "diff.html").write_text(diff_page.build(diff(made / "small.json", made / "slow.json")), encoding="utf-8")
    (made / "diff-hostile.html").write_text(diff_page.build(diff(made / "small.json", made / "hostile.json"), HOSTILE), encoding="utf-8")
    if TRACES.is_dir():
        (made / "a100.html").write_text(of_trace(TRACES / "a100-resnet50-ddp-nchw.json.gz", cache=False), encoding="utf-8")
    return made


@pytest.fixture
def visit(watched, folder):
    """visit(name) -> page, drawn and watched."""
    def go(name, **options):
        page = watched((folder / f"{name}.html").as_uri(), **{"viewport": {"width": 1280, "height": 1000}, **options})
        if SCREENSHOTS:
            page.screenshot(path=f"{SCREENSHOTS}/trace-{name}.png", full_page=True)
        return page

    return go


def span(page):
    return page.evaluate("document.querySelector('#timeline .canvas')._fullLayout.xaxis.range.slice()")


def drag(page, start, end):
    """Drags over a part of the time line; fractions of its width."""
    page.locator("#timeline .canvas").scroll_into_view_if_needed()
    box = page.locator("#timeline .nsewdrag").first.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], y, steps=6)
    page.mouse.up()


@pytest.mark.parametrize("name", ["small", "a100"])
def test_time_line_zooms_and_comes_back(visit, folder, name):
    if not (folder / f"{name}.html").exists():
        pytest.skip("$PERFSCOPE_DATA has no traces")
    page = visit(name)
    low, high = span(page)
    assert low == 0 and page.locator("#timeline .barlayer .point").count() > 10
    drag(page, 0.4, 0.6)
    until(page, "document.querySelector('#timeline .canvas')._fullLayout.xaxis.range[0] > 0")
    a, b = span(page)
    assert a == pytest.approx(0.4 * high, abs=0.03 * high) and b == pytest.approx(0.6 * high, abs=0.03 * high)
    box = page.locator("#timeline .nsewdrag").first.bounding_box()
    page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    until(page, "document.querySelector('#timeline .canvas')._fullLayout.xaxis.range[0] <= 0")
    assert span(page) == [low, high]


def test_views_and_legend(visit):
    page = visit("small")
    title = page.locator("#timeline .xtitle")
    hidden = page.locator("#timeline .legendtext").first.text_content()
    page.locator("#timeline .legendtoggle").first.click()
    until(page, "document.querySelector('#timeline .canvas').data.some(t => t.visible === 'legendonly')")
    assert page.evaluate("document.querySelector('#timeline .canvas').data.filter(t => t.visible === 'legendonly').map(t => t.name)") == [hidden]
    first = title.text_content()
    assert first == "ms since the start of ProfilerStep#1" and page.locator("#split .barlayer .point").count() > 4


def test_tables_sort(visit):
    page = visit("small")
    kernels = lambda: page.evaluate("[...document.querySelector('#kernels table').tBodies[0].rows].map(r => Number(r.cells[3].dataset.v))")  # noqa: E731
    page.locator("#kernels th", has_text="ms").click()
    up = kernels()
    page.locator("#kernels th", has_text="ms").click()
    assert len(up) == 4 and up == sorted(up) and kernels() == sorted(up, reverse=True)
    page.locator("#steps th button").nth(0).click()
    page.locator("#steps th button").nth(0).click()
    assert page.locator("#steps tbody td").first.inner_text() == "Step#3"
    assert page.locator("#ops tbody tr").count() == 3


def test_hostile_names_are_text(visit):
    page = visit("hostile")
    assert page.locator("img").count() == 0 and HOSTILE in page.locator("#kernels tbody td").first.inner_text()
    page.locator("#timeline .barlayer .point").nth(2).hover(force=True)


def test_without_a_gpu_it_is_a_note(visit):
    page = visit("cpu")
    assert page.locator("article .alarm").count() == 0 and "no kernel was recorded" in page.locator("#warnings").inner_text()
    assert page.locator("#timeline .barlayer .point").count() > 0 and page.locator("#split").count() == 0


@pytest.mark.parametrize("name", ["small", "rich", "diff"])
@pytest.mark.parametrize("options", [{"viewport": {"width": 390, "height": 844}}, {"color_scheme": "dark"}])
def test_phone_and_dark(visit, options, name):
    page = visit(name, **options)
    assert page.evaluate("document.documentElement.scrollWidth") <= options.get("viewport", {"width": 1280})["width"]
    assert page.evaluate("document.documentElement.dataset.theme") == options.get("color_scheme", "light")


def test_everything_that_was_recorded_is_shown(visit):
    page = visit("rich")
    for section in ("next", "critical", "tensor-cores", "roofline", "modules", "compiled", "memory"):
        assert page.locator(f"#{section}").is_visible(), section
    for section in ("roofline", "memory"):
        page.locator(f"#{section} .canvas").scroll_into_view_if_needed()
        until(page, f"document.querySelector('#{section} .main-svg') !== null")
    points = page.evaluate("document.querySelector('#memory .canvas').data[0].y")
    assert max(points) == 12 and "Look for what is kept" in page.locator("#next").inner_text()
    assert page.locator("#modules tbody td").all_inner_texts()[0] == "Net_0" and "· Linear_0" in page.locator("#modules tbody").inner_text()
    page.locator("#roofline th", has_text="ms").click()
    assert page.locator("#roofline tbody tr").count() == 1


def test_page_of_a_comparison(visit):
    page = visit("diff")
    page.locator("#step button", has_text="from A to B").click()
    until(page, "document.querySelector('#step .canvas').data[0].type === 'waterfall'")
    page.locator("#ops .canvas").scroll_into_view_if_needed()
    until(page, "document.querySelector('#ops .main-svg') !== null")
    assert page.locator("#ops tbody tr").first.locator("td").all_inner_texts()[:3] == ["aten::cudnn_convolution", "2 of 2", "slower"]
    page.locator("#kernels th", has_text="B ms").click()
    assert page.locator("#kernels tbody tr").count() == 1
    page = visit("diff-hostile")
    assert page.locator("img").count() == 0 and HOSTILE in page.locator("#kernels tbody").inner_text()
