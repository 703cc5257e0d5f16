"""The second opinion: how a trace's time is shared out among parts, when the two agree, and one real run."""

import contextlib
import importlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from perfscope import facts, second_opinion
from perfscope.breakdown import breakdown
from perfscope.measure.stats import MATTERS, Interval
from perfscope.options import Options
from perfscope.provenance import command
from perfscope.record import Run, SecondOpinion, Warned, from_dict, load, to_dict
from perfscope.report import fragments, render
from perfscope.trace.reader import read

ROOT = Path(__file__).parent.parent
TRACES = Path(os.environ.get("PERFSCOPE_DATA", "/nonexistent")) / "traces"
real = pytest.mark.skipif(not TRACES.is_dir(), reason="$PERFSCOPE_DATA has no traces")
PARTS = ("base", "norm", "activation", "optimizer", "data")


def event(name, ts, dur, cat="cpu_op", tid=1, **args):
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur, "args": args}


def host(name, ts, dur, sequence=None):
    return event(name, ts, dur, **({"Sequence number": sequence} if sequence else {}))


def mark(name, ts, dur):
    return event(name, ts, dur, "user_annotation")


def launched(number, at, ts, name, dur):
    """A launch on the host at `at`, and its kernel."""
    return [event("cudaLaunchKernel", at, 1, "cuda_runtime", correlation=number),
            event(name, ts, dur, "kernel", tid=7, device=0, stream=7, correlation=number)]


def seen(tmp_path, events, parts=PARTS):
    file = tmp_path / "trace.json"
    file.write_text(json.dumps({"traceEvents": events}))
    return second_opinion.opinion(read(file, cache=False).ranks[0], 8, parts)


#: Two steps of 1000 us: a norm written by hand within its mark, a relu by its name, the backward of both by sequence number.
STEP = [mark("ProfilerStep#1", 0, 1000), mark("perfscope:data", 0, 50), host("aten::copy_", 10, 30), mark("perfscope:forward", 50, 500),
        host("aten::conv2d", 60, 200, 1), host("aten::detach", 265, 5, 2), mark("perfscope:norm", 270, 100), host("aten::pow", 280, 20, 2),
        host("aten::mul", 310, 40, 3), host("aten::relu", 400, 50, 4), host("aten::clamp_min", 410, 30),
        host("autograd::engine::evaluate_function: ReluBackward0", 560, 60, 4), host("aten::threshold_backward", 570, 40),
        host("autograd::engine::evaluate_function: MulBackward0", 620, 30, 3), host("aten::mul", 625, 20),
        host("autograd::engine::evaluate_function: PowBackward0", 650, 10, 2),
        host("autograd::engine::evaluate_function: ConvolutionBackward0", 660, 140, 1),
        mark("perfscope:optimizer", 850, 100), host("aten::_foreach_add_", 860, 60)]


def test_operators_go_to_their_parts(tmp_path):
    two = STEP + [{**e, "ts": e["ts"] + 1000, "name": e["name"].replace("#1", "#2"),
                   "args": {k: v + 10 for k, v in e["args"].items()}} for e in STEP]
    o = seen(tmp_path, two)
    us = lambda column, part: [round(x * 1e6) for x in column.get(part, ())]  # noqa: E731
    assert o.clock == "operators" and us({"": o.step_s}, "") == [1000, 1000]
    assert us(o.parts, "data") == [30, 30] and us(o.host, "data") == [20, 20]
    assert us(o.parts, "norm") == [20 + 40 + 30 + 10] * 2 and us(o.host, "norm") == [40, 40]
    assert us(o.parts, "activation") == [50 + 60] * 2
    assert us(o.parts, "base") == [200 + 5 + 140] * 2
    assert us(o.parts, "optimizer") == [60, 60] and us(o.host, "optimizer") == [40, 40]
    assert us({"": o.waiting_s}, "") == [1000 - (50 + 140 + 110 + 345 + 100)] * 2


def test_a_part_that_was_not_measured_is_the_base_s(tmp_path):
    o = seen(tmp_path, STEP, ("base", "optimizer"))
    assert round(o.parts["base"][0] * 1e6) == 30 + 100 + 110 + 345 and set(o.parts) == {"base", "optimizer"}


def test_other_threads_and_what_lies_outside_the_steps_do_not_count(tmp_path):
    more = [event("aten::relu", 100, 300, tid=2), host("aten::relu", 1200, 100)]
    assert seen(tmp_path, STEP + more).parts == seen(tmp_path, STEP).parts


def test_kernels_go_to_the_part_of_what_launched_them(tmp_path):
    gpu = [*launched(1, 100, 200, "sm80_xmma_fprop", 400), *launched(2, 320, 600, "vectorized_elementwise", 100),
           *launched(3, 630, 700, "vectorized_elementwise", 50), *launched(4, 870, 950, "multi_tensor_apply", 200),
           *launched(5, 960, 1150, "cudnn::bn_fw_tr", 30), *launched(6, 965, 1180, "ncclDevKernel_AllReduce", 20)]
    before = [event("cudnn::bn_fw_tr", 5, 60, "kernel", tid=7, device=0, stream=7, correlation=99)]     # its launch is not in the trace
    o = seen(tmp_path, STEP + gpu + before)
    us = {p: round(x[0] * 1e6) for p, x in o.parts.items()}
    assert o.clock == "kernels" and us == {"base": 400 + 20, "norm": 100 + 50 + 30, "activation": 0, "optimizer": 200, "data": 0}
    assert round(o.step_s[0] * 1e6) == 1000 and round(o.waiting_s[0] * 1e6) == 1000 - 800 and not o.host


def test_a_trace_without_anything_is_no_error(tmp_path):
    o = seen(tmp_path, [mark("ProfilerStep#1", 0, 10)])
    assert sum(map(sum, o.parts.values())) == 0 and o.waiting_s == o.step_s


@real
def test_norms_of_a_real_gpu_trace_by_operator_are_those_by_kernel_name():
    from perfscope.trace.names import kind
    rank = read(TRACES / "v100-resnet50-fp32.json.gz", cache=False).ranks[0]
    o = second_opinion.opinion(rank, 8, PARTS)
    e = rank.events
    named = sum(int(d) for n, c, d in zip(e.name, e.cat, e.dur_ns) if c == 1 and kind(rank.names[n]).norm)
    assert sum(o.parts["norm"]) * 1e9 == pytest.approx(named, rel=0.01)
    assert sum(o.parts["optimizer"]) > 0 and 0 < o.waiting_s[0] / o.step_s[0] < 0.05


# ---------------------------------------------------------------- agreement

@pytest.fixture(scope="module")
def golden():
    return {name: load(ROOT / "tests" / "records" / f"{name}.json") for name in ("cpu", "gpu", "partial")}


@pytest.mark.parametrize("trace, waiting, beyond", [(0.10, 0.0, 0.0), (0.155, 0.0, 0.03), (0.155, 0.02, 0.01), (0.155, 0.05, 0.0), (0.05, 0.02, 0.02)])
def test_what_the_waiting_explains(trace, waiting, beyond):
    o = facts.Opinion("norm", Interval(0.1, 0.09, 0.12), Interval(trace, trace - 0.005, trace + 0.005), 0.0, waiting)
    assert o.beyond == pytest.approx(max(beyond - (0.005 if trace == 0.05 else 0), 0)) and o.agrees is (o.beyond < MATTERS)


def test_first_and_last_in_widen_what_taking_away_says(golden):
    o = {o.part: o for o in facts.opinions(golden["gpu"])}
    p = golden["gpu"].parts[512]["norm"]
    step = golden["gpu"].batches[2].derived.step.point
    assert o["norm"].cost.high == pytest.approx(max(p.share.high, p.first.high / step, p.last.high / step))


def test_the_golden_records_agree_or_say_where_they_do_not(golden):
    assert all(o.agrees for o in facts.opinions(golden["cpu"])) and "agrees about every part" in facts.opinion_words(golden["cpu"])
    assert [o.part for o in facts.opinions(golden["gpu"]) if not o.agrees] == ["data"]
    assert [w.batch_size for w in golden["gpu"].warnings if w.code == "second-opinion"] == [512]
    assert not second_opinion.disagreement(golden["cpu"])
    assert facts.opinions(golden["partial"]) == [] and facts.opinion_words(golden["partial"]) == ""


@pytest.mark.parametrize("name, says", [("cpu", "agrees about every part"), ("gpu", "disagrees about data beyond")])
def test_every_renderer_shows_it(golden, name, says):
    for format in ("terminal", "markdown", "html"):
        assert says in " ".join(render(golden[name], format).split()), format
    section = next(f for f in fragments(golden[name], {}) if f.name == "second_opinion")
    assert section.text and "in the trace" in section.html and ("between operators" in section.html) is (name == "cpu")
    assert "second_opinion" not in [f.name for f in fragments(golden["partial"], {}) if f.html]


def test_unknown_keys_survive_and_old_records_load(golden):
    data = to_dict(golden["cpu"])
    data["second_opinion"]["from_the_future"] = [1]
    assert to_dict(from_dict(Run, data))["second_opinion"]["from_the_future"] == [1]
    del data["second_opinion"]
    assert from_dict(Run, data).second_opinion is None


def test_a_trace_without_time_says_nothing(golden):
    empty = replace(golden["cpu"], second_opinion=SecondOpinion(16, "operators", (0.0,), (0.0,)))
    assert facts.opinions(empty) == [] and render(replace(empty, second_opinion=SecondOpinion(16, "operators", (), ())), "terminal")


# ---------------------------------------------------------------- asking for it

def test_why_there_is_none(golden, monkeypatch):
    run = replace(golden["cpu"], second_opinion=None)
    fused = second_opinion.ask(run, Options(compile="default"))
    assert "fused" in fused.warnings[-1].text and fused.second_opinion is None
    assert second_opinion.ask(replace(run, batches=()), Options()) == replace(run, batches=())

    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(second_opinion, "recorded", interrupted)
    stopped = second_opinion.ask(run, Options())
    assert stopped.status == "interrupted" and stopped.batches == run.batches and stopped.warnings[-1].code == second_opinion.CODE


def test_no_trace_leaves_the_breakdown_alone(golden, monkeypatch):
    monkeypatch.setattr(second_opinion.elsewhere, "started", lambda *modules: contextlib.nullcontext([None]))
    monkeypatch.setattr(importlib.import_module("perfscope.trace.record"), "record_elsewhere", lambda *_, **__: (None, 0, [Warned("no-trace", "the child died")]))
    run = second_opinion.ask(replace(golden["cpu"], second_opinion=None), Options())
    assert run.second_opinion is None and run.warnings[-1].code == second_opinion.CODE and run.batches == golden["cpu"].batches


def test_an_object_has_no_second_opinion():
    from tests.small import ConvNet, images, workload
    run = breakdown(workload(ConvNet(), images(2)), (2,), budget_s=0.5, attribution="ladder", second_opinion=True)
    assert run.second_opinion is None and [w.code for w in run.warnings].count(second_opinion.CODE) == 1 and run.status == "complete"


def test_a_real_run(tmp_path):
    run = breakdown("mnist_cnn", (8,), budget_s=2, attribution="ladder", second_opinion=True, out=tmp_path)
    o = run.second_opinion
    assert load(tmp_path).second_opinion == o and o.batch_size == 8 and o.clock == "operators"
    assert len(o.step_s) == second_opinion.STEPS and set(o.parts) == set(run.parts[8])
    for i, step in enumerate(o.step_s):         # every nanosecond is somebody's
        whole = sum(v[i] for v in o.parts.values()) + sum(v[i] for v in o.host.values()) + o.waiting_s[i]
        assert whole == pytest.approx(step, rel=1e-6)
    assert all(min(o.parts[p]) > 0 for p in ("base", "activation", "optimizer", "data"))
    assert o.parts["base"] > o.parts["activation"] and min(o.host["optimizer"]) > 0
    assert "Second opinion, batch 8" in render(run, "terminal") and "--second-opinion" in run.provenance.command


def test_the_command_that_repeats_it():
    assert command(Options(second_opinion=True)).endswith("--second-opinion") and "second" not in command(Options())
