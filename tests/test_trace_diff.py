"""Comparing traces: pieces that add up exactly, matching, warm-up, the sentence; and the pair of $PERFSCOPE_DATA."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfscope.cli import main
from perfscope.errors import UsageError
from perfscope.trace import analyze, read
from perfscope.trace.analysis import Analysis, RankAnalysis, analyze_files
from perfscope.trace.typical import PIECES, middle, pieces, steady
from perfscope.trace.diff import diff
from perfscope.trace.steps import Step
from tests.trace_fuzz import START, _x, classic, events, linked

TRACES = Path(os.environ.get("PERFSCOPE_DATA", "/nonexistent")) / "traces"
real = pytest.mark.skipif(not TRACES.is_dir(), reason="$PERFSCOPE_DATA has no traces")


def step(n, duration, busy=0, compute=0, exposed=0, loader=0, device=0):
    return Step(f"ProfilerStep#{n}", device, 1000 * n, duration, busy_ns=busy, compute_ns=compute, communication_exposed_ns=exposed, idle_ns=duration - busy, loader_exposed_ns=loader,
                loader_ns=loader)


def one(*steps, rank=0, **more):
    return Analysis(ranks=(RankAnalysis(rank, 1, "t.json", steps=steps, **more),))


@st.composite
def made(draw):
    out = []
    for n in range(draw(st.integers(1, 7))):
        cuts = [draw(st.integers(0, 10 ** 12)) for _ in PIECES]
        compute, exposed, copies, loader, other = cuts
        out.append(step(n, sum(cuts), compute + exposed + copies, compute, exposed, loader))
    return one(*out)


@given(made(), made())
@settings(max_examples=80, deadline=None)
def test_pieces_add_up_exactly(a, b):
    d = diff(a, b)
    assert sum(d.pieces.values()) == d.difference_ns == d.b.step_ns - d.a.step_ns
    for side, analysis in ((d.a, a), (d.b, b)):
        assert sum(side.pieces.values()) == side.step_ns
        kept, _ = steady(analysis.ranks[0])
        ordered = sorted(s.duration_ns for s in kept)
        assert side.step_ns == (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def test_warm_up_is_left_out_and_said():
    slow = [step(0, 300), step(1, 100), step(2, 102), step(3, 104)]
    d = diff(one(*slow), one(*slow[1:]))
    assert d.a.left_out == "ProfilerStep#0" and d.b.left_out == "" and d.difference_ns == 0 and "equal within 1 %" in d.sentence
    assert any("ProfilerStep#0" in n for n in d.notes)
    assert steady(one(step(0, 120), *slow[1:]).ranks[0])[1] is None         # 20 % more is no obvious outlier
    assert steady(one(*slow[:2]).ranks[0])[1] is None                       # and two steps say nothing about each other
    assert [s.name for s in middle(slow)] == ["ProfilerStep#2", "ProfilerStep#3"]


def test_sentence_names_what_grew():
    base = [step(n, 100_000_000, 80_000_000, 80_000_000) for n in range(3)]
    load = [replace(s, duration_ns=150_000_000, idle_ns=70_000_000, loader_exposed_ns=50_000_000, loader_ns=50_000_000) for s in base]
    assert diff(one(*load), one(*base)).sentence == "50.0 ms of A's median step is loading that B does not have: 150.0 ms in A, 100.0 ms in B."
    assert diff(one(*base), one(*load)).sentence == "50.0 ms of B's median step is loading that A does not have: 100.0 ms in A, 150.0 ms in B."
    mixed = [replace(s, duration_ns=150_000_000, busy_ns=100_000_000, compute_ns=100_000_000, idle_ns=50_000_000, loader_exposed_ns=30_000_000) for s in base]
    assert diff(one(*base), one(*mixed)).sentence.startswith("B's median step is 50.0 ms longer (100.0 ms in A, 150.0 ms in B), mostly by loading (30.0 ms) and compute (20.0 ms)")


def test_busiest_device_and_ranks():
    two = one(step(0, 100, 10, 10, device=0), step(0, 100, 90, 90, device=1))
    assert diff(two, two).a.device == 1
    a = Analysis(ranks=(one(step(0, 100)).ranks[0], replace(one(step(0, 200)).ranks[0], rank=1)))
    b = replace(a, ranks=(a.ranks[1],))
    assert diff(a, b).a.rank == 1 and diff(a, b).ranks == ((1, 200, 200),)
    assert diff(a, a, rank=1).a.step_ns == 200
    with pytest.raises(UsageError, match="rank 7"):
        diff(a, b, rank=7)
    with pytest.raises(UsageError, match="no step"):
        diff(one(), a)


def small(path, steps=3, **rename):
    """The small trace with kernels renamed, longer or gone."""
    some = []
    for e in events(steps):
        name = rename.get(e["name"].split("<")[0], e["name"])
        if name is None:
            continue
        some.append({**e, "name": name} if isinstance(name, str) else {**e, "dur": name[0]})
    path.write_bytes(classic(some))
    return path


def added_up(d):
    """What the operators and the rest, and the kernels and the rest, make of the difference: all of it, exactly."""
    assert d.aligned and sum(d.rest.values()) + sum(c.difference_ns for c in d.ops) == d.difference_ns
    assert sum(d.rest.values()) + sum(c.difference_ns for c in d.kernels) == d.difference_ns or d.a.device < 0
    assert sum(c.idle_difference_ns for c in d.ops) == d.rest["idle in front of operators"]


def test_matching(tmp_path):
    a = small(tmp_path / "a.json")
    b = small(tmp_path / "b.json", vectorized_elementwise_kernel="another", nchwToNhwcKernel=None, cutlass_tensorop_s1688fprop=("55.003",))
    d = diff(a, b)
    states = {c.name: (c.state, c.a_count, c.b_count, round(c.difference_ns)) for c in d.kernels}
    assert states["another"] == ("new", 0, 1, 50_003) and states["vectorized_elementwise_kernel"] == ("gone", 1, 0, -50_003)
    assert states["nchwToNhwcKernel<float>"] == ("gone", 1, 0, -50_003) and states["cutlass_tensorop_s1688fprop"] == ("slower", 1, 1, 5_000)
    assert states["cudnn::bn_fw_tr_1C11_kernel_NCHW"][0] == "equal"
    assert sum(c.difference_ns for c in d.kernels) == pytest.approx(d.b.kernels_ns - d.a.kernels_ns, abs=1e-3)
    first, second = [c for c in d.ops if c.name == "aten::cudnn_convolution"]      # the first has no kernel any more, the second a longer one
    assert (first.state, first.nth, first.of, first.shapes, round(first.difference_ns)) == ("faster", 1, 2, "[[8, 3, 32, 32], []]", -50_003)
    assert (second.state, second.nth, round(second.difference_ns)) == ("slower", 2, 5_000)
    added_up(d)
    assert {c.state for c in diff(a, a).kernels} == {"equal"} and diff(a, a).difference_ns == 0


def test_the_recorders_own_loading_counts(tmp_path):
    extra = [_x("user_annotation", "perfscope:data", 10, 10, f"{START + 1000 * s + 600}.000", "300.000", {}) for s in range(3)]
    (tmp_path / "a.json").write_bytes(classic(events(3)))
    (tmp_path / "b.json").write_bytes(classic(events(3) + extra))
    for detail in ("full", "summary"):
        r = analyze(read(tmp_path / "b.json", detail, cache=False)).ranks[0]
        assert [s.loader_ns for s in r.steps] == [300_000] * 3 == [s.loader_exposed_ns for s in r.steps]
    d = diff(tmp_path / "a.json", tmp_path / "b.json")
    assert d.pieces["loading exposed"] == 300_000 == -d.pieces["other idle"]


def test_command(tmp_path, capsys):
    a, b = small(tmp_path / "a.json"), small(tmp_path / "b.json", vectorized_elementwise_kernel="\x1b[31m<b>" + "x" * 300)
    assert main(["trace", "diff", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text and "median step" in text
    assert main(["trace", "diff", str(a), str(b), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["pieces"].values()) == found["difference_ns"]
    assert main(["trace", "diff", str(a), str(b), "--markdown"]) == 0
    text = capsys.readouterr().out
    assert "| median step | 1.000 | 1.000 | +0.000 |" in text and "<b>" not in text
    assert main(["trace", "diff", str(a), str(b), "--markdown", "--json"]) == 2
    assert main(["trace", "diff", str(a), str(tmp_path / "none.json")]) != 0
    assert "none.json" in capsys.readouterr().err


@real
def test_loader_pair(tmp_path):
    d = diff(*(linked(TRACES / f"v100-resnet50-loader-{n}.json.gz", tmp_path) for n in ("in-process", "4-workers")))
    assert (round(d.a.step_ns / 1e6), round(d.b.step_ns / 1e6)) == (176, 126)
    assert sum(d.pieces.values()) == d.difference_ns
    assert d.pieces["loading exposed"] < -50e6 and d.a.loader_ns > 60e6 > 2e6 > d.b.loader_ns
    assert abs(d.a.kernels_ns / d.b.kernels_ns - 1) < 0.01
    assert d.sentence.startswith("50.0 ms of A's median step is loading that B does not have: 176.3 ms in A, 126.3 ms in B")
    added_up(d)
    assert not [c for c in d.ops if c.state in ("new", "gone")] and max(c.of for c in d.ops) > 1        # the same network
    assert d.sentence.endswith("kernel time per step is equal within 1 % (98.6 and 99.1 ms).") and d.sentence.count(". ") == 0


@real
def test_real_differences_add_up(tmp_path):
    ranks = [analyze_files(TRACES / "h100-nanogpt-8ranks" / f"rank{n}.json.gz", cache=False) for n in (0, 1)]
    assert not diff(*ranks).aligned                     # without their traces: by the tables
    for a, b in (("h100-nanogpt-8ranks/rank0", "h100-nanogpt-8ranks/rank1"), ("a100-resnet50-ddp-nchw", "v100-resnet50-fp32")):
        added_up(diff(linked(TRACES / f"{a}.json.gz", tmp_path), linked(TRACES / f"{b}.json.gz", tmp_path)))


def test_without_a_gpu_the_hosts_operators_are_matched(tmp_path):
    some = [e for e in events(3) if e.get("cat") in ("cpu_op", "user_annotation", None)]
    slow = [{**e, "dur": "80.500"} if e["name"] == "aten::batch_norm" else e for e in some]
    (tmp_path / "a.json").write_bytes(classic(some))
    (tmp_path / "b.json").write_bytes(classic(slow))
    d = diff(tmp_path / "a.json", tmp_path / "b.json")
    moved, = [c for c in d.ops if c.state != "equal"]
    assert (moved.name, moved.state, moved.difference_ns) == ("aten::batch_norm", "slower", 20_000) and d.rest["other idle"] == -20_000
    added_up(d)


def test_page(tmp_path, capsys):
    a, b = small(tmp_path / "a.json"), small(tmp_path / "b.json", vectorized_elementwise_kernel="<script>alert(1)</script>", cutlass_tensorop_s1688fprop=("55.003",))
    assert main(["trace", "diff", str(a), str(b), "--html", str(tmp_path)]) == 0
    assert str(tmp_path / "diff.html") in capsys.readouterr().err
    page = (tmp_path / "diff.html").read_text()
    body = page[page.index("<article"):page.index("</article>")]
    assert body.count('class="plot"') == 2 and "alert(1)" in body and "<script>alert" not in page and "2 of 2" in body and 'id="sum"' in body
    assert main(["trace", "diff", str(a), str(b), "--html", str(tmp_path / "no" / "x.html")]) == 3


def test_pieces_of_a_real_step(tmp_path):
    (tmp_path / "t.json").write_bytes(classic(events(2)))
    for s in analyze(read(tmp_path / "t.json", cache=False)).ranks[0].steps:
        assert pieces(s) == {"compute": 200_012, "communication exposed": 0, "copies exposed": 20_000, "loading exposed": 0, "other idle": 779_988}
