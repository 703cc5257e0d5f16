"""The report's page in a real browser: draws, stays offline, answers real clicks. Skipped without chromium."""

import json

import pytest

from perfscope import sections
from perfscope.record import load, to_dict
from perfscope.report import render, report
from tests.browser.chromium import RECORDS, WAIT

pytest.importorskip("plotly", reason="the page carries plotly's bundle")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser tests")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pages")
    for path in RECORDS.glob("*.json"):
        report(load(path), made / f"{path.stem}.html")
    return made


@pytest.fixture
def visit(watched, folder):
    """visit(name, ...) -> page, drawn and watched."""
    return lambda name, **options: watched((folder / f"{name}.html").as_uri(), **options)


def trace_states(page, section):
    return page.evaluate(f"document.querySelector('#{section} .canvas').data.map(t => t.visible ?? true)")


@pytest.mark.parametrize("name", ["cpu", "gpu", "partial", "hostile", "diagnose", "fix"])
def test_page_draws_without_errors_or_requests(visit, name, capsys):
    page = visit(name)
    drawn, rest = page.evaluate("['drawn', 'all'].map((k) => Number(document.documentElement.dataset[k]))")
    with capsys.disabled():
        print(f"\n{name}: first screen drawn after {drawn:.0f} ms (target 2000), everything after {rest:.0f} ms")
    assert 0 < drawn <= rest < 20_000
    assert page.locator("#trouble").is_hidden()
    drawn_figures = page.locator(".canvas .main-svg").count()
    assert drawn_figures > 0 or name == "partial"
    asked = page.locator("figure.plot:visible").count()
    assert page.locator("figure.plot:visible .canvas.js-plotly-plot").count() == asked


def test_hostile_names_are_shown_as_text(visit):
    page = visit("hostile")
    assert "<script>alert(1)</script>" in page.inner_text("h1")
    assert page.locator("img").count() == 0
    assert "<script>alert(1)</script>" in page.locator("#chart .legendtext").first.text_content()


def test_legend_hides_a_part(visit):
    page = visit("cpu")
    before = trace_states(page, "chart")
    assert all(v is True for v in before)
    page.locator("#chart .legendtoggle").nth(1).click()
    sync_api.expect(page.locator("#chart .legend .traces").nth(1)).to_have_css("opacity", "0.5")
    assert trace_states(page, "chart") == [True, "legendonly", *before[2:]]
    page.locator("#chart .segments button", has_text="share").click()  # and stays hidden in the next view
    assert trace_states(page, "chart")[1] == "legendonly"


def test_views_switch_the_axis(visit):
    page = visit("gpu")
    for name in ("ms per step", "share", "µs per sample"):
        page.locator("#chart .segments button", has_text=name).click()
        unit = {"share": "share of the step, %", "ms per step": "time per step, ms"}.get(name, "time per sample, µs")
        sync_api.expect(page.locator("#chart .xtitle")).to_have_text(unit)
        assert page.locator("#chart .segments [aria-pressed=true]").text_content() == name


def test_batch_selectors_move_together(visit):
    page = visit("gpu")
    assert page.locator("#table .panel:visible").get_attribute("data-batch") == "512"
    page.locator("#floor .batch button", has_text="128").click()
    for section in ("table", "floor", "roofline", "samples", "clocks"):
        panel = page.locator(f"#{section} .panel:visible")
        assert panel.count() == 1 and panel.get_attribute("data-batch") == "128"
    sync_api.expect(page.locator("#samples .panel:visible .main-svg").first).to_be_visible()


def test_table_sorts_by_value_both_ways(visit):
    page = visit("gpu")
    column = page.locator("#table table").first.locator("tbody tr td:nth-child(2)")
    head = page.locator("#table table").first.locator("thead button").nth(1)

    def values():
        return page.evaluate(
            "[...document.querySelector('#table table').tBodies[0].rows].map(r => r.cells[1].dataset.v)"
        )

    head.click()
    up = values()
    assert up[-1] == "" and [float(v) for v in up[:-1]] == sorted(float(v) for v in up[:-1])
    head.click()
    down = values()
    assert [float(v) for v in down if v] == sorted((float(v) for v in down if v), reverse=True)
    assert column.count() == 4 and page.locator("#table th[aria-sort=descending]").count() == 1


def test_dark_mode_follows_the_system_and_the_button(visit):
    page = visit("cpu", color_scheme="dark")
    theme = lambda: page.evaluate(
        "[document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor, "  # noqa: E731
        "document.querySelector('#chart .canvas').layout.font.color]"
    )
    dark = theme()
    page.click("#theme")
    light = theme()
    assert dark[0] == "dark" and light[0] == "light" and all(a != b for a, b in zip(dark, light))
    page.reload()
    page.wait_for_selector("html[data-ready]", timeout=WAIT, state="attached")
    assert theme() == light  # the choice is kept


def test_copy_button_copies_the_command(visit):
    page = visit("cpu")
    page.click("#reproduce .copy")
    sync_api.expect(page.locator("#reproduce .copy")).to_have_text("copied")
    page.evaluate(
        "() => { const t = document.createElement('textarea'); t.id = 'paste'; document.body.prepend(t); t.focus(); }"
    )
    page.keyboard.press("Control+V")
    assert page.evaluate("document.getElementById('paste').value") == load(RECORDS / "cpu.json").provenance.command


@pytest.mark.parametrize("name", ["gpu", "hostile"])
def test_download_is_the_record(visit, name, tmp_path):
    page = visit(name)
    with page.expect_download() as download:
        page.click("#reproduce .download")
    download.value.save_as(tmp_path / "run.json")
    assert download.value.suggested_filename.endswith(".run.json")
    assert json.loads((tmp_path / "run.json").read_text()) == json.loads((RECORDS / f"{name}.json").read_text())
    assert to_dict(load(tmp_path / "run.json")) == to_dict(load(RECORDS / f"{name}.json"))


@pytest.mark.parametrize("name", ["cpu", "gpu", "partial", "hostile", "diagnose", "fix"])
@pytest.mark.parametrize("media", ["screen", "print"])
def test_no_horizontal_scroll_on_a_phone_and_on_paper(visit, name, media):
    wide = 390 if media == "screen" else 720
    page = visit(name, viewport={"width": wide, "height": 844})
    page.emulate_media(media=media)
    assert page.evaluate("document.documentElement.scrollWidth") <= wide


def test_paper_is_light(visit):
    page = visit("cpu", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_an_old_browser_gets_a_message_and_the_numbers(browser, folder):
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((folder / "cpu.html").as_uri())
    sync_api.expect(page.locator("#trouble")).to_contain_text("cannot unpack the figures")
    assert page.locator("#table tbody tr").first.is_visible()
    page.close()


def test_a_section_may_bring_a_plotly_figure_with_numpy(visit, folder, monkeypatch):
    np, go = pytest.importorskip("numpy"), pytest.importorskip("plotly.graph_objects")
    from perfscope import registry

    chart = registry.load("reports", "chart")
    figure = go.Figure(go.Scatter(x=np.arange(5.0), y=np.arange(5.0) ** 2), layout={"height": 200})
    monkeypatch.setattr(chart, "render", lambda run: sections.figure(figure, "typed arrays"))
    (folder / "numpy.html").write_text(render(load(RECORDS / "partial.json")), encoding="utf-8")
    page = visit("numpy")
    assert page.evaluate("document.querySelector('#chart .canvas').calcdata[0].map((p) => p.y)") == [0, 1, 4, 9, 16]
    assert page.locator("#chart .scatterlayer .js-line").count() == 1


def test_the_proof_of_a_fix_is_drawn_trial_by_trial(visit):
    page = visit("fix")
    assert page.locator("#cure_waterfall .waterfalllayer .point").count() == 6      # before, three cures, together, after
    for trial in ("no_mixed_precision", "all that was kept"):
        page.locator("#turns .segments button", has_text=trial).click()
        sync_api.expect(page.locator("#turns .segments [aria-pressed=true]")).to_have_text(trial)
    page.locator("#code_to_add .copy").first.click()
    sync_api.expect(page.locator("#code_to_add .copy").first).to_have_text("copied")
