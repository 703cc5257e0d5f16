"""Interleaved rounds with a fake clock: exact shares, order, stop rule, Ctrl-C at any point (METHOD 1, 4, 6, V1)."""

import gc
import sys
from collections import Counter
from dataclasses import replace

import pytest

from tests.fakes import FakeClock
from perfscope.measure import rounds as module
from perfscope.measure.attribution import derive_batch, headline_half_width
from perfscope.measure.rounds import Timed, measure_rounds, no_collection, orders, sample
from perfscope.record import BatchResult, Variant

COST = {"base": 0.0100, "base+norm": 0.0160, "base+norm+activation": 0.0180, "base+norm+activation+optimizer": 0.0200}
FULL = "base+norm+activation+optimizer"
SHARES = {"base": 0.5, "norm": 0.3, "activation": 0.1, "optimizer": 0.1}
BATCH = BatchResult(128, reference=FULL, variants=tuple(Variant(n, tuple(n.split("+")[1:])) for n in COST))


def width_of(rounds):
    return headline_half_width(replace(BATCH, rounds=tuple(rounds)))


def measure(fake, names=tuple(COST), *, device=False, **options):
    options = {"k": 1, "rng_seed": 7, "budget_s": 1e9, "target": 0.005, "half_width": width_of, **options}
    return measure_rounds([fake.timed(n) for n in names], clock=fake.clock(device), **options)


def shares(measured):
    derived = derive_batch(replace(BATCH, rounds=measured.rounds)).derived
    return {name: part.share for name, part in derived.parts.items()}, derived


@pytest.fixture(autouse=True)
def no_full_collection(monkeypatch):
    """The one full collection of each measurement takes 0.1 s with torch loaded; where it matters, it is put back."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


# ---------------------------------------------------------------- samples

def test_a_sample_waits_for_the_device_and_leaves_the_lead_in_out():
    fake = FakeClock(COST, launch_s=0.0001, spikes={("base", 0): 30.0, ("base", 1): 20.0})
    s = sample(fake.timed("base"), 4, 2, fake.clock(device=True))
    assert fake.log == ["enter base", "sync", "step base", "step base", "sync", "start", *["step base"] * 4, "stop",
                        "sync", "leave base"]
    assert (s["step_s"], s["device_s"]) == pytest.approx(((0.0001 + 4 * 0.010) / 4,) * 2)
    assert s["lead_in_s"] == pytest.approx(0.5001) and s["timed_s"] == pytest.approx(0.0401)


def test_a_host_bound_step_shows_in_the_busy_clock():
    fake = FakeClock({"base": 0.001}, launch_s=0.004, replay={"base": 0.001})
    timed = fake.timed("base")

    def graph_replay():
        fake.launch_s = 0.0
        timed.replay()

    s = sample(replace(timed, replay=graph_replay), 10, 2, fake.clock(device=True))
    assert s["step_s"] == pytest.approx(0.0041) and s["busy_s"] == pytest.approx(0.001)
    assert s["replay_s"] == pytest.approx(0.011)                     # one unmeasured replay before the ten


def test_without_a_device_there_is_only_the_step_clock():
    fake = FakeClock(COST)
    assert set(sample(fake.timed("base"), 1, 1, fake.clock())) == {"step_s", "lead_in_s", "timed_s"}


def test_collection_is_off_inside_and_restored(monkeypatch):
    fake, seen = FakeClock(COST), []
    timed = replace(fake.timed("base"), step=lambda: seen.append(gc.isenabled()))
    gc.enable()
    sample(timed, 3, 1, fake.clock())
    assert seen == [False] * 4 and gc.isenabled()
    gc.disable()
    try:
        sample(timed, 1, 1, fake.clock())
        assert not gc.isenabled()                                    # as it was, not simply on
    finally:
        gc.enable()


@pytest.mark.parametrize("where", ["enter", "step", "sync"])
def test_collection_is_restored_and_the_variant_left_after_an_error(where):
    fake = FakeClock(COST)
    clock, timed, left = fake.clock(), fake.timed("base"), []

    def fails():
        raise ZeroDivisionError

    timed = replace(timed, leave=lambda: left.append(1), **({where: fails} if where != "sync" else {}))
    with pytest.raises(ZeroDivisionError):
        sample(timed, 1, 1, replace(clock, synchronize=fails) if where == "sync" else clock)
    assert gc.isenabled() and left == [1]


def test_garbage_is_collected_between_rounds(monkeypatch):
    monkeypatch.undo()
    fake, alive = FakeClock(COST), []

    class Cycle:
        def __init__(self):
            self.me = self
            alive.append(1)

        def __del__(self):
            alive.pop()

    timed = Timed("base", lambda: Cycle() and None)
    left = []
    measure_rounds([timed], clock=fake.clock(), k=3, rng_seed=0, budget_s=1e9, target=0, half_width=lambda r: 1.0,
                   max_rounds=3, on_round=lambda r: left.append((len(alive), gc.get_freeze_count() > 1000)))
    assert left == [(0, True)] * 3 and gc.isenabled() and gc.get_freeze_count() == 0


def test_no_collection_nests():
    with no_collection(), no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


# ---------------------------------------------------------------- shares against the script (V1)

def test_shares_are_exact_without_noise():
    measured = measure(FakeClock(COST))
    found, derived = shares(measured)
    assert {n: s.point for n, s in found.items()} == pytest.approx(SHARES, abs=1e-12)
    assert sum(s.point for s in found.values()) == pytest.approx(1, abs=1e-12)
    assert all(s.half_width < 1e-9 for s in found.values()) and derived.step.point == pytest.approx(0.020)
    assert measured.stop == "precision" and len(measured.rounds) == 20


def test_launch_time_hides_behind_a_busy_device():
    found, _ = shares(measure(FakeClock(COST, launch_s=0.0005), k=50))
    assert {n: s.point for n, s in found.items()} == pytest.approx(SHARES, abs=1e-3)


@pytest.mark.parametrize("drift", [lambda t: 1 + 0.02 * t,                       # everything gets slower
                                   lambda t: 1.0 if t % 7 < 4 else 1.25])        # throttling on and off
def test_shares_survive_drift_and_throttling(drift):
    found, _ = shares(measure(FakeClock(COST, noise=0.005, seed=3, drift=drift), max_rounds=60, target=0))
    for name, true in SHARES.items():
        assert abs(found[name].point - true) < max(2 * found[name].half_width, 0.002)
        assert found[name].half_width < 0.02


def test_the_interval_covers_the_truth_about_95_times_in_100():
    trials, inside = 150, 0
    for seed in range(trials):
        fake = FakeClock(COST, noise=0.02, seed=seed, drift=lambda t: 1 + 0.01 * t)
        norm = shares(measure(fake, rng_seed=seed, max_rounds=20, target=0))[0]["norm"]
        inside += norm.low <= SHARES["norm"] <= norm.high
    assert 0.89 <= inside / trials <= 0.99                                       # +- 3 sigma of 150 trials


def test_spikes_fall_on_rounds_that_are_not_clean_and_stay_in_the_record():
    spikes = {("base", 5): 4.0, (FULL, 17): 8.0, ("base+norm", 31): 3.0}         # steps 1, 3, 5, ... are the timed ones
    measured = measure(FakeClock(COST, noise=0.002, seed=1, spikes=spikes), lead_in=1, max_rounds=30, target=0)
    found, derived = shares(measured)
    assert derived.rounds == 30 and derived.clean_rounds == 27 and derived.stall > 0.1
    assert max(r.step_s[FULL] for r in measured.rounds) == pytest.approx(0.160, rel=0.02)
    assert {n: s.point for n, s in found.items()} == pytest.approx(SHARES, abs=0.004)


def test_lead_in_steps_take_the_cost_of_switching():
    fake = FakeClock(COST, spikes={("base", i): 10.0 for i in range(0, 4000, 3)})     # each first step after a switch
    found, _ = shares(measure(fake, lead_in=2))
    assert {n: s.point for n, s in found.items()} == pytest.approx(SHARES, abs=1e-12)


# ---------------------------------------------------------------- design

def test_each_variant_once_per_round_in_a_random_order_that_the_seed_gives():
    measured = measure(FakeClock(COST), max_rounds=200, target=-1, half_width=lambda r: 1 / len(r))
    seen = [r.order for r in measured.rounds]
    assert len(seen) == 200 and all(sorted(o) == sorted(COST) for o in seen)
    assert all(set(r.step_s) == set(COST) for r in measured.rounds)
    assert len(set(seen)) == 24                                                   # every order of four came up
    first = Counter(o[0] for o in seen)
    assert all(30 <= first[n] <= 70 for n in COST)                                # 50 expected, sd 6
    again = measure(FakeClock(COST), max_rounds=30, target=-1)
    other = measure(FakeClock(COST), max_rounds=30, target=-1, rng_seed=8)
    assert [r.order for r in again.rounds] == seen[:30] != [r.order for r in other.rounds]


def test_orders_are_endless_and_reproducible():
    one, two = orders(["a", "b", "c"], 1), orders(["a", "b", "c"], 1)
    assert [next(one) for _ in range(50)] == [next(two) for _ in range(50)]


def test_what_really_ran_is_what_the_order_says():
    fake = FakeClock(COST)
    measured = measure(fake, max_rounds=20, target=0, k=2, lead_in=1)
    ran = [what.split(" ", 1)[1] for what in fake.log if what.startswith("enter")]
    assert ran == [name for r in measured.rounds for name in r.order]
    assert all(fake.log.count(f"step {n}") == 20 * (1 + 2) for n in COST)


def test_the_canary_runs_once_per_round_and_is_timed():
    fake = FakeClock({**COST, "matmul": 0.002, "copy": 0.001})
    measured = measure(fake, canary={n: fake.step(n) for n in ("matmul", "copy")}, max_rounds=20, target=0)
    assert all(r.canary_s == pytest.approx({"matmul": 0.002, "copy": 0.001}) for r in measured.rounds)
    assert fake.log.count("step matmul") == 2 * 20                                # one of the two is its lead-in
    assert measured.own_cost["canary_s"] == pytest.approx(20 * 0.006)


def test_one_telemetry_read_per_sample():
    mhz = iter(range(1000, 2000))
    measured = measure(FakeClock(COST), telemetry_read=lambda: {"sm_mhz": float(next(mhz))}, max_rounds=20, target=0)
    assert [r.telemetry[n]["sm_mhz"] for r in measured.rounds for n in r.order] == [float(x) for x in range(1000, 1080)]
    assert all(r.telemetry == {} for r in measure(FakeClock(COST), telemetry_read=dict).rounds)     # a CPU has none


def test_device_clock_is_in_the_rounds():
    measured = measure(FakeClock(COST), device=True)
    assert all(r.device_s == pytest.approx(COST) for r in measured.rounds)


def test_own_cost_adds_up():
    fake = FakeClock({**COST, "matmul": 0.002}, launch_s=0.001)
    m = measure(fake, canary={"matmul": fake.step("matmul")}, max_rounds=20, target=0, k=3, lead_in=2, warmup_s=1.5)
    cost = m.own_cost
    # device time behind one launch, per variant: lead-in and timed steps each are synchronised
    assert cost["timed_s"] == pytest.approx(20 * (3 * sum(COST.values()) + 4 * 0.001))
    assert cost["lead_in_s"] == pytest.approx(20 * (2 * sum(COST.values()) + 4 * 0.001))
    assert cost["warmup_s"] == 1.5
    assert cost["wall_s"] == pytest.approx(sum(v for name, v in cost.items() if name != "wall_s"))


@pytest.mark.parametrize("names", [(), ("base", "base")])
def test_variants_need_names_of_their_own(names):
    with pytest.raises(ValueError, match="names of their own"):
        measure(FakeClock(COST), names)


# ---------------------------------------------------------------- the stop rule

ROUND_S = 2 * sum(COST.values())                     # one lead-in step, one timed one


@pytest.mark.parametrize("width, budget_s, stop, rounds", [
    (lambda n: 0.004, 1e9, "precision", 20),                       # not before the first look
    (lambda n: 0.004 if n >= 35 else 1 / n, 1e9, "precision", 40),  # seen at the next look
    (lambda n: 1 / n ** 0.5, 1e9, "rounds", 200),                  # gets better, but not fast enough
    (lambda n: 0.1, 1e9, "stalled", 50),                           # nothing gained between 20 and 50
    (lambda n: 1 / n ** 0.5, 33.5 * ROUND_S, "budget", 33),        # the 34th would not end in time
    (lambda n: 1 / n ** 0.5, 33.0001 * ROUND_S, "budget", 33),
    (lambda n: 0.004, 19.5 * ROUND_S, "budget", 19),
    (lambda n: 1.0, 5.5 * ROUND_S, "budget", 6),                   # an interval needs 6
    (lambda n: 1.0, 3.0001 * ROUND_S, "budget", 6),                # which may take twice the budget
    (lambda n: 1.0, 2.0001 * ROUND_S, "budget", 4),                # and no more
    (lambda n: 1.0, 0.0, "budget", 1),                             # one always
    (lambda n: float("inf"), 1e9, "stalled", 50),
])
def test_the_stop_rule_as_scripted(width, budget_s, stop, rounds):
    measured = measure(FakeClock(COST), lead_in=1, budget_s=budget_s, half_width=lambda r: width(len(r)))
    assert (measured.stop, len(measured.rounds)) == (stop, rounds)


def test_a_run_that_gets_slower_keeps_the_budget():
    fake = FakeClock(COST, drift=lambda t: 1 + t / 10)
    measured = measure(fake, lead_in=1, budget_s=20, target=0, half_width=lambda r: 1 / len(r))
    assert measured.stop == "budget" and fake.now_s <= 20 * 1.1    # the last five predict the next; drift adds a little


def test_precision_follows_the_noise():
    quiet = measure(FakeClock(COST, noise=0.002, seed=5))
    loud = measure(FakeClock(COST, noise=0.2, seed=5))
    assert quiet.stop == "precision" and quiet.widths[-1][1] <= 0.005
    assert loud.stop != "precision" and loud.widths[-1][1] > 0.005
    assert [n for n, _ in loud.widths] == list(range(20, len(loud.rounds) + 1, 10))


def test_all_ranks_stop_together_and_keep_the_order_of_rank_0():
    said: list = []
    zero = measure(FakeClock(COST, noise=0.003, seed=1), rng_seed=1, agree=lambda v: said.append(v) or v)
    replay = iter(said)
    other = measure(FakeClock(COST, noise=0.3, seed=2), rng_seed=99, budget_s=0.1, agree=lambda v: next(replay))
    assert zero.stop == other.stop == "precision" and len(zero.rounds) == len(other.rounds)
    assert [r.order for r in zero.rounds] == [r.order for r in other.rounds] and next(replay, None) is None


def test_progress_and_on_round_see_every_round():
    seen, kept = [], []
    measured = measure(FakeClock(COST), max_rounds=30, target=0, half_width=lambda r: 1 / len(r), budget_s=1000,
                       progress=seen.append, on_round=lambda r: kept.append(list(r)))
    assert [p.rounds for p in seen] == list(range(1, 31)) and [len(k) for k in kept] == list(range(1, 31))
    assert kept[-1] == list(measured.rounds)
    assert [seen[n - 1].half_width for n in (19, 20, 29, 30)] == [None, 1 / 20, 1 / 20, 1 / 30]
    assert seen[4].elapsed_s == pytest.approx(5 * 3 * sum(COST.values())) and seen[0].max_rounds == 30


def test_slow_rounds_show_their_width_from_the_sixth_on_without_deciding():
    seen = []
    slow = {n: 100 * c for n, c in COST.items()}
    measured = measure(FakeClock(slow), budget_s=15 * 100 * ROUND_S, lead_in=1, half_width=lambda r: 0.001,
                       progress=seen.append)
    assert [p.half_width for p in seen] == [None] * 5 + [0.001] * 10
    assert measured.stop == "budget" and measured.widths == ()


# ---------------------------------------------------------------- Ctrl-C and errors

def check_kept(measured, fake, kept):
    assert measured.stop == "interrupted"
    assert all(set(r.step_s) == set(COST) and set(r.canary_s) == {"matmul"} for r in measured.rounds)
    assert list(measured.rounds)[:len(kept)] == kept and len(measured.rounds) - len(kept) <= 1
    assert not fake.inside and gc.isenabled() and gc.get_freeze_count() == 0


def interrupted(fake, kept, **options):
    return measure(fake, canary={"matmul": fake.step("matmul")}, k=1, lead_in=1, max_rounds=2, target=0,
                   on_round=lambda r: (fake.happen("saved"), kept.__setitem__(slice(None), r)), **options)


def test_ctrl_c_in_whatever_happens_keeps_the_complete_rounds():
    whole = FakeClock({**COST, "matmul": 0.001})
    assert interrupted(whole, []).stop == "rounds"
    for n in range(1, len(whole.log) + 1):
        fake, kept = FakeClock({**COST, "matmul": 0.001}, interrupt_at=n), []
        measured = interrupted(fake, kept)
        check_kept(measured, fake, kept)
        assert len(measured.rounds) >= whole.log[:n - 1].count("saved")


def test_ctrl_c_at_any_line_keeps_the_complete_rounds():
    """A KeyboardInterrupt at the n-th line that runs inside rounds.py, for every n of two rounds."""
    guarded = {f.__code__ for f in (sample, module.one_round, module._canary_sample, module._stop, module.fits,
                                    no_collection.__wrapped__)}

    def run(n):
        count, raised = 0, False
        fake, kept = FakeClock({**COST, "matmul": 0.001}), []

        def trace(frame, event, arg):
            nonlocal count, raised
            if frame.f_code not in guarded:
                return None
            if event == "line":
                count += 1
                if count == n and not raised:
                    raised = True
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            measured = interrupted(fake, kept)
        finally:
            sys.settrace(before)
        return measured, fake, kept, raised

    n, raised = 0, True
    while raised:
        n += 1
        measured, fake, kept, raised = run(n)
        if raised:
            check_kept(measured, fake, kept)
    assert n > 200 and measured.stop == "rounds"


def test_a_second_ctrl_c_while_leaving_still_leaves():
    fake, left = FakeClock(COST), []

    def leave():
        left.append(1)
        if len(left) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(replace(fake.timed("base"), leave=leave), 1, 1, fake.clock())
    assert left == [1, 1]


def test_an_error_of_the_step_passes_through_with_everything_put_back():
    fake, kept = FakeClock(COST), []
    broken = fake.timed("base")
    step = broken.step

    def fails():
        step()
        if fake.steps["base"] == 9:
            raise MemoryError("out of memory")

    timed = [replace(broken, step=fails), *(fake.timed(n) for n in COST if n != "base")]
    with pytest.raises(MemoryError):
        measure_rounds(timed, clock=fake.clock(), k=1, rng_seed=0, budget_s=1e9, target=0, half_width=width_of,
                       on_round=lambda r: kept.append(len(r)))
    assert kept == [1, 2, 3] and not fake.inside and gc.isenabled() and gc.get_freeze_count() == 0
