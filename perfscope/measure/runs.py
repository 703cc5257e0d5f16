"""What N runs to an accuracy say: against a target, how often, how long, and how many more it would take. Standard library only.

Accuracies are fractions of 1. The number of runs is fixed before the first: nothing here may decide when to stop.
"""

from __future__ import annotations

import math
from statistics import fmean, median, stdev
from typing import Sequence

from perfscope.measure.stats import CONFIDENCE, Interval, signed_rank_interval, t_above, t_interval, t_quantile, unknown, z_quantile

ALPHA = 0.01            # a certificate's one-sided p must be below this (REFERENCES section 3)
MOST_RUNS = 100_000     # above this, more runs are no answer
PASS_RATE = 0.95        # of "time for a 95 % pass rate"


def p_above(values: Sequence[float], target: float) -> float:
    """One-sided p of "the mean is not above the target" by Student's t; NaN for fewer than two values.

    Values that do not vary at all: 0 if they are above the target, 1 if not.
    """
    n = len(values)
    if n < 2:
        return math.nan
    spread, margin = stdev(values), fmean(values) - target
    if spread == 0:
        return 0.0 if margin > 0 else 1.0
    return t_above(margin / (spread / math.sqrt(n)), n - 1)


def runs_for(margin: float, spread: float, p: float) -> int | None:
    """How many runs show a margin with this standard deviation: the least n with margin / (s / sqrt n) > t quantile p of n - 1.

    None if the margin is not positive or it takes more than 100 000. Source: the t test's sample size, solved by search from the normal one.
    """
    if not margin > 0 or not math.isfinite(spread):
        return None
    n = max(2, math.floor(min((z_quantile(p) * spread / margin) ** 2, MOST_RUNS + 1)))     # the normal quantile's n is never more
    while n <= MOST_RUNS and margin * math.sqrt(n) <= spread * t_quantile(p, n - 1):
        n += 1
    return n if n <= MOST_RUNS else None


def runs_to_certify(values: Sequence[float], target: float, alpha: float = ALPHA) -> int | None:
    """How many runs, in all, would certify a mean and spread like these; None if none would, or nothing is known."""
    return runs_for(fmean(values) - target, stdev(values), 1 - alpha) if len(values) > 1 else None


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The median with its order-statistics interval (sign test; coverage at least `confidence`); infinite for n < 6."""
    ordered, n = sorted(values), len(values)
    if not n:
        return unknown()
    tail, below, cut = (1 - confidence) / 2, 0.0, 0
    while below + math.comb(n, cut) / 2 ** n <= tail:
        below += math.comb(n, cut) / 2 ** n
        cut += 1
    return Interval(median(ordered), ordered[cut - 1], ordered[n - cut]) if cut else unknown(median(ordered))


def time_for_pass_rate(seconds: float, passed: float, rate: float = PASS_RATE) -> float:
    """Seconds until at least one of several runs has passed with probability `rate`: seconds x ln(1 - rate) / ln(1 - passed).

    At least one run; infinite where none passes. Source: "time to solution" of optimisation benchmarks, TTS(0.95).
    """
    if not passed > 0:
        return math.inf
    return seconds if passed >= rate else seconds * math.log(1 - rate) / math.log(1 - passed)


def non_inferior(before: Sequence[float], after: Sequence[float], margin: float) -> tuple[Interval, bool | None, int | None]:
    """(after - before, whether it is not worse by more than the margin, runs that would settle it) from pairs of equal seeds.

    METHOD 14.4: the interval's low end is above -margin. False if its high end is below; None if neither. ValueError if they are no pairs.
    """
    if len(before) != len(after):
        raise ValueError(f"not paired: {len(before)} and {len(after)} runs")
    change = t_interval([b - a for a, b in zip(before, after)])
    if change.low > -margin:
        return change, True, None
    return change, False if change.high < -margin else None, runs_to_settle(before, after, -margin)


def runs_to_settle(before: Sequence[float], after: Sequence[float], against: float = 0.0) -> int | None:
    """How many pairs would tell the mean difference from `against`, at the difference and spread seen; None if unknown or hopeless."""
    d = [b - a for a, b in zip(before, after)]
    return runs_for(abs(fmean(d) - against), stdev(d), (1 + CONFIDENCE) / 2) if len(d) > 1 else None


def time_change(before: Sequence[float], after: Sequence[float]) -> Interval:
    """ln(after / before) from pairs: Hodges-Lehmann with the signed-rank interval, and for fewer than 6 pairs a t interval of the logs.

    The signed-rank interval does not exist for n < 6; METHOD 14.4 asks for at least 5 pairs. `extra["by"]` says which it is.
    """
    logs = [math.log(b / a) for a, b in zip(before, after)]
    by_rank = signed_rank_interval(logs)
    known = math.isfinite(by_rank.half_width)
    value = by_rank if known else t_interval(logs)
    return Interval(value.point, value.low, value.high, {"by": "signed ranks" if known else "t"})
