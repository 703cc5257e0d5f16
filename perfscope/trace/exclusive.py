"""Every moment given to one of the intervals that cover it, so that what they get adds up to their union. Exact integers."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np


@dataclass(frozen=True)
class Pieces:
    """Disjoint, sorted by time; `owner`: index of the interval that each belongs to."""

    start: np.ndarray
    end: np.ndarray
    owner: np.ndarray

    def lengths(self, n: int) -> np.ndarray:
        """What each of the n intervals got."""
        out = np.zeros(n, np.int64)
        np.add.at(out, self.owner, self.end - self.start)
        return out

    def within(self, low: int, high: int) -> "Pieces":
        """The same, clipped to [low, high)."""
        a, b = int(np.searchsorted(self.end, low, side="right")), int(np.searchsorted(self.start, high, side="left"))
        if a >= b:
            return Pieces(self.start[:0], self.end[:0], self.owner[:0])
        return Pieces(np.maximum(self.start[a:b], low), np.minimum(self.end[a:b], high), self.owner[a:b])


def exclusive(start, end, order) -> Pieces:
    """Each moment of the union of [start, end) goes to the interval of least `order` that covers it, the first of equals.

    Intervals of no length get nothing. n log n.
    """
    start, end, order = (np.asarray(v, np.int64) for v in (start, end, order))
    real = np.flatnonzero(end > start)
    real = real[np.argsort(start[real], kind="stable")]
    rows, begin, stop, rank = real.tolist(), start[real].tolist(), end[real].tolist(), order[real].tolist()
    heap: list[tuple[int, int, int]] = []  # (order, index, end)
    out: list[list[int]] = []
    i, n, t = 0, len(rows), 0
    while i < n or heap:
        if not heap:
            t = max(t, begin[i])
        while i < n and begin[i] <= t:
            heappush(heap, (rank[i], rows[i], stop[i]))
            i += 1
        while heap and heap[0][2] <= t:
            heappop(heap)
        if not heap:
            continue
        until, who = heap[0][2], heap[0][1]
        if i < n and begin[i] < until:
            until = begin[i]
        if out and out[-1][1] == t and out[-1][2] == who:
            out[-1][1] = until
        else:
            out.append([t, until, who])
        t = until
    made = np.array(out, np.int64).reshape(-1, 3)
    return Pieces(made[:, 0], made[:, 1], made[:, 2])
