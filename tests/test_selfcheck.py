"""selfcheck on fake machines: quiet ones pass, noisy ones say so; what is kept, and what a record gets of it."""

import json
import math
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from perfscope.measure import stats
from perfscope.record import Environment
from perfscope.selfcheck import PLANTED, SelfCheck, Listener, Subject, cache_file, key, last, remember, selfcheck, spin
from tests.fakes import FakeClock

MACHINE = Environment("cpu", "Fake CPU", "host1", software={"torch": "2.13.0"})


def subject(fake: FakeClock, factor=1.0, **changes) -> Subject:
    """The fake's step "a"; a delay takes `factor` times as long as it says."""
    def delay(seconds):
        return lambda: fake.work(factor * seconds)
    return replace(Subject("fake", 8, fake.step("a"), delay, fake.clock(), MACHINE), **changes)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "selfcheck.json"


def run(cache, seconds=0.010, budget_s=60.0, **script) -> SelfCheck:
    return selfcheck(budget_s=budget_s, subject=subject(FakeClock({"a": seconds}, **script)), cache=cache)


def test_a_machine_without_noise_recovers_the_plant_exactly(cache):
    check = run(cache)
    assert check.same_verdict == "SAME" and check.same.point == pytest.approx(0, abs=1e-9)
    assert check.planted == pytest.approx(PLANTED, rel=1e-6) and check.recovered.point == pytest.approx(PLANTED, abs=1e-6)
    assert check.found and check.quiet and check.passed and check.stop == "precision" and check.step.point == pytest.approx(0.010)


@pytest.mark.parametrize("seed", range(5))
def test_a_quiet_machine_passes_and_says_what_it_sees(cache, seed):
    check = run(cache, noise=0.004, seed=seed)
    assert check.passed and check.agrees and check.same_verdict in ("SAME", "UNCLEAR")
    assert 0 < check.resolution < 0.02
    assert check.resolution == pytest.approx(stats.MDE_PER_HALF_WIDTH * check.same.half_width, rel=0.05)
    assert "was found" in check.words


def test_drift_and_spikes_do_not_hide_the_plant(cache):
    check = run(cache, noise=0.004, drift=lambda t: 1 + 0.02 * t, spikes={("a", i): 3.0 for i in range(0, 2000, 97)})
    assert check.passed and abs(check.recovered.point - PLANTED) < 0.02


def test_a_very_noisy_machine_says_that_it_sees_nothing(cache):
    checks = [run(cache, noise=0.8, budget_s=4.0, seed=seed) for seed in range(20)]
    assert all(c.resolution > PLANTED for c in checks)
    assert sum(c.found for c in checks) <= 3 and sum(c.passed for c in checks) <= 3      # 3 % by chance, over 300 seeds
    assert sum(not c.quiet for c in checks) <= 4                                         # 5 % by chance
    assert all(("NOT found" in c.words) == (not c.found) for c in checks)


def test_false_alarms_and_detections_over_many_machines(cache):
    checks = [run(cache, noise=0.02, seed=s, budget_s=20.0) for s in range(40)]
    assert sum(not c.quiet for c in checks) <= 4                    # 10 %, METHOD 15 V2; expected below 2
    assert sum(c.found for c in checks) >= 38


def test_a_delay_of_another_length_than_it_says_is_measured_as_it_is(cache):
    check = selfcheck(budget_s=60, subject=subject(FakeClock({"a": 0.01}), factor=2.0), cache=cache)
    assert check.planted == pytest.approx(2 * PLANTED, rel=1e-6) and check.agrees


def test_a_delay_that_hides_is_not_found(cache):
    """A device that waits for the host swallows it: the step is host-bound."""
    fake = FakeClock({"a": 0.010})
    hidden = subject(fake)

    def delay(seconds):
        return lambda: fake.log[-1] == "step a" or fake.work(seconds)      # behind a step it falls into a gap
    check = selfcheck(budget_s=60, subject=replace(hidden, delay=delay), cache=cache)
    assert not check.found and not check.passed and check.quiet


def test_a_device_clock_measures_the_delay(cache):
    fake = FakeClock({"a": 0.010}, launch_s=0.0001)
    check = selfcheck(budget_s=60, subject=subject(fake, clock=fake.clock(device=True)), cache=cache)
    assert check.planted == pytest.approx(PLANTED, rel=0.02) and check.passed


def test_too_little_time_is_unknown_not_wrong(cache):
    check = run(cache, seconds=1.0, budget_s=0.5)
    assert check.rounds < 6 and not check.found and check.quiet and math.isinf(check.resolution)
    assert "too few rounds" in check.words
    assert last(MACHINE, cache)["resolution"] is None                # JSON has no infinity


def test_the_budget_holds(cache):
    fake = FakeClock({"a": 0.010}, noise=0.3)
    selfcheck(budget_s=10.0, subject=subject(fake), cache=cache)
    assert fake.now_s < 11.0


@pytest.mark.parametrize("event", [1, 60, 300])
def test_interrupted_keeps_nothing(cache, event):
    with pytest.raises(KeyboardInterrupt):
        run(cache, noise=0.01, interrupt_at=event)
    assert not cache.exists()


def test_the_listener_hears_of_stages_and_rounds(cache):
    stages, rounds = [], []
    selfcheck(budget_s=60, subject=subject(FakeClock({"a": 0.01})), cache=cache, listener=Listener(stages.append, lambda n, p: rounds.append((n, p.rounds))))
    assert stages == ["warming up", "the step, the same step again, and the step with a delay, in turns"]
    assert rounds[0] == (8, 1) and rounds[-1][1] == len(rounds)


def test_a_busy_machine_is_in_the_result(cache):
    @contextmanager
    def watch():
        yield SimpleNamespace(columns={"others": [0.5, 0.5], "steal": [0.0, 0.0]}, max_sm_mhz=None)
    check = selfcheck(budget_s=60, subject=subject(FakeClock({"a": 0.01}), watch=watch), cache=cache)
    assert [w.code for w in check.warnings] == ["busy-machine"]


# ---------------------------------------------------------------- what is kept

def test_a_record_gets_the_last_result_of_its_own_machine(cache):
    assert last(MACHINE, cache) == {}
    first = run(cache, noise=0.004)
    found = last(MACHINE, cache)
    assert found["planted"] == first.planted and found["words"] == first.words and found["passed"] is True
    json.dumps(found, allow_nan=False)
    assert last(replace(MACHINE, host_hash="host2"), cache) == {}
    assert last(replace(MACHINE, device="cuda", device_hash="gpu"), cache) == {}
    second = run(cache, noise=0.004, seed=2)
    assert last(MACHINE, cache)["planted"] == second.planted != first.planted


def test_machines_are_kept_beside_each_other(cache):
    check = run(cache)
    gpu = replace(MACHINE, device="cuda", device_hash="gpu1")
    remember(replace(check, machine=key(gpu), device="cuda"), cache)
    assert last(MACHINE, cache)["device"] == "cpu" and last(gpu, cache)["device"] == "cuda"
    assert "host" not in key(gpu)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": "perfscope/selfcheck/2", "machines": {}}', '{"schema": "perfscope/selfcheck/1"}',
                                  '{"schema": "perfscope/selfcheck/1", "machines": []}',
                                  '{"schema": "perfscope/selfcheck/1", "machines": {"cpu:host1": {"planted": "much"}}}',
                                  '{"schema": "perfscope/selfcheck/1", "machines": {"cpu:host1": [1]}}', "[" * 100_000])
def test_a_damaged_cache_is_no_cache_and_is_replaced(cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    assert last(MACHINE, cache) == {}
    run(cache)
    assert last(MACHINE, cache)["passed"] is True


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    check = run(tmp_path / "file" / "selfcheck.json")
    assert check.passed and [w.code for w in check.warnings] == ["not-kept"] and "XDG_CACHE_HOME" in check.warnings[0].hint


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file() == tmp_path / "perfscope" / "selfcheck.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(cache_file()) == "/home/someone/.cache/perfscope/selfcheck.json"


# ---------------------------------------------------------------- the real thing

def test_the_spin_lasts_at_least_as_long_as_it_says():
    wait, begin = spin(0.003), time.perf_counter_ns()
    wait()
    assert time.perf_counter_ns() - begin >= 3_000_000


def test_the_built_in_step_runs_on_this_machine(cache):
    pytest.importorskip("torch")
    check = selfcheck("cpu", 1.5, cache=cache)
    assert check.workload == "mnist_cnn" and check.device == "cpu" and check.rounds >= 1 and check.step.point > 0
    assert check.machine.startswith("cpu:") and check.torch and 0 < check.planted < 1
    assert last(Environment("cpu", host_hash=check.machine.split(":")[1]), cache)["rounds"] == check.rounds
