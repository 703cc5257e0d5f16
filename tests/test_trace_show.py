"""`perfscope trace analyze`: the terminal (80 columns), Markdown, JSON, and the page's content; small traces and the real ones."""

import json
import os
import re
from pathlib import Path

import pytest

from perfscope import registry
from perfscope.cli import main
from perfscope.trace import analyze, read, split, timeline
from perfscope.trace.blocks import blocks
from perfscope.trace.page import View, build, of_trace
from perfscope.trace.show import markdown, terminal
from perfscope.trace.typical import chosen
from tests.test_trace_view import made, write
from tests.trace_fuzz import START, _x, classic, events, linked, python_export, rich, year_2021

TRACES = Path(os.environ.get("PERFSCOPE_DATA", "/nonexistent")) / "traces"
real = pytest.mark.skipif(not TRACES.is_dir(), reason="$PERFSCOPE_DATA has no traces")
HOSTILE = "<script>alert(1)</script>\x1b[31m|`*" + "k" * 400 + "表" * 60


@pytest.fixture
def trace(tmp_path):
    (tmp_path / "t.json").write_bytes(classic(events(4)))
    return tmp_path / "t.json"


def lanes(view, step=None):
    """The figure of a view's time line."""
    return timeline.draw(view, step or view.rank.steps[0])


def seen(path):
    t = read(path, cache=False)
    a = analyze(t)
    r = chosen(a)
    return View(a, r, next(c for c in t.ranks if c.source == r.source))


def test_everything_is_said(trace, capsys):
    assert main(["trace", "analyze", str(trace)]) == 0
    text = capsys.readouterr().out
    for wanted in ("1 rank · ", "NVIDIA A100", "The median step takes 1.00 ms", "Step#3", "STEPS", "ALL STEPS TOGETHER", "KERNELS", "Layout conversions: 4, 0.20 ms, 25 % of kernel time, "
                   "50.0 %", "Norm kernels: 4", "OPERATORS", "LAUNCHES", "20 launches", "MEMORY COPIES", "HtoD (Pageable -> Device)", "16.0 KiB", "0.20", "perfscope trace view"):
        assert wanted in " ".join(text.split()) or wanted in text, wanted
    *lines, command = text.splitlines()
    assert max(map(len, lines)) <= 80 and command == f"perfscope trace view {trace}"      # a command is not broken
    assert main(["trace", "analyze", str(trace), "--markdown"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("### t.json\n") and "| Step\\#3 | 1.000 | 0.220 |" in text and "#### Memory copies" in text
    assert main(["trace", "analyze", str(trace), "--json", "--summary"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["detail"] == "summary" and len(found["ranks"][0]["steps"]) == 4 and not found["ranks"][0]["ops"]


def test_everything_that_was_recorded_is_said(tmp_path, capsys):
    (tmp_path / "t.json").write_bytes(classic(rich()))
    assert main(["trace", "analyze", str(tmp_path / "t.json")]) == 0
    text = capsys.readouterr().out
    said = " ".join(text.split())
    for wanted in ("WHAT TO DO NEXT Launch less: the GPU waits ", "Look for what is kept: every step leaves 3.00 MiB more", "CRITICAL PATH ProfilerStep#1, 1.000 ms from", "TENSOR CORES Of 0.320 ms",
                   "63 % use them", "ARITHMETIC Matmuls and convolutions of known shapes: 16.8 MFLOP in 0.120 ms of device time, 140 GFLOP/s.", "0.49 % of that", "8 calls of such operators are left out",
                   "MODULES", "· Linear_0", "COMPILED CODE 2 regions of torch.compile ran; 1 of their frames", "MEMORY GPU 0: at most 12.0 MiB allocated, 1.00 GiB reserved", "+3.00 MiB"):
        assert wanted in said, wanted
    assert max(map(len, text.splitlines()[:-1])) <= 80
    assert main(["trace", "analyze", str(tmp_path / "t.json"), "--markdown"]) == 0
    text = capsys.readouterr().out
    for wanted in ("#### What to do next", "#### Critical path", "#### Arithmetic", "#### Memory", "| aten::mm |"):
        assert wanted in text, wanted
    assert main(["trace", "analyze", str(tmp_path / "t.json"), "--json"]) == 0
    rank = json.loads(capsys.readouterr().out)["ranks"][0]
    assert sum(p["duration_ns"] for p in rank["critical"]["by_name"]) == rank["critical"]["duration_ns"] == sum(rank["critical"]["by_kind"].values())
    assert rank["tensor_cores"]["used_ns"] == 200_012


def test_options_that_cannot_be(trace, tmp_path, capsys):
    for wrong in (["--json", "--markdown"], ["--rank", "9"], ["--limit-gb", "-1"]):
        assert main(["trace", "analyze", str(trace), *wrong]) == 2
        assert capsys.readouterr().out == ""
    assert main(["trace", "analyze", "-", "--html", str(tmp_path / "x.html")]) == 2
    assert main(["trace", "analyze", str(trace), "--html", str(tmp_path / "no" / "x.html")]) == 3
    assert "cannot write" in capsys.readouterr().err


def test_limit_is_used(trace, capsys):
    assert trace.stat().st_size > 4000
    assert main(["trace", "analyze", str(trace), "--limit-gb", "0.000004"]) == 2
    assert "--limit-gb" in capsys.readouterr().err
    assert main(["trace", "analyze", str(trace), "--limit-gb", "1"]) == 0


def test_hostile_names(tmp_path):
    some = [{**e, "name": HOSTILE} if e.get("cat") in ("kernel", "cpu_op", "gpu_memcpy") else e for e in events(3)]
    (tmp_path / "t.json").write_bytes(classic(some))
    view = seen(tmp_path / "t.json")
    text = registry.load("reports", "terminal")
    shown = terminal(blocks(view.analysis))
    assert "\x1b" not in shown and max(text.width(line) for line in shown.splitlines()) <= 80
    assert "<script" not in markdown(blocks(view.analysis), HOSTILE)
    page = build("<script>alert(1)</script>", view)
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    figure, _ = lanes(view)
    assert all("<script" not in str(t["customdata"]) for t in figure["data"])


def test_cpu_only_is_a_note(tmp_path):
    (tmp_path / "t.json").write_bytes(classic([e for e in events(2) if e.get("cat") in ("cpu_op", "user_annotation", None)]))
    view = seen(tmp_path / "t.json")
    shown = terminal(blocks(view.analysis))
    assert "no GPU was recorded" in shown and "note: " in shown and "warning: " not in shown and "KERNELS" not in shown
    page = build("t", view)
    body = page[page.index("<article"):page.index("</article>")]
    assert "no kernel was recorded" in body and "alarm" not in body and 'id="timeline"' in body and 'id="split"' not in body


def test_damage_is_an_alarm(tmp_path):
    (tmp_path / "t.json").write_bytes(classic(events(40))[:-3000])
    assert re.search(r"<p class=.?alarm.?>warning: ", of_trace(tmp_path / "t.json", cache=False))
    assert "warning:" in terminal(blocks(seen(tmp_path / "t.json").analysis))     # its path may wrap anywhere


@pytest.mark.parametrize("layout", [python_export, year_2021])
def test_other_layouts(tmp_path, layout):
    (tmp_path / "t.json").write_bytes(layout(events(3)))
    assert 'id="timeline"' in of_trace(tmp_path / "t.json", cache=False)


def test_time_line_is_exact(tmp_path):
    view = seen(write(tmp_path / "a.json", made()))
    figure, said = lanes(view)
    bars = {(n, lane): [(round(b * 1e6), round(x * 1e6)) for b, x, y in zip(t["base"], t["x"], t["y"]) if y == lane] for t in figure["data"] for n in [t["name"]] for lane in set(t["y"])}
    assert bars["convolution", "GPU 0 stream 7"] == [(420_000, 300_000)] and bars["communication", "GPU 0 stream 9"] == [(800_000, 50_000)]
    assert bars["loading", "loading"] == [(10_000, 200_000)] and bars["operator", "operators"] == [(300_000, 100_000), (500_000, 100_000)]
    idle = sorted(b for (n, lane), v in bars.items() if lane == "GPU 0 idle" for b in v)
    assert sum(x for _, x in idle) == view.rank.steps[0].idle_ns == 650_000 and idle[0][0] == 0
    assert said == f"{sum(len(t['x']) for t in figure['data'])} bars." and "merged" not in {t["name"] for t in figure["data"]}


def test_time_line_merges_the_shortest_and_says_so(tmp_path):
    some = [_x("user_annotation", "ProfilerStep#1", 1, 1, f"{START}.000", "60000.000", {})]
    some += [_x("kernel", "k", 0, 7, f"{START + 10 * i}.000", f"{3 + i % 5}.000", {"device": 0, "stream": 7, "correlation": i}) for i in range(5999)]
    (tmp_path / "t.json").write_bytes(classic(some))
    view = seen(tmp_path / "t.json")
    figure, said = lanes(view)
    drawn = {t["name"]: t for t in figure["data"]}
    every = sum(len(t["x"]) for t in figure["data"])
    total = 5999 + 5999 + 1                             # kernels, the gaps between, and the last of the step
    short = sum(int(re.match(r"(\d+) short ones", c)[1]) for c in drawn["merged"]["customdata"])
    assert every <= 4000 and every - len(drawn["merged"]["x"]) == 3200 and short in (total - 3200, total - 3201)
    assert f"The 3200 longest are drawn; {short} of at most" in said
    longest = min(x for n, t in drawn.items() if n != "merged" for x in t["x"])
    assert longest >= 0.005 and all(b + x <= 60.0 + 1e-9 for t in figure["data"] for b, x in zip(t["base"], t["x"]))
    assert len(of_trace(tmp_path / "t.json", cache=False)) < 2.5e6


def test_many_steps_stay_small(tmp_path):
    (tmp_path / "t.json").write_bytes(classic([e for e in events(3000) if e.get("cat") == "user_annotation"]))
    page = of_trace(tmp_path / "t.json", cache=False)
    assert "2800 more rows" in page and len(page) < 2.5e6


def test_somebodys_broken_section_does_not_cost_the_page(trace, monkeypatch):
    monkeypatch.setattr(split, "render", lambda view: 1 / 0)
    page = of_trace(trace, cache=False)
    assert "split could not be drawn: ZeroDivisionError" in page and 'id="timeline"' in page


@real
@pytest.mark.parametrize("name", ["a100-resnet50-ddp-nchw.json.gz", "h100-nanogpt-8ranks"])
def test_real(name, tmp_path, capsys):
    assert main(["trace", "analyze", str(linked(TRACES / name, tmp_path)), "--html", str(tmp_path / "page.html")]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines()[:-1])) <= 80
    if name.startswith("a100"):
        assert "Layout conversions: 633, 15.12 ms, 9.3 % of kernel time, 26.9 % of" in text and "DtoD (Device -> Device)" in text
    else:
        assert "rank 1 waited the least" in text and "Rank 1 in detail" in text
    page = (tmp_path / "page.html").read_text()
    assert len(page.encode()) < 2.5e6 and 'id="kernels"' in page and 'id="timeline"' in page
