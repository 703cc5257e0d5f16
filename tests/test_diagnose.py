"""The verb `diagnose`: what is run, what is kept, what a baseline and a suppressed probe do, and how findings are ranked."""

import contextlib
import importlib
import types

import pytest

from perfscope import contract, probing
from perfscope.diagnose import Asked, Seen, choose, known, looked, read_baseline, to_look_at
from perfscope.errors import RecordError, UsageError
from perfscope.finding import Finding, Place, ranked
from perfscope.measure.stats import Interval
from perfscope.options import Options
from perfscope.record import Round, load, save, to_dict
from perfscope.records.diagnose import Record
from perfscope.turns import Turns

diagnosing = importlib.import_module("perfscope.diagnose")


def finding(probe, share=None, change=None, saves=None, **more):
    made = lambda x: None if x is None else Interval(x, x - .01, x + .01)  # noqa: E731
    return Finding(probe, "slow", (Place(f"{probe}.here", "seen"),), share=share, change=made(change), saves=made(saves), **more)


def test_ranked_by_what_was_measured_before_what_was_estimated():
    order = [f.probe for f in ranked([finding("ceiling", share=.3), finding("measured", change=-.5), finding("harmful", share=.9, change=.2),
                                      finding("alone", share=.9, saves=.05), finding("old", share=.99, known=True)])]
    assert order == ["measured", "ceiling", "alone", "harmful", "old"]


def test_unknown_probes_are_named():
    with pytest.raises(UsageError, match="no probe 'nonsense' .--suppress.") as e:
        choose(Asked(suppress=("nonsense",)))
    assert "zero_grad_fills" in e.value.hint
    assert list(choose(Asked(only=("zero_grad_fills",)))) == ["zero_grad_fills"]
    assert "zero_grad_fills" not in choose(Asked(suppress=("zero_grad_fills",)))


def test_a_baseline_marks_what_was_known(tmp_path):
    old = Record("a", findings=(finding("one", share=.5),))
    save(old, tmp_path / "run.json")
    keys = read_baseline(tmp_path)
    marked = known([finding("one", share=.7), finding("two", share=.1)], keys)
    assert [(f.probe, f.known) for f in marked] == [("two", False), ("one", True)]
    with pytest.raises(RecordError):
        read_baseline(tmp_path / "nothing")
    with pytest.raises(UsageError, match="record of a breakdown"):
        from perfscope.record import Run
        save(Run("b"), tmp_path / "b" / "run.json")
        read_baseline(tmp_path / "b")


def module(**more):
    return types.SimpleNamespace(__doc__="x", fix=lambda w: w, USES=("config",), **more)


def test_the_look_takes_each_quick_cure_once_and_says_when_one_makes_it_slower():
    chosen = {"a": module(), "b": module(COSTLY=True), "c": module(CURES={"x": None, "y": None}), "d": module()}
    findings = [finding(n, share=.5, curable=True) for n in ("a", "a", "b", "c", "d")]
    assert to_look_at(findings, chosen) == ["a", "c:x", "c:y", "d"]
    rounds = tuple(Round((), {"before": 1.0 + i / 1e4, "a": 1.2, "c:x": .9, "c:y": .8}) for i in range(8))
    record, out = looked(Record("r"), findings, Turns(rounds, {"d": "RuntimeError: no"}), chosen)
    by = {f.probe: f for f in out}
    assert by["a"].verdict == "SLOWER" and "do not apply" in by["a"].note
    assert by["b"].change is None and "may also be slower" in by["b"].note
    assert by["c"].verdict == "FASTER" and by["c"].extra["cure"] == "c:y"
    assert by["d"].note == "the cure cannot be applied here: RuntimeError: no" and record.step.point == pytest.approx(1.0, rel=.01)


@pytest.mark.parametrize("slow, note", [(.8, ""), (1.01, "saw no gain"), (1.02, "do not apply"), (.95, "")])
def test_a_look_that_saw_no_gain_says_so(slow, note):
    noise = (0.9, 1.1) if slow in (1.01, .95) else (1.0, 1.0)
    rounds = tuple(Round((), {"before": 1.0, "a": slow * noise[i % 2] + 1e-4}) for i in range(8))
    _, (f,) = looked(Record("r"), [finding("a", curable=True)], Turns(rounds), {"a": module()})
    assert note in f.note and bool(f.note) is bool(note), (f.verdict, f.change)


def test_a_probe_that_raises_is_named_and_the_others_go_on():
    bad = module(detect=lambda e: 1 / 0)
    good = module(detect=lambda e: [Finding("", "x")])
    hidden = module(detect=lambda e: [], DEVICES=("cuda",))
    found, failed, skipped = probing.detect({"bad": bad, "good": good, "hidden": hidden}, contract.Evidence(contract.evidence_of(contract.subject("conv")).config))
    assert [f.probe for f in found] == ["good"] and failed == {"bad": "ZeroDivisionError: division by zero"} and "hidden" in skipped


@pytest.fixture
def without_children(monkeypatch):
    """Nothing is started: what the children would answer is given."""
    def use(seen, turns=Turns()):
        idle = types.SimpleNamespace(ask=lambda request, what: to_dict(seen))
        monkeypatch.setattr(diagnosing.elsewhere, "started", lambda *modules: contextlib.nullcontext([idle] * len(modules)))
        monkeypatch.setattr(importlib.import_module("perfscope.trace.record"), "record_elsewhere", lambda *a, **k: (None, 0, []))
        monkeypatch.setattr("perfscope.turns.take_turns_elsewhere", lambda *a, **k: turns)
    return use


def test_the_record(without_children, tmp_path):
    without_children(Seen(batch_size=4, findings=(finding("zero_grad_fills", share=.1, curable=True),), failed={}, skipped={"x": "y"}, silent=("z",)))
    r = diagnosing.diagnose("mnist_cnn", out=tmp_path)
    assert r.status == "complete" and r.batch_size == 4 and r.silent == ("z",) and load(tmp_path).findings[0].probe == "zero_grad_fills"


def test_a_failed_probe_makes_it_incomplete(without_children):
    without_children(Seen(batch_size=4, failed={"zero_grad_fills": "ValueError: x"}, skipped={}))
    assert diagnosing.diagnose("mnist_cnn").status == "incomplete"


def test_two_batch_sizes_are_refused():
    with pytest.raises(UsageError, match="one batch size"):
        diagnosing.diagnose("mnist_cnn", batch_sizes=(1, 2))


@pytest.mark.slow
def test_a_planted_disease_is_found_by_name_in_processes_of_their_own(tmp_path):
    (tmp_path / "mine.py").write_text("from perfscope import contract, probing\n\n\ndef workload():\n"
                                      "    return probing.probes()['zero_grad_fills'].plant(contract.subject('conv'))\n")
    r = diagnosing.diagnose(f"{tmp_path}/mine.py:workload", options=Options(batch_sizes=(8,), device="cpu"), asked=Asked(trace=False))
    assert [f.probe for f in r.findings] == ["zero_grad_fills"] and r.findings[0].change is not None and r.rounds
    assert {"evidence_s", "look_s"} <= set(r.own_cost)
