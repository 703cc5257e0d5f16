"""Is perfscope right? Coverage, false alarms and detections, each with Wilson's interval (METHOD section 15).

    python -m benchmarks.accuracy            every level
    python -m benchmarks.accuracy V0 --trials 1000

One function per level, found in LEVELS; it takes the number of trials and yields a `Rate` per line. V0 is synthetic:
sample times with a known truth, noise, a drifting clock and spikes, seeded, standard library only. V2 and V5 plant
known costs in a real step on this CPU (benchmarks/planted.py).
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

from perfscope.measure import stats

NOISE = 0.01                # sd of a sample, relative: several times a quiet GPU's, a fraction of a busy CPU's
TREND, WANDER = 0.03, 0.002  # clock drift: 3 % over the run on top of a random walk of 0.2 % per sample
SPIKES, SPIKE = 0.02, 0.3   # one sample in 50 is late, by 30 % on average (exponential)
SEED = 20181105
SIZES = (12, 20, 40)        # rounds
MOST_REAL_TRIALS = 25       # METHOD 15: trials of V2; real steps take real time
#: A step taken apart: seconds by variant. The ladder's shares are 50, 24, 10, 12 and 4 %.
STEP = {"base": 5.0e-3, "+norm": 7.4e-3, "+activation": 8.4e-3, "+optimizer": 9.6e-3, "+data": 10.0e-3}


@dataclass(frozen=True)
class Rate:
    """k of n trials, and what METHOD 15 asks of the rate, if it does."""

    what: str
    k: int
    n: int
    low: float = 0.0
    high: float = 1.0

    @property
    def ok(self) -> bool:
        """Whether the rate lies within the bounds."""
        return self.low <= self.k / self.n <= self.high


class Clock:
    """A simulated machine: the level drifts with every sample, noise and spikes hit each sample alone."""

    def __init__(self, rng: random.Random, samples: int, noise: float = NOISE, drift: bool = True, spikes: bool = True):
        self.rng, self.noise, self.spikes = rng, noise, spikes
        self.slope = rng.gauss(0, TREND) / samples if drift else 0.0
        self.wander = WANDER if drift else 0.0
        self.level = 0.0

    def sample(self, seconds: float) -> float:
        """One measured sample of something that takes so many seconds."""
        self.level += self.slope + self.rng.gauss(0, self.wander)
        late = 1 + self.rng.expovariate(1 / SPIKE) if self.spikes and self.rng.random() < SPIKES else 1.0
        return seconds * math.exp(self.level + self.rng.gauss(0, self.noise)) * late


def interleaved(clock: Clock, cost: dict[str, float], rounds: int) -> dict[str, list[float]]:
    """METHOD 4: every variant once per round, in a fresh random order."""
    times, order = {v: [] for v in cost}, list(cost)
    for _ in range(rounds):
        clock.rng.shuffle(order)
        for v in order:
            times[v].append(clock.sample(cost[v]))
    return times


def one_after_the_other(clock: Clock, cost: dict[str, float], rounds: int) -> dict[str, list[float]]:
    """The naive design: A n times, then B n times."""
    return {v: [clock.sample(seconds) for _ in range(rounds)] for v, seconds in cost.items()}


def welch(a: list[float], b: list[float]) -> stats.Interval:
    """What is usually done with the naive design: the interval of the difference of the mean logs (normal)."""
    a, b = [math.log(x) for x in a], [math.log(x) for x in b]
    half = NormalDist().inv_cdf(0.975) * math.sqrt(variance(a) / len(a) + variance(b) / len(b))
    return stats.Interval(fmean(b) - fmean(a), fmean(b) - fmean(a) - half, fmean(b) - fmean(a) + half)


def ratio_trials(trials: int, rounds: int, change: float, naive: bool = False, seed: int = SEED, **machine
                 ) -> list[stats.Interval]:
    """Intervals of ln(B/A) where B truly costs exp(change) times A, one per trial."""
    rng, found, cost = random.Random(f"{seed} {rounds} {change} {naive} {machine}"), [], {"a": 1e-2, "b": 1e-2}
    cost["b"] *= math.exp(change)
    for _ in range(trials):
        clock = Clock(rng, 2 * rounds, **machine)
        times = (one_after_the_other if naive else interleaved)(clock, cost, rounds)
        found.append((welch if naive else stats.log_ratio)(times["a"], times["b"]))
    return found


def share_trials(trials: int, rounds: int, cost: dict[str, float] = STEP, seed: int = SEED, **machine
                 ) -> list[tuple[stats.Interval, float]]:
    """(interval, true share) of every rung of the ladder in `cost`, over all trials."""
    rng, found, rungs = random.Random(f"{seed} {rounds} {machine}"), [], list(cost)
    full = rungs[-1]
    for _ in range(trials):
        level = stats.levels(interleaved(Clock(rng, len(cost) * rounds, **machine), cost, rounds))
        found.append((stats.linear_share(level, {rungs[0]: 1}, full), cost[rungs[0]] / cost[full]))
        for below, above in zip(rungs, rungs[1:]):
            found.append((stats.linear_share(level, {above: 1, below: -1}, full),
                          (cost[above] - cost[below]) / cost[full]))
    return found


def covered(pairs) -> int:
    """How many intervals hold the truth."""
    return sum(interval.low <= truth <= interval.high for interval, truth in pairs)


def alarms(intervals: list[stats.Interval]) -> int:
    """How many intervals exclude "no change"."""
    return sum(i.low > 0 or i.high < 0 for i in intervals)


MACHINES = {"quiet": {"drift": False, "spikes": False}, "drift": {"spikes": False}, "drift, spikes": {}}


def v0(trials: int) -> Iterator[Rate]:
    """Statistics on synthetic arrays."""
    for name, machine in MACHINES.items():
        for n in SIZES:
            same, two = (ratio_trials(trials, n, change, **machine) for change in (0.0, 0.02))
            yield Rate(f"ratio, coverage, {n} rounds, {name}", covered((i, 0.02) for i in two), trials, .93, .97)
            yield Rate(f"ratio, false alarms, {n} rounds, {name}", alarms(same), trials, 0, .07)
            yield Rate(f"ratio, +2 % called SLOWER, {n} rounds, {name}",
                       sum(stats.verdict(i, n).word == "SLOWER" for i in two), trials)
            naive = ratio_trials(trials, n, 0.0, naive=True, **machine)
            yield Rate(f"  A n times, then B: false alarms, n = {n}, {name}", alarms(naive), trials)
    for name, machine in MACHINES.items():
        for n in SIZES:
            shares = share_trials(max(1, trials // 4), n, **machine)
            yield Rate(f"shares, coverage, {n} rounds, {name}", covered(shares), len(shares), .93, .97)


def v2(trials: int) -> Iterator[Rate]:
    """A spin of 10 % of the step in one part of a real step, found by CPU time; and the same step twice."""
    from benchmarks.planted import ROUNDS, v2_trials

    n = min(trials, MOST_REAL_TRIALS)
    found = v2_trials(n)
    yield Rate("the same step twice: false alarms", alarms([same for same, _ in found]), n, 0, .10)
    yield Rate("+10 % planted, called SLOWER", sum(stats.verdict(i, ROUNDS).word == "SLOWER" for _, i in found), n, .95, 1)


def v5(trials: int) -> Iterator[Rate]:
    """A delay of 20 % of the step in the activation: the share of that part rises by it, no other part's changes."""
    from benchmarks.planted import v5_trials

    n = min(trials, MOST_REAL_TRIALS)
    found = v5_trials(n)
    for part in found[0]:
        yield Rate(f"{part}: interval of the change holds the truth", covered(f[part] for f in found), n, .75, 1)
    yield Rate("activation: the delay is found (its interval excludes no change)", alarms([f["activation"][0] for f in found]), n, .95, 1)
    recovered = fmean(f["activation"][0].point / f["activation"][1] for f in found)
    yield Rate(f"activation: {recovered:.1%} of what was planted, within 10 %", int(abs(recovered - 1) < .10), 1, 1, 1)


#: Levels of METHOD 15 by name: trials -> rates.
LEVELS: dict[str, Callable[[int], Iterator[Rate]]] = {"V0": v0, "V2": v2, "V5": v5}


def main(argv: list[str] | None = None) -> int:
    """Prints the rates; 1 if one is out of its bounds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("levels", nargs="*", choices=[*LEVELS, []], help=f"of {', '.join(LEVELS)}; default: all")
    parser.add_argument("--trials", type=int, default=2000, help="per line (default 2000)")
    args, failed = parser.parse_args(argv), 0
    for level in args.levels or LEVELS:
        started = time.perf_counter()
        print(f"{level}: {LEVELS[level].__doc__} Rates with 95 % Wilson intervals.")
        for rate in LEVELS[level](args.trials):
            i = stats.wilson(rate.k, rate.n)
            asked = "" if (rate.low, rate.high) == (0, 1) else f"{rate.low:.0%}-{rate.high:.0%}"
            print(f"  {rate.what:<68} {i.point:6.1%} [{i.low:6.1%},{i.high:6.1%}] {asked:>8}"
                  f"{'' if rate.ok else '  MISSED'}", flush=True)
            failed += not rate.ok
        print(f"  {level} took {time.perf_counter() - started:.0f} s")
    print("all within the bounds" if not failed else f"{failed} out of bounds")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
