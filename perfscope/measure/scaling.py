"""How a cost grows with the batch size (METHOD 11): fits of the whole step and of each part. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from perfscope.measure.digits import format_seconds
from perfscope.measure.stats import MATTERS, Interval

KNEE = 0.05                 # the knee is the least batch within 5 % of the best throughput (METHOD 11)
BETWEEN_BLOCKS = 0.01       # sd of one batch size against another: they are measured minutes apart, drift is not paired
PER_PARAMETER = 4.0         # chi-square that one more term of a fit has to gain: two standard errors


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
        return PartFit(nan, nan, nan, "too few points", f"measured at {n} batch size{'' if n == 1 else 's'}; "
                       "3 or more are needed to say how it scales", min(values, default=0))
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
        kind, words = "per step", f"{format_seconds(a)} per step, whatever the batch (launches, or parameters)"
    elif slope > -0.05:
        kind, words = "per sample", f"{format_seconds(fitted[-1])} per sample at every batch size"
    else:
        kind, words = "mixed", f"{format_seconds(a)} per step and {format_seconds(b)} per sample"
    return PartFit(a, b, g, kind, words, b_min)
