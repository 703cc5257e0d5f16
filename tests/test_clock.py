"""Clocks: what is inside a timed region, and how many steps a sample takes."""

import subprocess
import sys
import time

import pytest

from tests.fakes import FakeClock
from perfscope.errors import EnvironmentError_
from perfscope.measure.clock import (clock_for, cpu_clock, cuda_clock, process_clock, step_seconds, steps_per_sample,
                                     timed_steps)


def test_timed_steps_waits_for_the_device_at_both_ends():
    fake = FakeClock({"a": 0.010}, launch_s=0.001)
    step = fake.step("a")
    step()                                          # still running when timing starts: must not be counted
    assert timed_steps(step, 5, fake.clock()) == pytest.approx(0.0102, abs=1e-12)   # 5 x 10 ms behind one launch
    assert fake.log == ["step a", "sync", *["step a"] * 5, "sync"]


@pytest.mark.parametrize("seconds, k", [(0.0001, 200), (0.003, 7), (0.0199, 2), (0.020, 1), (0.3, 1), (2.0, 1)])
def test_steps_per_sample_fills_20_ms(seconds, k):
    fake = FakeClock({"a": seconds})
    assert steps_per_sample(fake.step("a"), fake.clock()) == k


def test_a_longer_sample_can_be_asked_for():
    fake = FakeClock({"a": 0.003})
    assert steps_per_sample(fake.step("a"), fake.clock(), target_s=0.1) == 34


@pytest.mark.parametrize("seconds, steps", [(0.01, 6), (0.19, 6), (0.21, 1), (3.0, 1)])
def test_a_slow_step_is_estimated_from_one(seconds, steps):
    fake = FakeClock({"a": seconds})
    assert step_seconds(fake.step("a"), fake.clock()) == pytest.approx(seconds)
    assert fake.log.count("step a") == steps


def test_a_slow_first_step_does_not_spoil_the_estimate():
    fake = FakeClock({"a": 0.001}, spikes={("a", 0): 50.0})
    assert steps_per_sample(fake.step("a"), fake.clock()) == 20


def test_all_ranks_take_the_estimate_of_rank_0():
    fake = FakeClock({"a": 0.001})
    assert steps_per_sample(fake.step("a"), fake.clock(), agree=lambda value: 0.004) == 5


def test_a_step_that_takes_no_time_is_one_sample():
    fake = FakeClock({"a": 0.0})
    assert steps_per_sample(fake.step("a"), fake.clock()) == 1


def test_cpu_clock_is_monotonic_wall_time_without_a_device():
    clock = clock_for("cpu")
    a, b = clock.now_ns(), clock.now_ns()
    assert isinstance(a, int) and b >= a and clock.device is None and clock.name == cpu_clock().name == "wall"


def test_process_clock_does_not_see_waiting():
    clock = process_clock()
    cpu, wall = clock.now_ns(), clock.wall_ns()
    time.sleep(0.05)
    waited, used = clock.wall_ns() - wall, clock.now_ns() - cpu
    assert waited >= 0.05e9 and used < waited / 2


def test_cuda_clock_without_cuda_says_what_to_do(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentError_) as e:
        cuda_clock()
    assert "no CUDA device" in e.value.message and "--device cpu" in e.value.hint


def test_measuring_needs_no_torch():
    code = ("import sys; import perfscope.measure.rounds, perfscope.measure.warmup, perfscope.measure.machine; "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
