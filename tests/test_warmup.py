"""Warm-up with a fake clock: build, allocator, steady, cap, drift alarm (METHOD 3, V1)."""

import pytest

from tests.fakes import FakeClock
from perfscope.measure.stats import mann_kendall
from perfscope.measure.warmup import BUILD_STEPS_DDP, CAP_S, cap, drifting, warm_up


def test_a_steady_step_is_warm_after_two_windows():
    fake = FakeClock({"a": 0.025})
    w = warm_up(fake.step("a"), clock=fake.clock(), k=1)
    assert w.settled and w.drift_z == 0 and w.extra["samples"] == 20 and w.extra["dropped"] == 0
    assert w.steps == fake.log.count("step a") == 3 + 20
    assert w.seconds == pytest.approx(23 * 0.025)


def test_ddp_builds_with_11_steps():
    fake = FakeClock({"a": 0.025})
    assert warm_up(fake.step("a"), clock=fake.clock(), k=1, build_steps=BUILD_STEPS_DDP).steps == 11 + 20


def test_slow_first_steps_do_not_count():
    fake = FakeClock({"a": 0.001}, spikes={("a", i): 1000.0 for i in range(3)})
    w = warm_up(fake.step("a"), clock=fake.clock())
    assert w.settled and w.extra["k"] == 20 and w.extra["dropped"] == 0


def test_a_decay_is_waited_out():
    fake = FakeClock({"a": 0.025}, drift=lambda t: 1.3 if t < 0.5 else 1.0)        # the first 16 steps are slow
    w = warm_up(fake.step("a"), clock=fake.clock(), k=1)
    slow = 13                                                                      # 3 of the 16 were the build
    dropped = w.extra["dropped"]
    assert w.settled and 5 <= dropped <= slow and w.extra["samples"] == dropped + 20
    kept = [1.3] * (slow - dropped) + [1.0] * (20 - slow + dropped)
    assert w.drift_z == pytest.approx(mann_kendall(kept))                          # of what was kept alone


def test_a_step_that_never_settles_is_given_up_at_the_cap():
    fake = FakeClock({"a": 0.025}, drift=lambda t: 1 + t)
    w = warm_up(fake.step("a"), clock=fake.clock(), k=1, cap_s=2.0)
    assert not w.settled and w.drift_z > 3
    build = 3 * 0.025
    assert 2.0 <= w.seconds - build <= 2.0 + 0.025 * 4                             # at most one sample beyond
    warned = drifting("base+norm", w, 64)
    assert warned.code == "still-drifting" and warned.batch_size == 64
    assert "base+norm was still getting slower" in warned.text


def test_slow_drift_that_windows_cannot_see_still_raises_the_alarm():
    fake = FakeClock({"a": 0.025}, drift=lambda t: 1 - 0.002 * t)                  # 0.1 % over the two windows
    w = warm_up(fake.step("a"), clock=fake.clock(), k=1)
    assert w.settled and w.drift_z < -3 and "getting faster" in drifting("base", w).text


def test_noise_alone_raises_no_alarm():
    alarms = 0
    for seed in range(100):
        fake = FakeClock({"a": 0.025}, noise=0.01, seed=seed)
        alarms += drifting("a", warm_up(fake.step("a"), clock=fake.clock(), k=1)) is not None
    assert alarms <= 2                                                             # 3 sigma: 0.3 % expected


def test_the_cap_bounds_very_slow_steps():
    fake = FakeClock({"a": 5.0})
    w = warm_up(fake.step("a"), clock=fake.clock(), cap_s=7.5)
    assert w.steps == 3 + 1 + 1 and not w.settled and w.drift_z == 0 and w.extra["k"] == 1    # 15 s, estimate, 1 sample


def test_a_spent_cap_adds_nothing_to_the_build_steps():
    fake = FakeClock({"a": 0.5})
    w = warm_up(fake.step("a"), clock=fake.clock(), cap_s=0.0)
    assert w.steps == 3 and not w.settled and w.extra["samples"] == 0


def test_the_cap_is_a_share_of_the_budget():
    assert cap(60, 5) == 3.0 and cap(6000, 2) == CAP_S and cap(0, 0) == 0


def test_it_waits_until_the_allocator_is_quiet():
    fake = FakeClock({"a": 0.025})
    allocations = lambda: min(fake.log.count("step a"), 9)                         # noqa: E731  grows up to step 9
    w = warm_up(fake.step("a"), clock=fake.clock(), k=1, allocations=allocations)
    assert w.extra["allocator_quiet"] and w.steps == 9 + 3 + 20


def test_an_allocator_that_never_rests_is_recorded():
    fake = FakeClock({"a": 0.025})
    w = warm_up(fake.step("a"), clock=fake.clock(), k=1, allocations=lambda: fake.log.count("step a"), cap_s=1.0)
    assert not w.extra["allocator_quiet"] and not w.settled and w.steps == 3 + 40


def test_all_ranks_take_the_steps_that_rank_0_takes():
    said: list = []
    zero = FakeClock({"a": 0.025}, drift=lambda t: 1.3 if t < 0.5 else 1.0)
    w0 = warm_up(zero.step("a"), clock=zero.clock(), agree=lambda v: said.append(v) or v, allocations=lambda: 0)
    replay = iter(said)
    other = FakeClock({"a": 0.040}, noise=0.05)
    w1 = warm_up(other.step("a"), clock=other.clock(), agree=lambda v: next(replay), allocations=lambda: 0)
    assert w0.steps == w1.steps and w0.extra["k"] == w1.extra["k"] and next(replay, None) is None
