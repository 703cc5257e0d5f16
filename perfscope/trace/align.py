"""The longest common subsequence of two lists: which element of one is which of the other, in order."""

from __future__ import annotations

MOST_BITS = 1 << 30  # of the table of the exact way: 128 MB; two steps of 32 000 operators each


def common(a: list, b: list) -> list[tuple[int, int]]:
    """Pairs (i, j) with a[i] == b[j], both increasing, as many as there can be.

    What the lists begin and end with alike is taken as it is; the rest is found with bit vectors, a word per 64 elements
    (Hyyro, "Bit-parallel LCS-length computation revisited", 2004). Where their table would be too large, the n-th of a
    kind goes to the n-th of its kind, as far as the order holds. Elements must be hashable.
    """
    low, high = 0, min(len(a), len(b))
    while low < high and a[low] == b[low]:
        low += 1
    tail = 0
    while tail < high - low and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    left, right = a[low : len(a) - tail], b[low : len(b) - tail]
    inner = _exact(left, right) if len(left) * len(right) <= MOST_BITS else _by_count(left, right)
    ends = [(len(a) - tail + k, len(b) - tail + k) for k in range(tail)]
    return [*((k, k) for k in range(low)), *((low + i, low + j) for i, j in inner), *ends]


def _exact(a: list, b: list) -> list[tuple[int, int]]:
    if not a or not b:
        return []
    places: dict = {}
    for j, x in enumerate(b):
        places[x] = places.get(x, 0) | 1 << j
    every = (1 << len(b)) - 1
    row, rows = every, []
    for x in a:
        hit = row & places.get(x, 0)
        row = (row + hit | row - hit) & every  # a zero at j: the subsequence grows there
        rows.append(row)
    found, i, j = [], len(a) - 1, len(b) - 1
    while i >= 0 and j >= 0:
        if rows[i] >> j & 1:
            j -= 1
        elif i and not rows[i - 1] >> j & 1:
            i -= 1
        else:
            found.append((i, j))
            i, j = i - 1, j - 1
    return found[::-1]


def _by_count(a: list, b: list) -> list[tuple[int, int]]:
    place: dict = {}
    for j, x in enumerate(b):
        place.setdefault(x, []).append(j)
    seen: dict = {}
    found, last = [], -1
    for i, x in enumerate(a):
        n = seen[x] = seen.get(x, -1) + 1
        j = place[x][n] if x in place and n < len(place[x]) else -1
        if j > last:
            found.append((i, j))
            last = j
    return found
