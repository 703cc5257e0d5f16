"""One step as a list of operators, thread by thread in the order in which they began, with what each takes of the step: exact sums.

With a device: an operator (the innermost around a launch; a kernel without one stands for itself) has

    own_ns      of its kernels and copies: every moment of the device goes to one of those that run then, compute before
                collectives before copies, the first to start among equals. Also where that is after the step's end
    idle_ns     the device's idle time inside the step that its work ends, without what is loading
and the step has, besides its operators,
    loading_ns  idle time while a loader runs on the host
    idle_ns     other idle time: in front of work of another step, or of none
    carried_ns  work of other steps inside this one, less the work of this one outside it: negative where the device lags
Without a device, on the host: own_ns is the time in which the operator is the innermost one that runs (the last to start, on
the training threads); loading_ns that of the loader; idle_ns that of no operator; carried_ns that of operators that began
before the step. All of it adds up to the step's length, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfscope.trace.columns import CPU_OP, KERNEL, MEMCPY, Rank
from perfscope.trace.critical import training
from perfscope.trace.exclusive import Pieces, exclusive
from perfscope.trace.host import MODULE, Links, link, threads
from perfscope.trace.intervals import Union, union
from perfscope.trace.names import kind
from perfscope.trace.steps import Step, named_rows


@dataclass(frozen=True)
class Entry:
    """One operator of the step. `kernels`: (name, nanoseconds of its own) of what it launched; `where`: module or annotation."""

    name: str
    shapes: str
    where: str
    own_ns: int
    idle_ns: int
    kernels: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Ledger:
    """A step; its length is the sum of everything in it."""

    step: str
    entries: tuple[Entry, ...]
    loading_ns: int
    idle_ns: int
    carried_ns: int

    @property
    def total_ns(self) -> int:
        return self.loading_ns + self.idle_ns + self.carried_ns + sum(e.own_ns + e.idle_ns for e in self.entries)


def ledgers(rank: Rank, steps: list[Step], device: int, loads) -> list[Ledger]:
    """One per step. `device`: -1 for the host; `loads`: whether a name is that of a loader (analysis.LOADERS.search)."""
    e = rank.events
    rows = named_rows(rank, loads)
    loader = union(e.ts_ns[rows], e.ts_ns[rows] + e.dur_ns[rows])
    links = link(rank)
    made = _on_host if device < 0 else _on_device
    return [made(rank, links, s, loader, device) for s in steps]


def _on_device(rank: Rank, links: Links, s: Step, loader: Union, device: int) -> Ledger:
    e, low, high = rank.events, s.start_ns, s.start_ns + s.duration_ns
    on = np.flatnonzero(e.device[links.gpu] == device)
    rows, call = links.gpu[on], links.call[on]
    start, end = e.ts_ns[rows], e.ts_ns[rows] + e.dur_ns[rows]
    asked = np.where(call >= 0, e.ts_ns[np.maximum(call, 0)], start)
    own = (asked >= low) & (asked < high)
    last = max(int(end[own].max(initial=high)), high)
    near = np.flatnonzero(own | ((end > low) & (start < last)))
    rows, on, start, end, asked, own = rows[near], on[near], start[near], end[near], asked[near], own[near]
    talks = np.array([kind(n).communication for n in rank.names], bool)[e.name[rows]]
    level = np.where(e.cat[rows] == MEMCPY, 2, np.where((e.cat[rows] == KERNEL) & talks, 1, 0))
    order = np.empty(len(rows), np.int64)
    order[np.lexsort((asked, start, level))] = np.arange(len(rows))
    pieces = exclusive(start, end, order)
    lengths = pieces.lengths(len(rows))
    idle, loading, rest = _idle(pieces, own, low, high, loader)
    inside = pieces.within(low, high)
    busy = int((inside.end - inside.start).sum())
    entries = _entries(rank, links, on, rows, asked, own, lengths, idle, low, high)
    return Ledger(s.name, entries, loading, rest, busy - int(lengths[own].sum()))


def _idle(pieces: Pieces, own: np.ndarray, low: int, high: int, loader: Union) -> tuple[dict[int, int], int, int]:
    """(what each own one ends of the idle time, loading, the rest of it)."""
    inside = pieces.within(low, high)
    begin = np.concatenate(([low], inside.end))
    stop = np.concatenate((inside.start, [high]))
    after = np.concatenate((inside.owner, [-1]))
    found, loading, rest = {}, 0, 0
    for a, b, who in zip(begin.tolist(), stop.tolist(), after.tolist()):
        if b <= a:
            continue
        load = int(loader.within(a, b))
        loading += load
        if who >= 0 and own[who]:
            found[who] = found.get(who, 0) + b - a - load
        else:
            rest += b - a - load
    return found, loading, rest


def _entries(rank: Rank, links: Links, on, rows, asked, own, lengths, idle: dict[int, int], low: int, high: int):
    """The operators that began in the step, and those that launched something in it: thread by thread, in order."""
    e, mine = rank.events, np.flatnonzero(own)
    groups: dict = {int(r): [] for r in _operators(rank, links, low, high)}
    for i in mine[np.argsort(asked[mine], kind="stable")].tolist():
        op = int(links.op[on[i]])
        groups.setdefault(op if op >= 0 else (int(rows[i]),), []).append(i)
    made = []
    for key, some in groups.items():
        op = key if isinstance(key, int) else -1
        call = int(links.call[on[some[0]]]) if op < 0 else op  # a kernel without either comes last
        module = int(links.module[on[some[0]]]) if some else -1
        at = int(asked[some[0]]) if op < 0 else int(e.ts_ns[op])
        entry = Entry(
            rank.names[e.name[op if op >= 0 else rows[some[0]]]],
            _shapes(rank, op) if op >= 0 else "",
            rank.names[e.name[module]].removeprefix(MODULE) if module >= 0 else "",
            int(sum(lengths[i] for i in some)),
            sum(idle.get(i, 0) for i in some),
            tuple((rank.names[e.name[rows[i]]], int(lengths[i])) for i in some),
        )
        made.append(
            (
                int(threads(rank, np.array([call]))[0]) if call >= 0 else -1,
                at,
                -int(e.dur_ns[op]) if op >= 0 else 0,
                entry,
            )
        )
    return _by_thread(made)


def _operators(rank: Rank, links: Links, low: int, high: int) -> np.ndarray:
    e = rank.events
    found = np.flatnonzero((e.cat == CPU_OP) & (e.ts_ns >= low) & (e.ts_ns < high))
    return found[np.isin(threads(rank, found), training(rank, links, low, high))]


def _by_thread(made: list) -> tuple[Entry, ...]:
    """(thread, begin, -length, entry) in order: the threads by what began first on each, kernels without a thread last."""
    first: dict[int, int] = {}
    for thread, at, *_ in made:
        first[thread] = min(first.get(thread, at), at)
    order = {t: i for i, t in enumerate(sorted(first, key=lambda t: (t < 0, first[t])))}
    return tuple(entry for *_, entry in sorted(made, key=lambda m: (order[m[0]], m[1], m[2])))


def _on_host(rank: Rank, links: Links, s: Step, loader: Union, _) -> Ledger:
    e, low, high = rank.events, s.start_ns, s.start_ns + s.duration_ns
    rows = np.flatnonzero((e.cat == CPU_OP) & (e.ts_ns < high) & (e.ts_ns + e.dur_ns > low))
    rows = rows[np.isin(threads(rank, rows), training(rank, links, low, high))]
    rows = rows[np.lexsort((rows, -e.dur_ns[rows], e.ts_ns[rows]))]  # outer before inner
    n, loads = len(rows), np.flatnonzero((loader.start < high) & (loader.end > low))
    start = np.concatenate((e.ts_ns[rows], loader.start[loads]))
    end = np.concatenate((e.ts_ns[rows] + e.dur_ns[rows], loader.end[loads]))
    inside = exclusive(start, end, -np.arange(len(start))).within(low, high)  # the last to start; loading before all
    lengths = inside.lengths(len(start))
    mine = e.ts_ns[rows] >= low
    thread = threads(rank, rows).tolist()
    entries = _by_thread(
        [
            (
                thread[i],
                int(e.ts_ns[r]),
                -int(e.dur_ns[r]),
                Entry(rank.names[e.name[r]], _shapes(rank, r), "", int(lengths[i]), 0),
            )
            for i, r in enumerate(rows.tolist())
            if mine[i]
        ]
    )
    carried = int(lengths[:n][~mine].sum())
    loading = int(lengths[n:].sum())
    return Ledger(s.name, entries, loading, high - low - int(lengths.sum()), carried)


def _shapes(rank: Rank, row: int) -> str:
    e = rank.events
    texts = [rank.texts[int(c[row])] for c in (e.shapes, e.dtypes) if c[row] >= 0]
    return " ".join(texts)
