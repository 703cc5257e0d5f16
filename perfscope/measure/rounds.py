"""Interleaved, paired rounds: every variant once per round in a fresh random order. METHOD sections 1, 4 and 6."""

from __future__ import annotations

import contextlib
import gc
import random
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Callable, Iterator, Sequence

from perfscope.measure import stats
from perfscope.measure.clock import Clock
from perfscope.record import Round

LEAD_IN_STEPS = 2       # METHOD 1
LEAD_IN_STEPS_CPU = 1   # issue 2, bar 6: no queue to fill on a CPU, and a step is dear
LEAST_ROUNDS = 6        # METHOD 5: the least from which the signed-rank test gives a 95 % interval
OVERDRAFT = 2.0         # for the least rounds the budget may be exceeded, but not beyond this factor
GLANCE_S = 1.0          # rounds slower than this: the width is worth showing (never deciding) after each of them


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Timed:
    """A variant that can be timed.

    step    one training step, asynchronous on a device
    enter   makes this variant the current one; called outside the timed region
    leave   makes sure that this variant is not the current one. Called after every `enter`, also when that one failed;
            after Ctrl-C it may come twice, or without an `enter`
    replay  the step captured in a CUDA graph, for the busy clock; None if there is none
    """

    name: str
    step: Callable[[], None]
    enter: Callable[[], None] = _nothing
    leave: Callable[[], None] = _nothing
    replay: Callable[[], None] | None = None


@dataclass(frozen=True)
class Progress:
    """Where a measurement stands; `half_width` is None until it was first computed."""

    rounds: int
    max_rounds: int
    elapsed_s: float
    budget_s: float
    half_width: float | None
    target: float


@dataclass(frozen=True)
class Measured:
    """The complete rounds, why there are no more of them, and what measuring cost (seconds of wall time)."""

    rounds: tuple[Round, ...]
    stop: str                                   # precision rounds budget stalled interrupted
    own_cost: dict[str, float]                  # wall_s timed_s lead_in_s warmup_s canary_s busy_s
    widths: tuple[tuple[int, float], ...] = field(default=())   # (rounds, half-width) at every look


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Garbage collection off inside; as it was before afterwards, whatever happens."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def sample(timed: Timed, k: int, lead_in: int, clock: Clock, read: Callable[[], dict] | None = None) -> dict[str, Any]:
    """One sample: enter, lead-in steps, sync, t0, k steps, sync, t1, leave.

    Gives `step_s`, with a device clock `device_s`, with a replay `busy_s` (all seconds per step), `telemetry` (what
    `read()` gave right after the timed steps), and what it took in seconds of wall time: `lead_in_s`, `timed_s`,
    `replay_s`. Whatever is raised inside, `leave` is called and garbage collection is as before.
    """
    step, device, steps = timed.step, clock.device, range(k)
    try:
        with no_collection():
            timed.enter()
            clock.synchronize()
            w0 = clock.wall_ns()
            for _ in range(lead_in):
                step()
            clock.synchronize()
            w1 = clock.wall_ns()
            if device:
                device.start()
            t0 = clock.now_ns()
            for _ in steps:
                step()
            if device:
                device.stop()
            clock.synchronize()
            t1 = clock.now_ns()
            w2 = clock.wall_ns()
            result = {"step_s": (t1 - t0) / k / 1e9, "lead_in_s": (w1 - w0) / 1e9, "timed_s": (w2 - w1) / 1e9}
            if device:
                result["device_s"] = device.seconds() / k
            if read:
                result["telemetry"] = read()
            if timed.replay:
                result["busy_s"] = _busy(timed.replay, k, clock)
                result["replay_s"] = (clock.wall_ns() - w2) / 1e9
    finally:
        try:
            timed.leave()
        except KeyboardInterrupt:
            timed.leave()
            raise
    return result


def _busy(replay: Callable[[], None], k: int, clock: Clock) -> float:
    """Seconds per step of k replays in a row, after one unmeasured; on the device's clock where there is one."""
    replay()
    clock.synchronize()
    if clock.device:
        clock.device.start()
    t0 = clock.now_ns()
    for _ in range(k):
        replay()
    if clock.device:
        clock.device.stop()
    clock.synchronize()
    return (clock.device.seconds() if clock.device else (clock.now_ns() - t0) / 1e9) / k


def orders(names: Sequence[str], seed: int) -> Iterator[tuple[str, ...]]:
    """A fresh random order of the names for every round, endless, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield tuple(rng.sample(list(names), len(names)))


def _canary_sample(call: Callable[[], None], clock: Clock) -> float:
    """Seconds of one call, after one unmeasured."""
    call()
    clock.synchronize()
    t0 = clock.now_ns()
    call()
    clock.synchronize()
    return (clock.now_ns() - t0) / 1e9


def one_round(variants: dict[str, Timed], order: tuple[str, ...], k: int, lead_in: int, clock: Clock,
              canary: dict[str, Callable[[], None]], read: Callable[[], dict] | None, cost: dict[str, float]) -> Round:
    """Every variant once in this order, the canary first. Adds to `cost` in place, also when the round breaks off."""
    w0 = clock.wall_ns()
    with no_collection():
        canary_s = {name: _canary_sample(call, clock) for name, call in canary.items()}
    cost["canary_s"] += (clock.wall_ns() - w0) / 1e9
    samples = {}
    for name in order:
        s = samples[name] = sample(variants[name], k, lead_in, clock, read)
        for key in ("lead_in_s", "timed_s"):
            cost[key] += s[key]
        cost["busy_s"] += s.get("replay_s", 0.0)
    column = lambda key: {name: s[key] for name, s in samples.items() if key in s}  # noqa: E731
    return Round(order=order, step_s=column("step_s"), device_s=column("device_s"), busy_s=column("busy_s"),
                 canary_s=canary_s, telemetry={name: t for name, t in column("telemetry").items() if t})


def fits(rounds: int, elapsed_s: float, round_s: float, budget_s: float) -> bool:
    """Whether one more round of `round_s` may start.

    It has to end within the budget; as long as there are fewer rounds than an interval needs, within twice the budget.
    """
    return rounds == 0 or elapsed_s + round_s <= budget_s * (OVERDRAFT if rounds < LEAST_ROUNDS else 1.0)


def measure_rounds(variants: Sequence[Timed], *, clock: Clock, k: int, rng_seed: int, budget_s: float, target: float,
                   half_width: Callable[[list[Round]], float], lead_in: int = LEAD_IN_STEPS,
                   canary: dict[str, Callable[[], None]] | None = None, max_rounds: int = stats.MOST_ROUNDS,
                   warmup_s: float = 0.0,
                   progress: Callable[[Progress], None] | None = None,
                   on_round: Callable[[list[Round]], None] | None = None,
                   telemetry_read: Callable[[], dict] | None = None,
                   agree: Callable[[Any], Any] | None = None) -> Measured:
    """Rounds until the interval is narrow enough, or one of the other stops of METHOD 6, whichever is first.

    half_width(rounds) is the widest headline half-width as a share of the step, held against `target`; it decides only
    at the looks (`stats.is_look`). `budget_s` counts from the call. `on_round` gets all complete rounds after each one,
    `progress` where the measurement stands. `warmup_s`, spent by the caller before, only goes into `own_cost`.
    `agree(value)` gives rank 0's value on every rank (called once for the seed and once before each round), so that
    all ranks walk through the same orders and stop together.
    Ctrl-C drops the unfinished round, keeps all others and gives stop="interrupted". Other errors (out of memory, the
    user's own) pass through after `leave`; `on_round` has seen the complete rounds by then.
    """
    by_name = {v.name: v for v in variants}
    if not by_name or len(by_name) != len(variants):
        raise ValueError(f"variants need names of their own, got {[v.name for v in variants]}")
    agree = agree or (lambda value: value)
    cost = dict.fromkeys(("wall_s", "timed_s", "lead_in_s", "warmup_s", "canary_s", "busy_s"), 0.0)
    rounds: list[Round] = []
    widths: list[tuple[int, float]] = []
    spent: list[float] = []                     # wall seconds of each round
    stop, width, was, start = "", None, gc.isenabled(), clock.wall_ns()
    elapsed = lambda: (clock.wall_ns() - start) / 1e9  # noqa: E731
    try:
        order = orders(list(by_name), agree(rng_seed))
        gc.collect()
        gc.freeze()                             # what lives already is not walked through again after every round
        while not (stop := agree(_stop(len(rounds), widths, target, max_rounds, elapsed(), spent, budget_s))):
            begun = elapsed()
            rounds.append(one_round(by_name, next(order), k, lead_in, clock, canary or {}, telemetry_read, cost))
            gc.collect()
            n = len(rounds)
            if stats.is_look(n):
                width = half_width(rounds)
                widths.append((n, width))
            elif progress and n >= LEAST_ROUNDS and elapsed() - begun > GLANCE_S:
                width = half_width(rounds)
            if on_round:
                on_round(rounds)
            if progress:
                progress(Progress(n, max_rounds, elapsed(), budget_s, width, target))
            spent.append(elapsed() - begun)
    except KeyboardInterrupt:
        stop = "interrupted"
        for timed in variants:                  # the one inside, wherever Ctrl-C came
            timed.leave()
    finally:
        gc.unfreeze()
        if was:
            gc.enable()
    cost.update(wall_s=elapsed() + warmup_s, warmup_s=warmup_s)
    return Measured(tuple(rounds), stop, cost, tuple(widths))


def _stop(rounds: int, widths: list[tuple[int, float]], target: float, max_rounds: int, elapsed_s: float,
          spent: list[float], budget_s: float) -> str:
    """Why not to start another round, or "". A round is expected to take as long as the last five in the median."""
    reason = stats.should_stop([w for _, w in widths], rounds, elapsed_s, None, target, max_rounds)
    if reason:
        return reason
    return "" if fits(rounds, elapsed_s, median(spent[-5:]) if spent else 0.0, budget_s) else "budget"
