"""The benchmarks are run by hand: here it is seen that what they import is there."""

import importlib
from pathlib import Path

import pytest

NAMES = sorted(p.stem for p in (Path(__file__).parents[1] / "benchmarks").glob("*.py") if p.stem not in ("__init__", "fuzz_traces"))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_finds_what_it_imports(name):
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def test_claims_asks_diagnose_and_the_lab_of_fix(monkeypatch):
    """One model from end to end, with scripted answers: of two cures the one of the heap is timed apart from the other."""
    from contextlib import nullcontext

    from benchmarks import claims
    from perfscope import probing
    from perfscope.finding import Finding, Place
    from perfscope.measure.stats import Interval
    from perfscope.record import Round
    from perfscope.records.diagnose import Record
    from perfscope.turns import BEFORE, Turns
    asked = []

    def taken(process, options, stacks, size, *, keep_heap, **limits):
        asked.append((sorted(set(stacks) - {BEFORE}), keep_heap))
        return Turns(tuple(Round((), {n: (0.1 if n == BEFORE else 0.08) * (1 + i / 1e4) for n in stacks}) for i in range(12)))
    finding = lambda name: Finding(name, "slow", (Place("here", "seen"),), curable=True)  # noqa: E731
    monkeypatch.setattr(claims, "diagnose", lambda model, options: Record("r", batch_size=16, step=Interval(.1, .1, .1),
                                                                          findings=(finding("page_faults"), finding("optimizer_not_fused"))))
    monkeypatch.setattr(claims.elsewhere, "started", lambda *modules: nullcontext([object()] * len(modules)))
    monkeypatch.setattr("perfscope.turns.take_turns_elsewhere", taken)
    monkeypatch.setattr(claims, "take_turns_elsewhere", taken)
    done = claims.one("mnist_cnn", probing.probes(), 1.0, 1)
    assert {c: r["verdict"] for c, r in done["again"].items()} == {"page_faults": "FASTER", "optimizer_not_fused": "FASTER"}
    assert asked == [(["optimizer_not_fused"], True), (["page_faults"], False)] * 2
    done["again"]["page_faults"]["verdict"] = "UNCLEAR"
    assert claims.settled(done, probing.probes())["page_faults"]["verdict"] == "FASTER" and asked[-1] == (["page_faults"], False)
    assert "| mnist_cnn |" in claims.markdown([done | {"settled": {}}], "x")
