"""Lists of numbers as arrays: microseconds as exact integer nanoseconds, ids in as few bytes as they need."""

from __future__ import annotations

import numpy as np

from perfscope.trace.decode import LARGEST_US, nanoseconds

EXACT_BELOW = float(
    1 << 43
)  # microseconds whose nanoseconds a float64 still tells apart (half a unit in the last place: 0.49 ns)


def integers(values: list, dtype=np.int64) -> np.ndarray:
    """A list of integers (None, and what does not fit: -1) as an array."""
    try:
        return np.array(values, dtype)
    except (TypeError, ValueError, OverflowError):
        top = np.iinfo(dtype).max
        whole = [
            int(v) if isinstance(v, (int, float)) or isinstance(v, str) and v.isdigit() and len(v) < 19 else -1
            for v in values
        ]
        return np.array([v if abs(v) <= top else -1 for v in whole], dtype)


def exact_ns(raws: list) -> np.ndarray:
    """Decimal texts of microseconds as int64 nanoseconds, exactly. Raises ValueError if one is no time."""
    if not raws:
        return np.zeros(0, np.int64)
    text = b",".join(raws)
    data = np.frombuffer(text, np.uint8)
    ends = np.append(np.flatnonzero(data == 44), len(data))
    dots = np.flatnonzero(data == 46)
    plain = bool(((data >= 44) & (data <= 57) & (data != 47)).all()) and len(ends) == len(raws)
    short = plain and int(np.diff(ends, prepend=-1).max()) <= 19 and int(np.diff(ends, prepend=-1).min()) > 1
    if short and len(dots) == len(raws) and bool((ends - dots == 4).all()):
        return np.fromstring(text.replace(b".", b""), np.int64, sep=",")
    if short and not len(dots) and int(np.diff(ends, prepend=-1).max()) <= 16:
        return np.fromstring(text, np.int64, sep=",") * 1000
    return np.array([nanoseconds(bytes(r).decode("ascii", "replace")) for r in raws], np.int64)


def quick_ns(values: list) -> np.ndarray | None:
    """Numbers of microseconds as int64 nanoseconds, or None where a float64 cannot tell them apart."""
    if not values:
        return np.zeros(0, np.int64)
    try:
        numbers = np.fromiter(values, np.float64, len(values))
        if not np.abs(numbers).max() < EXACT_BELOW:  # whole ones may still be exact, as integers
            numbers = np.array(values)
            exact = numbers.dtype == np.int64 and np.abs(numbers).max() <= LARGEST_US
            return numbers * 1000 if exact else None
    except (TypeError, ValueError, OverflowError):
        return None
    whole = np.floor(numbers)
    return whole.astype(np.int64) * 1000 + np.rint((numbers - whole) * 1000).astype(np.int64)


def small(values: np.ndarray, dtype) -> np.ndarray:
    """The same numbers in the fewest bytes: ids in 16 or 32 bits where they fit, no memory at all where all are -1."""
    if dtype == np.int8 or not len(values):
        return values
    low, high = int(values.min()), int(values.max())
    if low == high == -1:
        return np.broadcast_to(np.array(-1, np.int16), len(values))
    for narrow, most in ((np.int16, 0x7FFF), (np.int32, 0x7FFFFFFF)):
        if -most <= low and high <= most:
            return values.astype(narrow, copy=False)
    return values
