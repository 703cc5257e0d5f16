"""Workloads timed in turns: every version in every round, failures left out and named, in this process and in another."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from perfscope import contract, elsewhere, probing, turns
from perfscope.errors import EnvironmentError_, WorkloadError
from perfscope.options import Options
from perfscope.probe import add

LIMITS = {"device": "cpu", "batch_size": 8, "budget_s": 0.2, "target": 1.0, "max_rounds": 6}


def make(stack):
    w = contract.subject("conv")
    if "broken" in stack:
        return add(w, on_model=[lambda m: torch.nn.Identity()])
    if "slow" in stack:
        return replace(w, after_step=lambda loss: [loss.detach().clone() for _ in range(2000)])
    return w


def test_every_round_holds_every_version_that_runs():
    t = turns.take_turns(make, {turns.BEFORE: (), "slow": ("slow",), "broken": ("broken",)}, **LIMITS)
    assert t.rounds and all(set(r.step_s) == {"before", "slow"} for r in t.rounds)
    assert list(t.errors) == ["broken"] and t.losses["before"] == pytest.approx(t.losses["slow"])
    assert {"matmul", "copy"} == set(t.rounds[0].canary_s)


def test_a_change_is_of_the_version_against_before():
    t = turns.take_turns(make, {turns.BEFORE: (), "slow": ("slow",)}, **LIMITS)
    assert turns.changes(t.rounds, "slow").point > 0        # 2000 clones in Python against a step of a few milliseconds


def test_the_original_has_to_run():
    with pytest.raises(WorkloadError):
        turns.take_turns(lambda stack: make(("broken",)), {turns.BEFORE: (), "b": ()}, **LIMITS)


def test_nothing_to_compare_with():
    t = turns.take_turns(make, {turns.BEFORE: (), "broken": ("broken",)}, **LIMITS)
    assert t.rounds == () and t.stop == "nothing to compare" and "broken" in t.errors


@pytest.mark.parametrize("keep", [True, False])
def test_the_heap_is_kept_for_all_versions_or_left_alone(monkeypatch, keep):
    from contextlib import contextmanager
    seen = []

    @contextmanager
    def steady(device):
        seen.append(device)
        yield
        seen.append("left")
    monkeypatch.setattr(turns.heap, "steady", steady)
    turns.take_turns(lambda stack: seen.append("made") or replace(make(stack), contexts=()), {turns.BEFORE: (), "same": ()}, keep_heap=keep, **LIMITS)
    assert seen == (["cpu", "made", "made", "left"] if keep else ["made", "made"])


def test_only_the_cures_of_the_heap_itself_forbid_to_keep_it():
    found = probing.probes()
    assert probing.about_heap(["no_mixed_precision", "page_faults"], found)
    assert not probing.about_heap(["no_mixed_precision", "loading_in_step:thread"], found) and not probing.about_heap((), found)


@pytest.mark.slow
def test_elsewhere_the_same():
    with elsewhere.started("perfscope.turns") as (process,):
        t = turns.take_turns_elsewhere(process, Options("mnist_cnn", device="cpu"), {"before": (), "cured": ("zero_grad_fills",)}, 4, budget_s=60,
                                       target=1.0, max_rounds=6, seed=0)
    assert len(t.rounds) >= 6 and set(t.rounds[0].step_s) == {"before", "cured"}


def test_what_goes_wrong_elsewhere_arrives_with_its_kind():
    with pytest.raises(WorkloadError, match="no module"):
        elsewhere.ask("perfscope.turns", {"options": Options("nothing.here:x").as_dict(), "stacks": {"before": []}, "batch_size": 1, "folders": [],
                                          "budget_s": 1, "target": 1, "max_rounds": 1, "seed": 0, "keep_heap": True}, "timing")
    error = elsewhere._raised({"message": "m", "hint": "h", "detail": "d", "exit_code": 3})
    assert isinstance(error, EnvironmentError_) and error.hint == "h"


def test_a_child_that_dies_is_said():
    with pytest.raises(WorkloadError, match="counting stars in a process of its own failed"):
        elsewhere.ask("perfscope.no_such_module", {}, "counting stars")


SAYS = """
import sys, time
from perfscope import elsewhere
def answer(request):
    if request.get("stay"):
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            return {"interrupted": True}
    return {"all idle when asked": open(request["log"]).read(), "torch": "torch" in sys.modules}
if __name__ == "__main__":
    time.sleep(%s)
    print("what is printed while importing is no sign")
    open("log", "a").write("%s ")
    elsewhere.serve(answer)
"""


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    for name, nap in (("quick_one", 0), ("slow_one", 1)):
        (tmp_path / f"{name}.py").write_text(SAYS % (nap, name))
    monkeypatch.chdir(tmp_path)
    return {"log": str(tmp_path / "log")}


def test_nothing_is_asked_before_all_that_were_started_are_idle(in_a_folder):
    with elsewhere.started("quick_one", "slow_one", "quick_one") as (a, b, unused):
        first = a.ask(in_a_folder, "one")
        assert sorted(first["all idle when asked"].split()) == ["quick_one", "quick_one", "slow_one"] and first["torch"]
        assert b.ask(in_a_folder, "two")["torch"]
        assert unused.child.poll() is None
    assert unused.child.poll() is not None


def test_a_child_that_cannot_start_does_not_hold_up_the_others(in_a_folder):
    with elsewhere.started("perfscope.no_such_module", "quick_one") as (dead, alive):
        assert alive.ask(in_a_folder, "one")["torch"]
        with pytest.raises(WorkloadError, match="two in a process of its own failed") as e:
            dead.ask({}, "two")
        assert "No module named perfscope.no_such_module" in e.value.detail


def test_ctrl_c_brings_what_the_child_still_answers_and_ends_the_idle_ones(in_a_folder):
    code = ("import signal, os, threading, time\nfrom perfscope import elsewhere\n"
            "with elsewhere.started('quick_one', 'quick_one') as (a, b):\n"
            "    for p in (a, b): p.wait()\n"
            "    threading.Timer(1, lambda: os.killpg(0, signal.SIGINT)).start()\n"
            "    try:\n        a.ask({'stay': True}, 'waiting')\n"
            "    except KeyboardInterrupt as e:\n        print(e.answer)\n"
            "    b.child.wait(10)\n    print(b.said.read_text() or 'quiet')\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=elsewhere.environment(), start_new_session=True, timeout=60)
    assert done.stdout.splitlines() == ["{'interrupted': True}", "quiet"], done.stderr


def test_a_child_is_no_rank(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    env = elsewhere.environment()
    assert "RANK" not in env and env["OMP_NUM_THREADS"] == "1"
