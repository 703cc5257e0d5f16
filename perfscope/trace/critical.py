"""The critical path of one step through host and device: what the step's length is made of. Integer nanoseconds, exact sums.

The path ends when the step is over on the host and the last device work that was launched inside its window is over too, and
is followed backwards from there to the step's beginning on the host. Its segments cover that stretch without gap or overlap:
the kinds add up to its length, exactly. Where the device lags behind the host, its first part is work of the step before.

    on the host     back to the end of the latest waiting call (below) of a training thread: those that launched device work
                    in the window, and the step's own. That stretch counts as `loader` while a DataLoader's `__next__`
                    runs, else as `host_operator` while an operator runs, on one of these threads, else as `host_other` (Python)
    waiting calls   synchronisations (tables.SYNCS): they waited for the device work that ended last inside them, if it was
                    launched before them; and calls of copies that return after their copy ended: they waited for it.
                    The path goes on with that work; from its end to the end of the call is `sync`
    on the device   the work itself is `compute` (kernels, memsets), `communication` (collectives) or `copy`. It began when
                    both its call had begun and the work of its device that ended last before it, on any stream, was over.
                    The later of the two is followed: from the call's begin to the work's is `launch`, on the host again;
                    from the earlier work's end is `gap`, on the device. Without either the rest is `unknown`

Which stream a call waits for and which events tie streams together is not in the trace: "ended last" stands for both. A host
that waits inside a launch because the device's queue is full counts as host. Work of no length is left out.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

from perfscope.trace.columns import CPU_OP, DRIVER, KERNEL, MEMCPY, RUNTIME, STEP, Rank
from perfscope.trace.exclusive import exclusive
from perfscope.trace.host import Links, threads
from perfscope.trace.intervals import Union
from perfscope.trace.names import kind
from perfscope.trace.nesting import distinct
from perfscope.trace.steps import Windows, named_rows
from perfscope.trace.tables import SYNCS

LONGEST = 20  # segments that are kept
NAMES = 60  # names that are kept


@dataclass(frozen=True)
class Segment:
    """A stretch of the path. `name`: the kernel, the waiting call, or the operator that takes most of a host's stretch."""

    kind: str
    name: str
    start_ns: int
    duration_ns: int


@dataclass(frozen=True)
class OnPath:
    """All of the path that has one kind and name: kernels, waiting calls, or outermost operators (whoever began first, where two
    threads run one). `count`: kernels or calls, each time the path comes by."""

    kind: str
    name: str
    count: int
    duration_ns: int


@dataclass(frozen=True)
class CriticalPath:
    """The path of the step of median length. `by_kind` adds up to `duration_ns`, which is the step's own length and `after_ns`,
    how much later than the host the device was done. `longest`: segments, longest first; `by_name`: what they are made of,
    longest first."""

    step: str
    start_ns: int
    duration_ns: int
    after_ns: int
    by_kind: dict[str, int] = field(default_factory=dict)
    segments: int = 0
    longest: tuple[Segment, ...] = ()
    by_name: tuple[OnPath, ...] = ()


def critical_path(rank: Rank, links: Links, w: Windows, loader: Union) -> CriticalPath | None:
    """The path of the step of (lower) median length; None without a step or where operators were not read."""
    if not len(w.start) or rank.detail != "full":
        return None
    length = w.end - w.start
    i = int(np.argsort(length, kind="stable")[(len(length) - 1) // 2])
    low, host = int(w.start[i]), int(w.end[i])
    found = _walk(rank, links, low, host)
    high = max((b for *_, b in found), default=host)
    out, used = [], _Host(rank, links, low, host, loader)
    for what, row, a, b in found:
        if what == "host":
            out += used.parts(a, b)
        elif b > a:
            out.append(Segment(what, rank.names[rank.events.name[row]] if row >= 0 else "", a, b - a))
    by_kind: dict[str, int] = {}
    names: dict[tuple[str, str], tuple[int, int]] = dict(used.names)
    for s in out:
        by_kind[s.kind] = by_kind.get(s.kind, 0) + s.duration_ns
        if s.kind != "host_operator":
            n, ns = names.get((s.kind, s.name), (0, 0))
            names[s.kind, s.name] = n + 1, ns + s.duration_ns
    ordered = sorted((OnPath(*k, *v) for k, v in names.items()), key=lambda p: (-p.duration_ns, p.kind, p.name))
    out.sort(key=lambda s: -s.duration_ns)
    return CriticalPath(
        w.names[i],
        low,
        high - low,
        high - host,
        dict(sorted(by_kind.items(), key=lambda k: -k[1])),
        len(out),
        tuple(out[:LONGEST]),
        tuple(ordered[:NAMES]),
    )


def training(rank: Rank, links: Links, low: int, high: int) -> np.ndarray:
    """The threads whose operators and waits count."""
    e = rank.events
    call = links.call[links.call >= 0]
    call = call[(e.ts_ns[call] >= low) & (e.ts_ns[call] < high)]
    steps = named_rows(rank, lambda n: n.startswith(STEP))
    own = steps if len(steps) or len(call) else np.flatnonzero(e.cat == CPU_OP)
    return distinct(np.concatenate((threads(rank, call), threads(rank, own))))


def _waits(rank: Rank, links: Links, low: int, high: int) -> list[tuple[int, int, int, int]]:
    """(end, start, row, position of the copy in links.gpu or -1) of the waiting calls, by end."""
    e = rank.events
    is_sync = np.array([bool(SYNCS.search(n)) for n in rank.names], bool)
    rows = np.flatnonzero(is_sync[e.name] & ((e.cat == RUNTIME) | (e.cat == DRIVER)))
    copies = np.flatnonzero((e.cat[links.gpu] == MEMCPY) & (links.call >= 0) & (e.dur_ns[links.gpu] > 0))
    call, copy = links.call[copies], links.gpu[copies]
    blocked = e.ts_ns[copy] + e.dur_ns[copy] <= e.ts_ns[call] + e.dur_ns[call]
    rows, target = np.concatenate((rows, call[blocked])), np.concatenate((np.full(len(rows), -1), copies[blocked]))
    start, end = e.ts_ns[rows], e.ts_ns[rows] + e.dur_ns[rows]
    keep = (end > low) & (end <= high) & np.isin(threads(rank, rows), training(rank, links, low, high))
    return sorted(zip(end[keep].tolist(), start[keep].tolist(), rows[keep].tolist(), target[keep].tolist()))


def _walk(rank: Rank, links: Links, low: int, high: int) -> list[tuple[str, int, int, int]]:
    """(kind, row, start, end) from the end of the window, or of what was launched in it, to its beginning."""
    e = rank.events
    start_all, end_all = e.ts_ns[links.gpu], e.ts_ns[links.gpu] + e.dur_ns[links.gpu]
    called = np.where(links.call >= 0, e.ts_ns[np.maximum(links.call, 0)], -1) if len(links.gpu) else links.call
    late = int(np.where((called >= low) & (called < high) & (end_all > start_all), end_all, low).max(initial=low))
    mine = np.flatnonzero((end_all > start_all) & (end_all > low) & (start_all < max(high, late)))
    mine = mine[np.argsort(end_all[mine], kind="stable")]
    place = {int(p): i for i, p in enumerate(mine)}
    rows, start, end = links.gpu[mine].tolist(), start_all[mine].tolist(), end_all[mine].tolist()
    asked = called[mine].tolist()
    on = e.device[links.gpu[mine]].tolist()
    before: dict[int, list[int]] = {}  # device -> its work by end
    for i, d in enumerate(on):
        before.setdefault(d, []).append(i)
    ends = {d: [end[i] for i in some] for d, some in before.items()}
    waits = _waits(rank, links, low, high)
    wait_ends = [x[0] for x in waits]
    out, t, at = [], high, -1  # at: the work that ends at t, -1: on the host
    if late > high:
        t, at = late, max(i for i in range(len(end)) if end[i] == late)
    limit = len(waits)
    while t > low:
        if at < 0:
            i, target = bisect_right(wait_ends, t, hi=limit) - 1, -1
            while i >= 0 and target < 0:
                stop, begin, row, copy = waits[i]
                target = place.get(copy, -1) if copy >= 0 else _waited(end, asked, begin, stop)
                i -= target < 0
            limit = max(i, 0)
            if target < 0:
                out.append(("host", -1, low, t))
                break
            stop, _, row, _ = waits[i]
            out.append(("host", -1, stop, t))
            out.append(("sync", row, max(end[target], low), stop))
            t, at = max(end[target], low), target
            continue
        row, begin = rows[at], max(start[at], low)
        what = (
            "copy"
            if e.cat[row] == MEMCPY
            else "communication"
            if e.cat[row] == KERNEL and kind(rank.names[e.name[row]]).communication
            else "compute"
        )
        out.append((what, row, begin, t))
        t = begin
        if t <= low:
            break
        j = bisect_right(ends[on[at]], start[at]) - 1
        earlier = before[on[at]][j] if j >= 0 else -1
        done, call = end[earlier] if earlier >= 0 else -1, min(asked[at], t)
        if call >= 0 and call >= done:
            out.append(("launch", row, max(call, low), t))
            t, at = max(call, low), -1
        elif earlier >= 0:
            out.append(("gap", row, done, t))
            t, at = done, earlier
        else:
            out.append(("unknown", -1, low, t))
            break
    return out


def _waited(end: list, asked: list, begin: int, stop: int) -> int:
    """The work that ended last inside a waiting call and was launched before it, -1 if there is none."""
    i = bisect_right(end, stop) - 1
    while i >= 0 and end[i] > begin:
        if asked[i] < begin:
            return i
        i -= 1
    return -1


class _Host:
    """What the host did in a stretch: its operators and the loader, on the training threads."""

    def __init__(self, rank: Rank, links: Links, low: int, high: int, loader: Union):
        e, self.rank = rank.events, rank
        rows = np.flatnonzero((e.cat == CPU_OP) & (e.ts_ns < high) & (e.ts_ns + e.dur_ns > low))
        if links.ops is not None:  # outermost ones only
            outermost = np.zeros(len(e), bool)
            outermost[links.ops.rows[links.ops.parent < 0]] = True
            rows = rows[outermost[rows]]
        rows = rows[np.isin(threads(rank, rows), training(rank, links, low, high))]
        rows = rows[np.argsort(e.ts_ns[rows], kind="stable")]
        loads = (loader.start < high) & (loader.end > low)
        start = np.concatenate((loader.start[loads], e.ts_ns[rows]))
        end = np.concatenate((loader.end[loads], e.ts_ns[rows] + e.dur_ns[rows]))
        self.pieces = exclusive(start, end, np.arange(len(start)))  # loading goes before operators
        self.name = np.concatenate((np.full(int(loads.sum()), -1), e.name[rows])).astype(np.int64)
        self.names: dict[tuple[str, str], tuple[int, int]] = {}

    def parts(self, a: int, b: int) -> list[Segment]:
        here = self.pieces.within(a, b)
        name, ns = self.name[here.owner], here.end - here.start
        load, found = int(ns[name < 0].sum()), {}
        for i, who, length in zip(name.tolist(), here.owner.tolist(), ns.tolist()):
            if i >= 0:
                calls, before = found.get(i, (set(), 0))
                calls.add(who)
                found[i] = calls, before + length
        for i, (calls, length) in found.items():
            key = "host_operator", self.rank.names[i]
            n0, ns0 = self.names.get(key, (0, 0))
            self.names[key] = n0 + len(calls), ns0 + length
        op = sum(v for _, v in found.values())
        most = self.rank.names[max(found, key=lambda i: found[i][1])] if found else ""
        made = (("loader", "", load), ("host_operator", most, op), ("host_other", "", b - a - load - op))
        return [Segment(what, label, a, ns) for what, label, ns in made if ns > 0]
