"""The statistics of METHOD.md sections 3, 5, 6, 7 and 8. Standard library only, pure functions.

In the order of this file: intervals and quantiles; ratios of two variants; shares of a breakdown; spread and drift;
the stop rule; verdicts. Seconds are of one step,
shares are fractions of 1, intervals are 95 % unless said otherwise. Too few values give an infinite interval or NaN,
never an exception: an interrupted run still has something honest to say.

One file of more than 250 lines, because everything that decides whether a number can be trusted is read together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import NormalDist, fmean, median, stdev

CONFIDENCE = 0.95
EXACT_N = 30                # signed ranks are counted exactly up to here (METHOD 5)
CLEAN_SPREADS = 6.0         # a round further than this from its level is not clean (METHOD 5)
NO_NOISE = 1e-9             # relative; below any clock's resolution: differences of this size are rounding
MDE_PER_HALF_WIDTH = 1.43   # (1.96 + 0.84) / 1.96: 80 % power at 5 % (METHOD 7)
MATTERS = 0.01              # d, the smallest change that matters (METHOD 8)
FIRST_LOOK, LOOK_EVERY, MOST_ROUNDS = 20, 10, 200    # METHOD 6
TARGET = 0.005              # default of --precision, share of the step (METHOD 6)
STALLED_GAIN, STALLED_LOOKS = 0.05, 3                # improved by < 5 % over the last 30 rounds (METHOD 6)
WINDOW, WINDOWS_AGREE = 10, 0.005                    # METHOD 3.3
HOPELESS_ROUNDS = 10_000    # above this more rounds are no answer: 50 runs of the most that METHOD 6 allows


# ---------------------------------------------------------------- intervals and quantiles

@dataclass(frozen=True)
class Interval:
    """A point estimate with its confidence interval (95 % unless said otherwise), in whatever unit it is used."""

    point: float
    low: float
    high: float
    extra: dict = field(default_factory=dict)

    @property
    def half_width(self) -> float:
        """Half of high - low; infinite if nothing is known."""
        return (self.high - self.low) / 2

    def scaled(self, k: float) -> Interval:
        """The interval of k times the quantity; `extra` goes along. A negative k swaps the ends."""
        ends = sorted((self.low * k, self.high * k))
        return Interval(self.point * k, ends[0], ends[1], dict(self.extra))


def unknown(point: float = math.nan) -> Interval:
    """The interval of something that was not measured, or not often enough: everything is possible."""
    return Interval(point, -math.inf, math.inf)


def product(a: Interval, b: Interval) -> Interval:
    """The interval of a * b for two estimates with independent errors, to first order."""
    point = a.point * b.point
    half = math.hypot(*(x.point * y.half_width if y.half_width else 0.0 for x, y in ((a, b), (b, a))))
    return unknown(point) if not math.isfinite(half) else Interval(point, point - half, point + half)


def z_quantile(p: float) -> float:
    """Quantile of the normal distribution."""
    return NormalDist().inv_cdf(p)


@lru_cache(maxsize=None)
def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t, 0.5 <= p < 1, integer df >= 1. Source: Abramowitz & Stegun 26.7.3, 26.7.4, inverted."""
    if df > 2000:                            # their 26.7.5; its next term is below 1e-6 here
        z = z_quantile(p)
        return z + (z ** 3 + z) / (4 * df)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_central(middle, df) < 2 * p - 1 else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _t_central(angle: float, df: int) -> float:
    """P(|t| < sqrt(df) tan(angle))."""
    cosine, odd = math.cos(angle), df % 2
    term = cosine if odd else 1.0
    total = 0.0 if df == 1 else term
    for i in range(3 if odd else 2, df - 1, 2):
        term *= cosine * cosine * (i - 1) / i
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def t_above(t: float, df: int) -> float:
    """P(T > t) of Student's t with df degrees of freedom: the one-sided p of a t statistic. Source: as `t_quantile`."""
    if math.isnan(t) or df < 1:
        return math.nan
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    if df > 2000:
        return NormalDist().cdf(-t * (1 - 1 / (4 * df)) / math.sqrt(1 + t * t / (2 * df)))     # A & S 26.7.8
    half = _t_central(math.atan(abs(t) / math.sqrt(df)), df) / 2
    return 0.5 - math.copysign(half, t)


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Student's interval of the mean; infinite for fewer than two values, NaN point for none."""
    n = len(values)
    mean = fmean(values) if n else math.nan
    if n < 2:
        return unknown(mean)
    half = t_quantile((1 + confidence) / 2, n - 1) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def wilson(k: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's interval of a rate: k of n trials. Nothing tried: anything from 0 to 1."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = z_quantile((1 + confidence) / 2)
    middle = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return Interval(k / n, max(0.0, middle - half), min(1.0, middle + half))


def quantile(values: Iterable[float], p: float) -> float:
    """Linearly interpolated quantile; NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    place = p * (len(ordered) - 1)
    below = int(place)
    return ordered[below] + (place - below) * (ordered[min(below + 1, len(ordered) - 1)] - ordered[below])


# ---------------------------------------------------------------- ratio of two variants (METHOD 5)

def hodges_lehmann(d: Sequence[float]) -> float:
    """The median of all pairwise means, each value with itself included; NaN of nothing."""
    return median(_pair_means(d)) if d else math.nan


def _pair_means(d: Sequence[float]) -> list[float]:
    return sorted((x + y) / 2 for i, x in enumerate(d) for y in d[i:])


@lru_cache(maxsize=None)
def signed_rank_counts(n: int) -> tuple[int, ...]:
    """In how many of the 2^n sign patterns the positive ranks sum to 0, 1, ... n(n+1)/2."""
    counts = [1] + [0] * (n * (n + 1) // 2)
    for rank in range(1, n + 1):
        for total in range(len(counts) - 1, rank - 1, -1):
            counts[total] += counts[total - rank]
    return tuple(counts)


@lru_cache(maxsize=None)
def signed_rank_cut(n: int, confidence: float = CONFIDENCE) -> int:
    """How many pair means lie outside at each end, plus one; 0 if n is too small for this confidence."""
    tail = (1 - confidence) / 2
    if n > EXACT_N:
        pairs, sd = n * (n + 1) / 2, math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return max(0, math.floor(pairs / 2 + 0.5 - z_quantile(1 - tail) * sd))
    counts, below, cut = signed_rank_counts(n), 0, 0
    while below + counts[cut] <= tail * 2 ** n:
        below += counts[cut]
        cut += 1
    return cut


def signed_rank_interval(d: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Hodges-Lehmann estimate with the interval that inverts the Wilcoxon signed-rank test; infinite for n < 6."""
    if not d:
        return unknown()
    means, cut = _pair_means(d), signed_rank_cut(len(d), confidence)
    return Interval(median(means), means[cut - 1], means[-cut]) if cut else unknown(median(means))


def log_ratio(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """ln(b/a) from samples paired by round: negative if b is faster. ValueError if they are not pairs."""
    if len(a) != len(b):
        raise ValueError(f"not paired: {len(a)} and {len(b)} samples")
    return signed_rank_interval([math.log(y / x) for x, y in zip(a, b)], confidence)


def log_ratio_of(a: Interval, b: Interval) -> Interval:
    """ln(b/a) of two positive quantities from different runs: not paired, so drift between the runs is not in it."""
    point = math.log(b.point / a.point) if a.point > 0 and b.point > 0 else math.nan
    half = math.hypot(a.half_width / a.point, b.half_width / b.point) if math.isfinite(point) else math.inf
    return Interval(point, point - half, point + half) if math.isfinite(half) else unknown(point)


def seconds_interval(seconds: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The typical sample (log scale, so a ratio of two of these is a ratio of times); (0, inf) for n < 6."""
    logs = signed_rank_interval([math.log(s) for s in seconds], confidence)
    return Interval(math.exp(logs.point), math.exp(logs.low), math.exp(logs.high))


def over_processes(estimates: Sequence[Interval | float], confidence: float = CONFIDENCE) -> Interval:
    """One estimate from several processes, with the process as the unit: a t interval, wide for two of them.

    One process alone keeps its own interval, which holds no process-to-process variation: extra["processes"] is 1.
    """
    if len(estimates) == 1 and isinstance(estimates[0], Interval):
        value = estimates[0]
    else:
        value = t_interval([e.point if isinstance(e, Interval) else e for e in estimates], confidence)
    return Interval(value.point, value.low, value.high, {**value.extra, "processes": len(estimates)})


# ---------------------------------------------------------------- shares of a breakdown (METHOD 5)

@dataclass(frozen=True)
class Levels:
    """Rounds with their common level taken out."""

    level: list[float]                       # l_r, by round, in ln seconds
    residual: dict[str, list[float]]         # e[r, v]
    spread: dict[str, float]                 # s of each variant
    clean: list[int]                         # indices of the clean rounds
    x: dict[str, list[float]]                # X[r, v], seconds, clean rounds only


def levels(times: Mapping[str, Sequence[float]]) -> Levels:
    """Levels, residuals and clean rounds of `times`: variant -> seconds by round, all positive and of one length.

    Two things beyond METHOD 5, found by simulation: s leaves out the residuals that are 0 because their variant is
    the median of its round (with 3 variants, counting them threw away 4-9 % of good rounds and cost 3 % of coverage),
    and a variant that is noisier than the rest is held against its own s.
    """
    logs = {v: [math.log(t) for t in column] for v, column in times.items()}
    middle = {v: median(column) if column else math.nan for v, column in logs.items()}
    rounds = len(next(iter(logs.values()), ()))
    level = [median(logs[v][r] - middle[v] for v in logs) for r in range(rounds)]
    residual = {v: [column[r] - middle[v] - level[r] for r in range(rounds)] for v, column in logs.items()}
    common = _spread(e for column in residual.values() for e in column)
    spread = {v: max(common, _spread(column)) for v, column in residual.items()}
    limit = {v: max(CLEAN_SPREADS * s, NO_NOISE) for v, s in spread.items()}
    clean = [r for r in range(rounds) if all(abs(column[r]) < limit[v] for v, column in residual.items())]
    x = {v: [column[r] / math.exp(level[r]) for r in clean] for v, column in times.items()}
    return Levels(level, residual, spread, clean, x)


def _spread(residuals: Iterable[float]) -> float:
    sizes = [abs(e) for e in residuals if e]
    return 1.4826 * median(sizes) if sizes else 0.0


def linear_share(times: Mapping[str, Sequence[float]] | Levels, numerator: Mapping[str, float], reference: str,
                 confidence: float = CONFIDENCE) -> Interval:
    """The share sum_v c_v X[., v] of X[., reference], with the delta method's interval (Student's t, n - 1).

    `numerator` maps variants to their coefficients c_v. Ladder, first, last, interaction and Shapley are all of this
    form; on the same `times` they use the same rounds, so what sums to 1 on paper sums to 1 here.
    """
    x = (times if isinstance(times, Levels) else levels(times)).x
    if any(v not in x for v in (*numerator, reference)) or not x[reference]:
        return unknown()
    full, n = x[reference], len(x[reference])
    top = [math.fsum(c * x[v][r] for v, c in numerator.items()) for r in range(n)]
    whole = math.fsum(full) / n
    share = math.fsum(top) / n / whole
    if n < 2:
        return unknown(share)
    variance = math.fsum(((t - share * f) / whole) ** 2 for t, f in zip(top, full)) / (n - 1)
    half = t_quantile((1 + confidence) / 2, n - 1) * math.sqrt(variance / n)
    return Interval(share, share - half, share + half)


def stall(seconds: Sequence[float], clean: Sequence[int]) -> float:
    """mean(all)/mean(clean rounds) - 1: what the hiccups cost; NaN if no round is clean."""
    return fmean(seconds) / fmean(seconds[r] for r in clean) - 1 if clean else math.nan


# ---------------------------------------------------------------- spread, drift, warm-up

def tukey(values: Sequence[float]) -> list[str]:
    """A label for each value: "" or "mild" (beyond 1.5 IQR of the quartiles) or "far" (beyond 3)."""
    low, high = quantile(values, 0.25), quantile(values, 0.75)
    width = max(high - low, NO_NOISE)
    beyond = [max(low - v, v - high) / width for v in values]
    return ["far" if b > 3 else "mild" if b > 1.5 else "" for b in beyond]


def mann_kendall(values: Sequence[float]) -> float:
    """z of the Mann-Kendall trend test, corrected for ties: positive if the values rise. 0 if nothing varies."""
    n = len(values)
    score = sum((y > x) - (y < x) for i, x in enumerate(values) for y in values[i + 1:])
    ties = {}
    for v in values:
        ties[v] = ties.get(v, 0) + 1
    variance = (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties.values())) / 18
    return (score - math.copysign(1, score)) / math.sqrt(variance) if score and variance > 0 else 0.0


def settled(samples: Sequence[float], window: int = WINDOW, agree: float = WINDOWS_AGREE) -> int | None:
    """How many first samples to drop: the least d for which the two windows after d agree in median. None: not yet."""
    for d in range(len(samples) - 2 * window + 1):
        one, two = median(samples[d:d + window]), median(samples[d + window:d + 2 * window])
        if abs(two - one) <= agree * one:
            return d
    return None


def spread_of(values: Sequence[float]) -> float:
    """(p95 - p5) / median: how much the canary wandered. NaN of nothing."""
    return (quantile(values, 0.95) - quantile(values, 0.05)) / median(values) if values else math.nan


# ---------------------------------------------------------------- the stop rule (METHOD 6)

def is_look(rounds: int) -> bool:
    """Whether the half-width is looked at after this many rounds."""
    return rounds >= FIRST_LOOK and rounds % LOOK_EVERY == 0


def should_stop(half_widths_history: Sequence[float], rounds: int, elapsed_s: float, budget_s: float | None,
                target: float = TARGET, most_rounds: int = MOST_ROUNDS) -> str | None:
    """Why to stop now: "precision", "rounds", "budget", "stalled", or None. Never on significance.

    half_widths_history   the widest headline half-width (a share of the step) at each look so far, oldest first
    rounds, elapsed_s     done so far; budget_s None means no limit. Rounds and budget count after every round,
                          precision and stalled only at a look (`is_look`).
    """
    history, look = half_widths_history, is_look(rounds) and bool(half_widths_history)
    if look and history[-1] <= target:
        return "precision"
    if rounds >= most_rounds:
        return "rounds"
    if budget_s is not None and elapsed_s >= budget_s:
        return "budget"
    if look and len(history) > STALLED_LOOKS and history[-1] >= (1 - STALLED_GAIN) * history[-1 - STALLED_LOOKS]:
        return "stalled"
    return None


# ---------------------------------------------------------------- verdicts (METHOD 7, 8)

def mde(half_width: float) -> float:
    """The smallest change that a run with this half-width finds with 80 % power."""
    return MDE_PER_HALF_WIDTH * half_width


@dataclass(frozen=True)
class Verdict:
    """FASTER, SLOWER, SAME or UNCLEAR, about the interval of ln(new/old)."""

    word: str
    change: Interval
    reason: str
    rounds_to_settle: int | None = None      # of UNCLEAR: rounds in all, about; None if more than 10 000


def verdict(change: Interval, rounds: int, smallest: float = MATTERS, adjusted_p: float | None = None) -> Verdict:
    """The verdict on an interval of ln(new/old) from so many rounds; `smallest` is the smallest change that matters.

    With several verdicts at once pass each one's `holm`-adjusted p: above 0.05 it is neither FASTER nor SLOWER.
    """
    low, high, point, d = change.low, change.high, change.point, smallest
    if not (math.isfinite(low) and math.isfinite(high) and math.isfinite(point)):
        need = next(n for n in range(1, EXACT_N) if signed_rank_cut(n))
        return Verdict("UNCLEAR", change, f"too few rounds for an interval: {rounds}, at least {need} are needed", need)
    holds = adjusted_p is None or adjusted_p <= 1 - CONFIDENCE
    if holds and high < 0 and -point >= d:
        return Verdict("FASTER", change, f"the whole interval is below 0, and the change is at least {100 * d:g} %")
    if holds and low > 0 and point >= d:
        return Verdict("SLOWER", change, f"the whole interval is above 0, and the change is at least {100 * d:g} %")
    if -d < low and high < d:
        return Verdict("SAME", change, f"the whole interval is within {100 * d:g} % of no change")
    if abs(point) >= d and (high < 0 or low > 0):
        reason = "not beyond chance among so many comparisons"
        shrink = z_quantile((1 + CONFIDENCE) / 2) / max(z_quantile(1 - min(1.0, adjusted_p) / 2), 1e-3)
    elif abs(point) >= d:
        reason = "the interval still holds 0: it may be no change at all"
        shrink = (high - point if point < 0 else point - low) / abs(point)
    else:
        reason = f"the interval reaches beyond {100 * d:g} %: neither ruled out nor shown"
        shrink = max((high - point) / (d - point), (point - low) / (d + point))
    settle = max(rounds + 1.0, rounds * shrink ** 2)                   # the width falls with the root of the rounds
    return Verdict("UNCLEAR", change, reason, math.ceil(settle) if settle <= HOPELESS_ROUNDS else None)


def p_value(change: Interval, confidence: float = CONFIDENCE) -> float:
    """Two-sided p of "no change" as read off an interval (normal approximation); 1 if nothing is known."""
    if not math.isfinite(change.half_width) or math.isnan(change.point):
        return 1.0
    if change.half_width == 0:
        return 1.0 if change.point == 0 else 0.0
    z = abs(change.point) / change.half_width * z_quantile((1 + confidence) / 2)
    return 2 * NormalDist().cdf(-z)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: compare them with 0.05."""
    adjusted, highest, m = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
