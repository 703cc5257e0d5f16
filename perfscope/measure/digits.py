"""The digits that an interval supports, and no more (METHOD 7). Standard library only."""

from __future__ import annotations

import math

from perfscope.measure.stats import Interval


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
