"""`perfscope trace analyze --diagnose`: probes on somebody else's traces. Bar 3 of issue 4, on real GPU traces where the data is there."""

import gzip
import json
import os
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from perfscope import probing, registry
from perfscope.cli import main
from perfscope.finding import Finding, Place
from perfscope.trace.analysis import Analysis, RankAnalysis, analyze_files
from perfscope.trace.diagnose import diagnose

DATA = Path(os.environ.get("PERFSCOPE_DATA", "/nowhere")) / "traces"
real = pytest.mark.skipif(not DATA.is_dir(), reason="$PERFSCOPE_DATA/traces is not there")


@lru_cache(maxsize=None)
def seen(name: str) -> dict[str, Finding]:
    """Probe -> its finding on the first rank of a real trace."""
    analysis = analyze_files(DATA / f"{name}.json.gz", cache=False)
    one = diagnose(analysis)
    assert one.failed == {} and len({f.probe for f in one.ranks[0].findings}) == len(one.ranks[0].findings)
    return {f.probe: f for f in one.ranks[0].findings}


def events(name: str) -> list[dict]:
    """The events of a trace as they stand in its JSON: for figures that owe nothing to perfscope's reader."""
    with gzip.open(DATA / f"{name}.json.gz") as f:
        return json.load(f)["traceEvents"]


def needs(probe: str):
    return pytest.mark.skipif(probe not in registry.names("probes"), reason=f"there is no probe {probe} yet")


# ---------------------------------------------------------------- bar 3: loading

@real
def test_loading_in_the_process_is_named_with_its_share_of_the_step():
    f = seen("v100-resnet50-loader-in-process")["loading_in_step"]
    raw = events("v100-resnet50-loader-in-process")
    loading = sum(e["dur"] for e in raw if "DataLoader" in str(e.get("name")) and e.get("ph") == "X")
    steps = sum(e["dur"] for e in raw if str(e.get("name")).startswith("ProfilerStep#") and e.get("ph") == "X")
    assert f.evidence["loading_share"] == pytest.approx(loading / steps, rel=1e-6) == pytest.approx(0.3964, abs=1e-3)
    assert "39.6 % of the step" in f.text and "num_workers=0" in f.places[0].saw
    assert 0.3 < f.share < f.evidence["loading_share"] and f.basis == "ceiling"        # part of it is hidden behind the device's work


@real
@pytest.mark.parametrize("name", ["v100-resnet50-loader-4-workers", "v100-resnet50-fp32", "a100-resnet50-ddp-nchw", "mi300x-resnet-ddp-checkpointing",
                                  "h100-nanogpt-8ranks/rank0", "h100-nanogpt-8ranks/rank6"])
def test_no_loading_is_found_where_it_is_hidden_or_absent(name):
    assert "loading_in_step" not in seen(name)


# ---------------------------------------------------------------- bar 3: layout and batch norm

@real
@needs("layout_conversions")
def test_the_a100_layout_conversions():
    f = seen("a100-resnet50-ddp-nchw")["layout_conversions"]
    everything = f.text + " ".join(p.saw for p in f.places)
    assert "633" in everything and "15.12 ms" in everything and "9.3 %" in everything


@real
@needs("layout_conversions")
@pytest.mark.parametrize("name", ["v100-resnet50-fp32", "v100-resnet50-loader-in-process", "v100-resnet50-loader-4-workers"])
def test_no_layout_conversions_of_note_on_v100(name):
    assert "layout_conversions" not in seen(name)


@real
@needs("layout_conversions")
def test_the_mi300x_batched_transposes():
    f = seen("mi300x-resnet-ddp-checkpointing")["layout_conversions"]
    everything = f.text + " ".join(p.saw for p in f.places)
    assert "20.7 %" in everything
    assert "943" in everything


@real
@needs("bfloat16_batch_norm")
def test_the_mi300x_native_batch_norm():
    f = seen("mi300x-resnet-ddp-checkpointing")["bfloat16_batch_norm"]
    assert "392" in f.text and "30.8 %" in f.text


# ---------------------------------------------------------------- the other data probes on real traces

@real
def test_pageable_copies_agree_with_the_raw_trace():
    f = seen("v100-resnet50-loader-4-workers")["pageable_copies"]
    raw = events("v100-resnet50-loader-4-workers")
    copies = [e for e in raw if e.get("name") == "Memcpy HtoD (Pageable -> Device)"]
    steps = sum(e["dur"] for e in raw if str(e.get("name")).startswith("ProfilerStep#") and e.get("ph") == "X")
    assert f.evidence["copies"] == len(copies) == 12
    assert f.share == pytest.approx(sum(e["dur"] for e in copies) / steps, rel=1e-6)
    assert f.evidence["bytes"] == sum(e["args"]["bytes"] for e in copies)
    assert any("cudaStreamSynchronize" in p.saw for p in f.places)


@real
def test_a_few_kilobytes_from_pageable_memory_are_no_finding():
    assert "pageable_copies" not in seen("h100-nanogpt-8ranks/rank0")      # 12 copies, 0.05 ms


@real
def test_ddp_copies_are_counted():
    f = seen("a100-resnet50-ddp-nchw")["ddp_bucket_view"]
    assert f.evidence["calls"] == 483 and "161 gradients per step" in f.text          # ResNet-50 has 161 parameters
    assert f.share == pytest.approx(f.evidence["host_ns"] / 667.104_840e6, rel=1e-2)    # the device waits for the host there
    busy = seen("v100-resnet50-fp32")["ddp_bucket_view"]
    assert busy.share == pytest.approx(busy.evidence["device_ns"] / 394.14e6, rel=1e-2)
    assert "ddp_bucket_view" not in seen("h100-nanogpt-8ranks/rank0")


# ---------------------------------------------------------------- the command

def run(capsys, *argv) -> tuple[int, str]:
    code = main(["trace", "analyze", *map(str, argv)])
    return code, capsys.readouterr().out


@real
def test_the_terminal_markdown_and_json_have_it(capsys):
    trace = DATA / "v100-resnet50-loader-in-process.json.gz"
    code, text = run(capsys, trace, "--diagnose")
    assert code == 0 and "LOADING_IN_STEP" in text and "39.6 %" in text and max(map(len, text.splitlines()[:-1])) <= 80
    assert text.index("LOADING_IN_STEP") < text.index("PAGEABLE_COPIES"), "the most valuable first"
    code, text = run(capsys, trace, "--diagnose", "--markdown")
    assert code == 0 and "#### loading\\_in\\_step" in text
    code, text = run(capsys, trace, "--diagnose", "--json")
    found = json.loads(text)
    mine = next(f for f in found["findings"] if f["probe"] == "loading_in_step")
    assert code == 0 and mine["rank"] == 0 and mine["curable"] is False and found["probes_failed"] == {}
    assert "ddp_bucket_view" in found["probes_silent"] and found["ranks"]
    assert "findings" not in json.loads(run(capsys, trace, "--json")[1])


@real
def test_without_operators_the_probes_that_need_none_still_work(capsys):
    code, text = run(capsys, DATA / "v100-resnet50-loader-in-process.json.gz", "--diagnose", "--summary")
    assert code == 0 and "LOADING_IN_STEP" in text and "failed" not in text


def fake(rule, uses=("trace",)):
    return SimpleNamespace(USES=uses, detect=rule)


def ranks(n: int) -> Analysis:
    return Analysis(ranks=tuple(RankAnalysis(i, n, f"rank{i}.json", device_events=1, kernels_ns=i) for i in range(n)))


def test_every_rank_is_asked_and_named():
    def slow(e):
        if e.trace.rank:
            yield Finding("", f"slow on {e.trace.rank}", (Place("here", "this"),), "do that", share=0.1 * e.trace.rank, basis="ceiling")
    d = diagnose(ranks(4), probes={"slow": fake(slow), "fine": fake(lambda e: ()), "model_only": fake(lambda e: 1 / 0, ("model",))})
    assert [len(r.findings) for r in d.ranks] == [0, 1, 1, 1] and d.silent == ["fine"] and d.failed == {}
    assert [f["rank"] for f in d.json["findings"]] == [1, 2, 3]
    summary, block = d.blocks
    assert summary.lines[0].startswith("1 slow path found") and block.title == "slow on rank 3 (found on ranks 1 to 3)"
    assert block.lines[0] == "slow on 3 (ceiling 30 %)" and "seen: here: this" in block.lines and "cure: do that" in block.lines
    only = diagnose(ranks(4), 2, {"slow": fake(slow)})
    assert [r.rank for r in only.ranks] == [2] and only.blocks[1].title == "slow"


def test_a_probe_that_fails_is_named_and_the_others_go_on(monkeypatch, capsys, tmp_path):
    good, bad = fake(lambda e: [Finding("", "found it")]), fake(lambda e: 1 / 0)
    monkeypatch.setattr(probing, "probes", lambda: {"bad": bad, "good": good})
    trace = tmp_path / "t.json"
    trace.write_text(json.dumps({"traceEvents": [{"ph": "X", "cat": "cpu_op", "name": "aten::add", "ts": 1, "dur": 2, "pid": 1, "tid": 1}]}))
    code, text = run(capsys, trace, "--diagnose")
    assert code == 4 and "bad failed: ZeroDivisionError" in text and "found it" in text
    code, text = run(capsys, trace, "--diagnose", "--json")
    assert code == 4 and list(json.loads(text)["probes_failed"]) == ["bad"]
    assert run(capsys, trace)[0] == 0


def test_evidence_says_what_the_trace_is_of():
    devices = []

    def look(e):
        devices.append(e.config.device)
        return ()
    diagnose(Analysis(ranks=(RankAnalysis(0, 1, "a"), RankAnalysis(1, 1, "b", device_events=3))), probes={"look": fake(look)})
    assert devices == ["cpu", "cuda"]


def test_no_built_in_probe_fails_on_an_empty_trace():
    d = diagnose(Analysis(ranks=(RankAnalysis(0, 1, "a"), RankAnalysis(0, 1, "b", device_events=3))))
    assert d.failed == {} and all(r.findings == () for r in d.ranks)
