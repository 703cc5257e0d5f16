"""Many ranks together: which collective waited for whom, the straggler, the imbalance.

A collective is matched across ranks by the step its call was made in, its process group, and its order among the calls
of that group in that step; the name must agree. One whose call is not in the trace is not matched, and counted.
A collective kernel runs until the last rank has arrived, so of one collective the rank with the shortest kernel came last:
`wait_ns` of a rank is its kernel's length less that of the shortest. That needs no common clock. `start_skew_ns` (last start less
first start) and `end_skew_ns` do: the ranks' clocks must be those of one host; `end_skew_ns` shows whether they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfscope.trace.columns import KERNEL, Rank
from perfscope.trace.host import Links
from perfscope.trace.names import kind
from perfscope.trace.steps import Windows


@dataclass(frozen=True)
class Call:
    """One collective kernel of one rank. `order`: among the calls of its group in its step; "" and -1 without a call."""

    step: str
    group: str
    order: int
    name: str
    elements: int | None
    start_ns: int
    duration_ns: int


@dataclass(frozen=True)
class Collective:
    """One collective over all ranks that took part; lists in the order of `ranks`."""

    step: str
    group: str
    order: int
    name: str
    elements: int | None
    ranks: tuple[int, ...]
    duration_ns: tuple[int, ...]
    wait_ns: tuple[int, ...]
    start_skew_ns: int
    end_skew_ns: int
    last: int  # the rank that the others waited for: the shortest kernel


@dataclass(frozen=True)
class RankShare:
    """One rank among all: sums over its steps. `wait_ns`: over its matched collectives; `came_last`: in how many of them."""

    rank: int
    step_ns: int
    compute_ns: int
    exposed_ns: int
    wait_ns: int
    came_last: int


@dataclass(frozen=True)
class Together:
    """`imbalance`: the longest compute time over the mean, less 1. `straggler`: the rank that came last in more than half
    of the matched collectives, None where there is none. `unmatched`: collective kernels without a partner."""

    collectives: tuple[Collective, ...] = ()
    ranks: tuple[RankShare, ...] = ()
    unmatched: int = 0
    disagreeing: int = 0  # matched by order, but of different names: the ranks do not run the same program
    straggler: int | None = None
    slowest: int | None = None  # the rank with the least waiting: the others wait for it, on the whole
    imbalance: float | None = None


def calls(rank: Rank, links: Links, w: Windows) -> tuple[Call, ...]:
    """The collective kernels of one rank, in the order of their calls."""
    e = rank.events
    talks = np.array([kind(n).communication for n in rank.names], bool)
    if not len(e):
        return ()
    mine = np.flatnonzero((e.cat[links.gpu] == KERNEL) & talks[e.name[links.gpu]])
    rows, call = links.gpu[mine], links.call[mine]
    asked = np.where(call >= 0, e.ts_ns[np.maximum(call, 0)], e.ts_ns[rows])
    details = {int(r): i for i, r in enumerate(rank.collectives["row"])}
    counters: dict[tuple[str, str], int] = {}
    found = []
    for j in np.lexsort((asked,)).tolist():
        row, has_call, at = int(rows[j]), call[j] >= 0, int(asked[j])
        i = details.get(row)
        group = rank.texts[rank.collectives["group"][i]].strip('"') if i is not None else ""
        label = (
            rank.texts[rank.collectives["name"][i]].strip('"')
            if i is not None
            else rank.names[e.name[row]].split("(")[0]
        )
        elements = int(rank.collectives["elements"][i]) if i is not None else -1
        s = int(np.searchsorted(w.start, at, side="right")) - 1
        inside = has_call and s >= 0 and at < w.end[s]
        step = w.names[s] if inside else ""
        order = counters.get((step, group), 0) if inside else -1
        if inside:
            counters[step, group] = order + 1
        found.append(
            Call(step, group, order, label, elements if elements >= 0 else None, int(e.ts_ns[row]), int(e.dur_ns[row]))
        )
    return tuple(found)


def together(ranks: list[tuple[int, tuple[Call, ...], list]]) -> Together:
    """What the ranks did to each other. `ranks`: number, collective calls and steps of each."""
    by_key: dict[tuple, list[tuple[int, Call]]] = {}
    unmatched = 0
    for number, found, _ in ranks:
        for c in found:
            if c.order < 0:
                unmatched += 1
            else:
                by_key.setdefault((c.step, c.group, c.order), []).append((number, c))
    matched, disagreeing = [], 0
    for (step, group, order), members in by_key.items():
        if len(members) < 2:
            unmatched += len(members)
            continue
        if len({(c.name, c.elements) for _, c in members}) > 1:
            disagreeing += 1
            continue
        length = [c.duration_ns for _, c in members]
        start, end = [c.start_ns for _, c in members], [c.start_ns + c.duration_ns for _, c in members]
        shortest = min(length)
        matched.append(
            Collective(
                step,
                group,
                order,
                members[0][1].name,
                members[0][1].elements,
                tuple(n for n, _ in members),
                tuple(length),
                tuple(t - shortest for t in length),
                max(start) - min(start),
                max(end) - min(end),
                members[length.index(shortest)][0],
            )
        )
    shares = []
    for number, _, steps in ranks:
        waits = [c.wait_ns[c.ranks.index(number)] for c in matched if number in c.ranks]
        shares.append(
            RankShare(
                number,
                sum(s.duration_ns for s in steps),
                sum(s.compute_ns for s in steps),
                sum(s.communication_exposed_ns for s in steps),
                sum(waits),
                sum(c.last == number for c in matched),
            )
        )
    if len(ranks) < 2:
        return Together((), tuple(shares))
    most = max(shares, key=lambda s: s.came_last)
    mean = sum(s.compute_ns for s in shares) / len(shares)
    return Together(
        tuple(matched),
        tuple(shares),
        unmatched,
        disagreeing,
        most.rank if matched and 2 * most.came_last > len(matched) else None,
        min(shares, key=lambda s: s.wait_ns).rank if matched else None,
        max(s.compute_ns for s in shares) / mean - 1 if mean else None,
    )
