"""The statistics of METHOD.md sections 3, 5, 6, 7, 8 and 11. Standard library only, pure functions.

In the order of this file: intervals and quantiles; ratios of two variants; shares of a breakdown; spread and drift;
the stop rule; verdicts; scaling with the batch size; the digits that an interval supports. Seconds are of one step,
shares are fractions of 1, intervals are 95 % unless said otherwise. Too few values give an infinite interval or NaN,
never an exception: an interrupted run still has something honest to say.

One file of more than 250 lines, because everything that decides whether a number can be trusted is read together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
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
KNEE = 0.05                 # the knee is the least batch within 5 % of the best throughput (METHOD 11)
BETWEEN_BLOCKS = 0.01       # sd of one batch size against another: they are measured minutes apart, drift is not paired
PER_PARAMETER = 4.0         # chi-square that one more term of a fit has to gain: two standard errors


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

    def central(angle: float) -> float:      # P(|t| < sqrt(df) tan(angle))
        cosine, odd = math.cos(angle), df % 2
        term = cosine if odd else 1.0
        total = 0.0 if df == 1 else term
        for i in range(3 if odd else 2, df - 1, 2):
            term *= cosine * cosine * (i - 1) / i
            total += term
        return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if central(middle) < 2 * p - 1 else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


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


# ---------------------------------------------------------------- scaling with the batch size (METHOD 11)

@dataclass(frozen=True)
class StepFit:
    """t(B) = max(h, a + b B) in seconds; NaN where the points do not say."""

    h: float
    a: float
    b: float
    b_half: float | None                     # a/b: the batch at which half of the step is overhead
    knee: int | None                         # least measured batch within 5 % of the best throughput
    worst: float                             # greatest relative error at a measured point


@dataclass(frozen=True)
class PartFit:
    """t(B)/B = per_step_s/B + per_sample_s + growth_s * log2(B/b_min), b_min the smallest batch measured."""

    per_step_s: float
    per_sample_s: float
    growth_s: float
    kind: str                                # "per step", "per sample", "grows", "mixed", "too few points"
    words: str
    b_min: int = 0


def _least_squares(columns: Sequence[Sequence[float]], target: Sequence[float]) -> list[float] | None:
    """Coefficients that minimise the squared error, by the normal equations; None if they are singular."""
    k = len(columns)
    rows = [[math.fsum(x * y for x, y in zip(p, q)) for q in (*columns, target)] for p in columns]
    for i in range(k):
        pivot = max(range(i, k), key=lambda j: abs(rows[j][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        if abs(rows[i][i]) < 1e-12 * max(abs(x) for x in rows[i]) or rows[i][i] == 0:
            return None
        rows[i] = [x / rows[i][i] for x in rows[i]]
        rows = [row if j == i else [x - row[i] * y for x, y in zip(row, rows[i])] for j, row in enumerate(rows)]
    return [row[-1] for row in rows]


def _nonnegative_fits(columns: Sequence[Sequence[float]], target: Sequence[float], most: int):
    """Every fit with at most `most` of the columns and only positive coefficients: {used: (rss, all coefficients)}."""
    fits = {}
    for size in range(1, most + 1):
        for used in combinations(range(len(columns)), size):
            solution = _least_squares([columns[i] for i in used], target)
            if solution and min(solution) > 0:
                c = [0.0] * len(columns)
                for i, value in zip(used, solution):
                    c[i] = value
                rss = math.fsum((t - math.fsum(ci * column[r] for ci, column in zip(c, columns))) ** 2
                                for r, t in enumerate(target))
                fits[used] = (rss, c)
    return fits


def fit_step(points: Mapping[int, float]) -> StepFit:
    """Least squares of the relative errors of t(B) = max(h, a + b B), with h, a, b >= 0, from {B: seconds per step}.

    h is used only where a straight line misses a point by more than 2 % and a flat start at least halves the error:
    with four points a third number fits anything. Fewer than two points say nothing.
    """
    points = {b: t for b, t in sorted(points.items()) if math.isfinite(t) and t > 0}
    batches, n = list(points), len(points)
    knee = next((b for b in batches if b / points[b] >= (1 - KNEE) * max(c / points[c] for c in batches)), None)
    if n < 2:
        return StepFit(math.nan, math.nan, math.nan, None, None, math.nan)

    def line(some):
        fits = _nonnegative_fits([[1 / points[b] for b in some], [b / batches[0] / points[b] for b in some]],
                                 [1.0] * len(some), 2)
        _, (a, b) = min(fits.values())
        return a, b / batches[0]

    def errors(h, a, b):
        return [abs(max(h, a + b * size) / t - 1) for size, t in points.items()]

    best = (0.0, *line(batches))
    if max(errors(*best)) > 0.02:
        for flat in range(1, n - 1):          # so many of the smallest batches are on h, two or more on the line
            inverse = [1 / points[b] for b in batches[:flat]]
            h = math.fsum(inverse) / math.fsum(x * x for x in inverse)
            other = (h, *line(batches[flat:]))
            if sum(e * e for e in errors(*other)) < sum(e * e for e in errors(*best)) / (4 if best[0] == 0 else 1):
                best = other
    h, a, b = best
    return StepFit(h, a, b, a / b if b > 0 else None, knee, max(errors(*best)))


def fit_part(points: Mapping[int, Interval | float]) -> PartFit:
    """How a part scales, from {B: its seconds per step}: coefficients, a kind and words.

    Each term of t(B)/B = a/B + b + g log2(B/B_min), none negative, has to earn its place against the uncertainty of
    the points: their intervals, at least 1 % between batch sizes, and their scatter around the best fit if greater.
    "per step": the cost per sample about halves as the batch doubles (launch-bound); "per sample": flat; "grows": a
    bad kernel; "mixed": between the first two; "too few points": fewer than 3, or too uncertain to tell these apart.
    """
    values = {b: p if isinstance(p, Interval) else Interval(p, p, p) for b, p in sorted(points.items())}
    values = {b: p.scaled(1 / b) for b, p in values.items() if math.isfinite(p.point) and math.isfinite(p.half_width)}
    n, nan = len(values), math.nan
    if n < 3:
        return PartFit(nan, nan, nan, "too few points", f"measured at {n} batch sizes, 3 or more are needed",
                       min(values, default=0))
    b_min, b_max = min(values), max(values)
    floor = BETWEEN_BLOCKS * max(abs(p.point) for p in values.values()) / 10    # a part that is 0 somewhere
    sd = [max(p.half_width / 1.96, BETWEEN_BLOCKS * abs(p.point), floor, 1e-15) for p in values.values()]
    columns = [[f(b) / s for b, s in zip(values, sd)]
               for f in (lambda b: b_min / b, lambda b: 1.0, lambda b: math.log2(b / b_min))]
    fits = _nonnegative_fits(columns, [p.point / s for p, s in zip(values.values(), sd)], most=min(3, n - 1))
    fits = {used: fit for used, fit in fits.items() if used in ((0,), (1,), (0, 1), (1, 2), (0, 1, 2))}
    if not fits:
        return PartFit(nan, nan, nan, "too few points", "too small to tell how it scales", b_min)
    scatter = max(1.0, min(rss / (n - len(used)) for used, (rss, _) in fits.items() if len(used) < 3))
    worth = {used: rss / scatter + PER_PARAMETER * len(used) for used, (rss, _) in fits.items()}
    used = min(worth, key=worth.get)
    a, b, g = fits[used][1]
    a, doublings = a * b_min, math.log2(b_max / b_min)
    fitted = [a / size + b + g * math.log2(size / b_min) for size in values]
    slope = math.log2(fitted[-1] / fitted[0]) / doublings          # -1: halves with each doubling of the batch; 0: flat
    growth = (fitted[-1] / min(fitted)) ** (1 / doublings) - 1
    unsure = all(one in worth and worth[one] < worth[used] + PER_PARAMETER for one in ((0,), (1,)))
    if unsure:
        kind, words = "too few points", "too uncertain to tell a cost per step from a cost per sample"
    elif growth >= MATTERS:
        kind, words = "grows", f"each sample costs {100 * growth:.1f} % more with every doubling of the batch: " \
                               "look for a bad kernel"
    elif slope <= -0.7:
        kind, words = "per step", f"{format_seconds(a)} per step, whatever the batch: launch-bound"
    elif slope > -0.05:
        kind, words = "per sample", f"{format_seconds(fitted[-1])} per sample at every batch size"
    else:
        kind, words = "mixed", f"{format_seconds(a)} per step and {format_seconds(b)} per sample"
    return PartFit(a, b, g, kind, words, b_min)


# ---------------------------------------------------------------- the digits that an interval supports (METHOD 7)

def decimals(half_width: float, most: int = 3) -> int:
    """How many decimals to print: rounding may not exceed the half-width, nor may it hide less than a tenth of it.

    Negative for tens and hundreds.
    """
    if half_width <= 0 or not math.isfinite(half_width):
        return most
    return min(most, math.ceil(-math.log10(2 * half_width) - 1e-9))


def _format(point: float, half: float, most: int, error: bool) -> str:
    if not math.isfinite(point):
        return "-"
    if not math.isfinite(half):               # a number, but nobody knows how good: two digits at most
        digits = 1 - math.floor(math.log10(abs(point))) if point else 0
        return f"~{round(point, digits) + 0.0:.{max(0, min(most, digits))}f}"
    places = decimals(half, most)
    shown = max(0, places)
    text = f"{round(point, places) + 0.0:.{shown}f}"            # + 0.0: no "-0"
    if not error:
        return text
    up = math.ceil(half * 10 ** places - 1e-9) / 10 ** places   # never less than it is
    return f"{text} ±{up:.{shown}f}"


def format_share(share: Interval, error: bool = False) -> str:
    """A share in per cent: "24.0 %", with `error` "61.4 ±0.2 %", "~24 %" if no interval, "-" if not measured.

    The error is shown unasked where not even the per cent is known. At most 13 columns.
    """
    half = 100 * share.half_width
    text = _format(100 * share.point, half, 1, error) if half < 5 or not math.isfinite(half) else \
        f"{round(100 * share.point)} ±{math.ceil(half - 1e-9)}"
    return text if text == "-" else f"{text} %"


def format_ms(seconds: Interval, error: bool = False) -> str:
    """Milliseconds without the unit, at most four digits: "3.214", "1660", with `error` "8.93 ±0.02"."""
    ms = 1000 * seconds.point
    most = 3 - math.floor(math.log10(abs(ms))) if ms and math.isfinite(ms) else 3
    return _format(ms, 1000 * seconds.half_width, max(0, most), error)


def format_change(fraction: float) -> str:
    """A bound in per cent, rounded up, never down: "0.04 %", "0.4 %", "1.3 %", "12 %"; "-" if unknown."""
    if not math.isfinite(fraction):
        return "-"
    places = 2 if 0 < fraction < 0.001 else 1 if fraction < 0.1 else 0
    return f"{math.ceil(100 * fraction * 10 ** places - 1e-9) / 10 ** places:.{places}f} %"


def format_seconds(seconds: float) -> str:
    """Three digits and a unit: "1.23 s", "12.3 ms", "840 us", "17.0 ns"; "-" if unknown."""
    if not math.isfinite(seconds):
        return "-"
    unit, size = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)) if abs(seconds) >= s), ("ns", 1e-9))
    value = seconds / size
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f} {unit}"
