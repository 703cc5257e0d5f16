"""Our TensorBoard plugin in a real browser: inside TensorBoard, offline, no console error; reports and trace pages draw."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perfscope.trace import view
from tests.browser.chromium import RECORDS, SCREENSHOTS, WAIT
from tests.test_trace_view import get, made, write

pytestmark = pytest.mark.skipif(bool(view.missing_packages()), reason=f"needs {', '.join(view.missing_packages())}")


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """The address of a TensorBoard that shows a report, a hostile report, a trace, a trace recorded here, and a broken one."""
    logs = tmp_path_factory.mktemp("board")
    for name in ("cpu", "hostile"):
        (logs / name).mkdir()
        (logs / name / "run.json").write_bytes((RECORDS / f"{name}.json").read_bytes())
    (logs / "gpu").mkdir()
    write(logs / "gpu" / "rank_0.trace.json.gz", made())
    (logs / "broken").mkdir()
    (logs / "broken" / "cut.json").write_text('{"traceEvents": [{"ph": "X"')
    done = subprocess.run([sys.executable, "-m", "perfscope", "trace", "record", "--model", "mnist_cnn", "--batch", "2", "--steps", "2", "--out", str(logs / "recorded")],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with view.tensorboard(view.look(logs)) as (url, _):
        for _ in range(300):
            answer = json.loads(get(f"{url}data/plugin/pytorch_profiler/runs")[2])
            if not answer["loading"] and "recorded" in answer["runs"]:
                break
            time.sleep(0.2)
        yield url


@pytest.fixture
def visit(watched, board):
    """visit(path) -> page; nothing may be asked of anybody but this TensorBoard."""
    return lambda path: watched(board + path, ready="", own=board, errors=True)


def keep(page, name):
    if SCREENSHOTS:
        page.screenshot(path=f"{SCREENSHOTS}/{name}.png")


def choose(page, text):
    page.locator("#list button", has_text=text).first.click()
    return page.frame_locator("#view")


def test_plugin_lists_every_run_and_shows_the_report(visit):
    page = visit("data/plugin/perfscope/index.html")
    page.wait_for_selector("html[data-ready]", timeout=WAIT, state="attached")
    assert page.locator("#list button").all_inner_texts()[:2] == ["cpu\nrun.json", "hostile\nrun.json"]
    assert page.locator("#list button").count() == 5
    frame = choose(page, "cpu")
    frame.locator("#chart .main-svg").first.wait_for(timeout=WAIT)
    assert frame.locator("#table table").first.is_visible()
    keep(page, "plugin-report")


def test_hostile_names_are_text_here_too(visit):
    page = visit("data/plugin/perfscope/index.html")
    page.wait_for_selector("html[data-ready]", timeout=WAIT, state="attached")
    frame = choose(page, "hostile")
    frame.locator("h1", has_text="<script>alert(1)</script>").wait_for(timeout=WAIT)
    assert frame.locator("img").count() == 0


def test_trace_page_of_a_gpu_trace_sorts(visit):
    page = visit("data/plugin/perfscope/index.html")
    page.wait_for_selector("html[data-ready]", timeout=WAIT, state="attached")
    frame = choose(page, "gpu")
    frame.locator("html[data-ready]").wait_for(timeout=WAIT, state="attached")
    frame.locator("#kernels td", has_text="conv_kernel").wait_for(timeout=WAIT)
    assert frame.locator("#steps tbody tr").count() == 1 and frame.locator("#timeline .main-svg").count() > 0
    assert frame.locator("#steps tbody td").nth(1).inner_text() == "1.000"
    first = lambda: frame.locator("#kernels tbody td").first.inner_text()  # noqa: E731
    frame.locator("#kernels th", has_text="ms").click()
    assert first() == "ncclDevKernel_AllGather"
    frame.locator("#kernels th", has_text="ms").click()
    assert first() == "conv_kernel"
    keep(page, "plugin-trace")


def test_recorded_run_and_a_broken_trace(visit):
    page = visit("data/plugin/perfscope/index.html")
    page.wait_for_selector("html[data-ready]", timeout=WAIT, state="attached")
    frame = choose(page, "recorded")
    frame.locator("#ops td", has_text="convolution").first.wait_for(timeout=WAIT)
    assert frame.locator("#steps tbody tr").count() == 2
    keep(page, "plugin-recorded")
    frame = choose(page, "broken")
    frame.locator(".alarm").first.wait_for(timeout=WAIT)


def test_the_old_plugin_has_the_run_recorded_here(board):
    api = f"{board}data/plugin/pytorch_profiler/"
    runs = json.loads(get(f"{api}runs")[2])
    assert {"recorded", "gpu"} <= set(runs["runs"]) and not runs["loading"]
    views = json.loads(get(f"{api}views?run=recorded")[2])
    worker = json.loads(get(f"{api}workers?run=recorded&view={views[0]}")[2])[0]
    overview = json.loads(get(f"{api}overview?run=recorded&worker={worker}&span=default")[2])
    assert "Overview" in views and len(overview["steps"]["rows"]) == 2, overview


def test_inside_tensorboard(visit):
    page = visit("#perfscope")
    inner = page.frame_locator("iframe")
    inner.locator("#list button").first.wait_for(timeout=WAIT)
    inner.frame_locator("#view").locator("#chart .main-svg").first.wait_for(timeout=WAIT)
    keep(page, "tensorboard-perfscope")


def test_unknown_page_and_path_outside_are_refused(board):
    for name in ("nothing", "../../etc/passwd", "/etc/passwd", ""):
        status, headers, body = get(f"{board}data/plugin/perfscope/page?id={name}")
        assert status == 404 and b"root:" not in body and "default-src 'none'" in headers["Content-Security-Policy"]


def test_plugin_needs_no_torch(tmp_path):
    code = ("import sys; sys.modules['torch'] = None\n"
            "from pathlib import Path; from perfscope.tensorboard import page, plugin\n"
            f"found = plugin.search(Path({str(tmp_path)!r})); made = [page.of_trace(e['path']) if e['kind'] == 'trace' else page.of_record(e['path']) for e in found.values()]\n"
            "print(len(made), all(len(m) > 1000 for m in made))")
    write(tmp_path / "a.json", made())
    (tmp_path / "run.json").write_bytes((RECORDS / "cpu.json").read_bytes())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2 True\n", done.stderr


def test_entry_point_is_the_plugin():
    import re

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    module, name = re.search(r'\[project\.entry-points\.tensorboard_plugins\]\nperfscope = "([\w.]+):(\w+)"', text).groups()
    assert getattr(__import__(module, fromlist=[name]), name).plugin_name == "perfscope"
