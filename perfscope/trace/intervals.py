"""Unions of half-open intervals [start, end) of integer nanoseconds, and how much of them lies in a window. Exact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Union:
    """Disjoint, sorted, non-empty intervals, and the length of all before each."""

    start: np.ndarray
    end: np.ndarray
    before: np.ndarray  # before[i]: total length of the first i intervals; one longer than start

    @property
    def total(self) -> int:
        return int(self.before[-1])

    def until(self, t) -> np.ndarray:
        """The length that lies before the times t."""
        t = np.asarray(t, np.int64)
        i = np.searchsorted(self.start, t, side="right")
        if not len(self.start):
            return np.zeros(t.shape, np.int64)
        last = np.maximum(i - 1, 0)
        inside = np.where(i > 0, np.minimum(t, self.end[last]) - self.start[last], 0)
        return np.where(i > 0, self.before[last], 0) + inside

    def within(self, start, end) -> np.ndarray:
        """The length inside each window [start, end)."""
        return self.until(end) - self.until(start)

    def gaps(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends of what is left of [low, high) without the union."""
        edges_start = np.concatenate(([low], np.maximum(self.end, low)))
        edges_end = np.concatenate((np.minimum(self.start, high), [high]))
        keep = edges_end > edges_start
        return edges_start[keep], edges_end[keep]


def union(start, end) -> Union:
    """The union of any intervals, in any order; those of no length count for nothing."""
    start, end = np.asarray(start, np.int64), np.asarray(end, np.int64)
    keep = end > start
    start, end = start[keep], end[keep]
    if not len(start):
        return Union(start, end, np.zeros(1, np.int64))
    if (start[1:] < start[:-1]).any():
        order = np.argsort(start, kind="stable")
        start, end = start[order], end[order]
    reach = np.maximum.accumulate(end)
    first = np.concatenate(([True], start[1:] > reach[:-1]))  # touching intervals are one
    at = np.flatnonzero(first)
    start, end = start[at], reach[np.append(at[1:], len(reach)) - 1]
    return Union(start, end, np.concatenate(([0], np.cumsum(end - start))))


def both(a: Union, b: Union) -> Union:
    """The union of two unions. The length of what they share is a.total + b.total - both(a, b).total, in any window too."""
    return union(np.concatenate((a.start, b.start)), np.concatenate((a.end, b.end)))
