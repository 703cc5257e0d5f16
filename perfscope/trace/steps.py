"""Where each step's time goes on one device, exactly: busy, compute, communication, copies, and why the rest is idle.

Every figure is the length, in integer nanoseconds, of a union of half-open intervals inside the step's window. The window
of a step is the host's `ProfilerStep#n` annotation; a trace without one is one step, "all", from its first event to its last.

    busy            something runs on the device: kernels, copies, memsets (annotations are no work)
    compute         a kernel other than a collective, or a memset, runs
    communication   a collective kernel (NCCL, RCCL) runs; overlapped: compute runs meanwhile; exposed: it does not
    copy            a memory copy runs
    idle            window - busy = idle_host + idle_launch + idle_stream + idle_unknown, exactly. Each gap is judged by the
                    event that ends it (the first to start; on a tie the one launched first, then the lower stream; zero lengths do not count):
      idle_host     before the host began the call that launched that event: the GPU waited for the host. Also what
                    follows the last event
      idle_launch   after that call began (launch latency), and gaps in front of work that was queued in time on the
                    stream that ran last: gaps between kernels
      idle_stream   work that was queued in time, while the event that ran last was on another stream: it waited for it
      idle_unknown  the launch is not in the trace
    loader          a DataLoader's `__next__` runs on the host; loader_exposed: while the device is idle
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfscope.trace.columns import ANNOTATION, CPU_OP, KERNEL, MEMCPY, MEMSET, OTHER, STEP, Rank
from perfscope.trace.intervals import Union, both, union


@dataclass(frozen=True)
class Step:
    """One step on one device; nanoseconds. The definitions are those of the module."""

    name: str
    device: int
    start_ns: int
    duration_ns: int
    busy_ns: int = 0
    compute_ns: int = 0
    communication_ns: int = 0
    communication_exposed_ns: int = 0
    communication_overlapped_ns: int = 0
    copy_ns: int = 0
    memset_ns: int = 0
    idle_ns: int = 0
    idle_host_ns: int = 0
    idle_launch_ns: int = 0
    idle_stream_ns: int = 0
    idle_unknown_ns: int = 0
    loader_ns: int = 0
    loader_exposed_ns: int = 0
    kernels: int = 0  # that start inside the window


@dataclass(frozen=True)
class Windows:
    """The steps' windows, sorted by start."""

    names: list[str]
    start: np.ndarray
    end: np.ndarray


def named_rows(rank: Rank, test) -> np.ndarray:
    """The host's annotation rows (2021: operators) whose name passes the test."""
    wanted = np.array([bool(test(n)) for n in rank.names], bool)
    e = rank.events
    if not len(e):
        return np.zeros(0, np.int64)
    return np.flatnonzero(wanted[e.name] & ((e.cat == ANNOTATION) | (e.cat == CPU_OP)))


def windows(rank: Rank) -> Windows:
    """The steps, or the whole trace as one."""
    e = rank.events
    rows = named_rows(rank, lambda n: n.startswith(STEP))
    if len(rows):
        rows = rows[np.argsort(e.ts_ns[rows], kind="stable")]
        return Windows([rank.names[i] for i in e.name[rows]], e.ts_ns[rows], e.ts_ns[rows] + e.dur_ns[rows])
    return whole(rank)


def whole(rank: Rank) -> Windows:
    """From the first event to the end of the last; the profiler's own frame is left out, and in the summary what it does not read."""
    e = rank.events
    rows = np.flatnonzero(e.cat != OTHER)
    if not len(rows):
        return Windows([], np.zeros(0, np.int64), np.zeros(0, np.int64))
    return Windows(["all"], e.ts_ns[rows].min()[None], (e.ts_ns[rows] + e.dur_ns[rows]).max()[None])


@dataclass(frozen=True)
class Device:
    """What ran on one device: the unions that the figures are made of. `rows` and `launch` belong together."""

    device: int
    rows: np.ndarray
    busy: Union
    compute: Union
    communication: Union
    copy: Union
    memset: Union


def device(rank: Rank, number: int, rows: np.ndarray, collective: np.ndarray) -> Device:
    """The unions of one device. `rows`: its kernels, copies and memsets; `collective`: which of the rank's names are."""
    e = rank.events
    start, end, cat = e.ts_ns[rows], e.ts_ns[rows] + e.dur_ns[rows], e.cat[rows]
    talks = collective[e.name[rows]] & (cat == KERNEL)

    def of(mask) -> Union:
        return union(start[mask], end[mask])

    return Device(
        number,
        rows,
        union(start, end),
        of(((cat == KERNEL) & ~talks) | (cat == MEMSET)),
        of(talks),
        of(cat == MEMCPY),
        of(cat == MEMSET),
    )


def idle(rank: Rank, d: Device, launched: np.ndarray, low: int, high: int) -> dict[str, Union]:
    """Why the device is idle in [low, high): disjoint pieces by reason. `launched`: when the call of each of d.rows began, -1."""
    e = rank.events
    real = e.dur_ns[d.rows] > 0
    rows, launched = d.rows[real], launched[real]
    start, end, stream = e.ts_ns[rows], e.ts_ns[rows] + e.dur_ns[rows], e.stream[rows]
    order = np.lexsort((stream, launched, start))
    start, launched, next_stream = start[order], launched[order], stream[order]
    a, b = d.busy.gaps(low, high)
    at = np.searchsorted(start, b, side="left")
    follows = at < len(start)
    call = np.full(len(a), np.iinfo(np.int64).max)
    call[follows] = launched[at[follows]]
    unknown = call < 0
    split = np.clip(call, a, b)  # up to here the host had not asked for it
    queued = (call <= a) & ~unknown
    where = np.minimum(np.searchsorted(a, end), max(len(a) - 1, 0))
    last = (
        np.flatnonzero(a[where] == end) if len(a) else np.zeros(0, np.int64)
    )  # what ended where a gap begins, and its stream
    same = np.zeros(len(a), bool)
    if len(last):
        at_gap = where[last]
        same[at_gap[follows[at_gap] & (stream[last] == next_stream[np.minimum(at[at_gap], len(start) - 1)])]] = True
    nothing_before = np.ones(len(a), bool)
    nothing_before[where[last]] = False
    other = queued & ~same & ~nothing_before
    known = ~unknown
    return {
        "host": union(a[known], split[known]),
        "unknown": union(a[unknown], b[unknown]),
        "stream": union(a[other], b[other]),
        "launch": union(split[known & ~other], b[known & ~other]),
    }


def figures(rank: Rank, d: Device, w: Windows, launched: np.ndarray, loader: Union) -> list[Step]:
    """The steps of one device."""
    e = rank.events
    if not len(w.start):
        return []
    low = int(min(w.start.min(), e.ts_ns[d.rows].min() if len(d.rows) else w.start.min()))
    high = int(max(w.end.max(), (e.ts_ns[d.rows] + e.dur_ns[d.rows]).max() if len(d.rows) else w.end.max()))
    why = idle(rank, d, launched, low, high)
    busy, compute, talk = (u.within(w.start, w.end) for u in (d.busy, d.compute, d.communication))
    overlapped = compute + talk - both(d.compute, d.communication).within(w.start, w.end)
    load = loader.within(w.start, w.end)
    exposed = both(loader, d.busy).within(w.start, w.end) - busy
    kernels = np.sort(e.ts_ns[d.rows[e.cat[d.rows] == KERNEL]], kind="stable")  # nearly sorted already
    count = np.searchsorted(kernels, w.end) - np.searchsorted(kernels, w.start)
    columns = {
        "start_ns": w.start,
        "duration_ns": w.end - w.start,
        "busy_ns": busy,
        "compute_ns": compute,
        "communication_ns": talk,
        "communication_exposed_ns": talk - overlapped,
        "communication_overlapped_ns": overlapped,
        "copy_ns": d.copy.within(w.start, w.end),
        "memset_ns": d.memset.within(w.start, w.end),
        "idle_ns": w.end - w.start - busy,
        **{f"idle_{k}_ns": u.within(w.start, w.end) for k, u in why.items()},
        "loader_ns": load,
        "loader_exposed_ns": exposed,
        "kernels": count,
    }
    return [
        Step(name=w.names[i], device=d.device, **{k: int(v[i]) for k, v in columns.items()})
        for i in range(len(w.names))
    ]
