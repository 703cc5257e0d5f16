"""The tables of a trace: kernels, layout conversions, operators, launches, synchronisations, copies. Integer nanoseconds."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from perfscope.trace.columns import DRIVER, KERNEL, MEMCPY, RUNTIME, Rank
from perfscope.trace.host import Links, threads
from perfscope.trace.names import kind

EXACT = float(1 << 52)  # whole numbers up to twice this are exact in a float64; as nanoseconds it is 52 days
SHORT_NS = 10_000  # a kernel below the 5-10 us that a launch costs the host (NVIDIA's launch-latency note)
CONVOLUTION_OPS = re.compile(r"conv", re.I)
SYNCS = re.compile(r"Synchronize|^(cuda|hip)Memcpy$|^cuCtxSync|^cuStreamSync")
ITEM_OPS = ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero")


@dataclass(frozen=True)
class Caller:
    """What launched some kernels: an operator or module, how many, how long they ran."""

    name: str
    count: int
    total_ns: int


@dataclass(frozen=True)
class KernelRow:
    """All kernels of one name. `share`: of the time of all kernels. `launched`: how many have their call in the trace."""

    name: str
    category: str
    count: int
    total_ns: int
    min_ns: int
    max_ns: int
    share: float
    tensor_cores: bool | None  # None: of no use to this kind of kernel
    layout: bool
    norm: bool
    launched: int
    ops: tuple[Caller, ...] = ()
    modules: tuple[Caller, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Layout conversions: kernels that only reorder a tensor. `share`: of all kernels' time. `convolution_ns`: kernels launched
    by convolution operators, their conversions included; `share_of_convolution`: conversions launched by them, of that."""

    count: int
    total_ns: int
    share: float
    convolution_ns: int
    share_of_convolution: float | None
    attributed: int  # launched by a convolution operator
    by_op: tuple[Caller, ...] = ()


@dataclass(frozen=True)
class OpRow:
    """All calls of one operator with the same input shapes. `device_self_ns`: what it launched itself (innermost);
    `device_total_ns`: what was launched on its thread while it ran; `host_self_ns`: without the operators inside it."""

    name: str
    shapes: str
    strides: str
    dtypes: str
    count: int
    host_total_ns: int
    host_self_ns: int
    device_total_ns: int
    device_self_ns: int
    kernels: int  # launched by itself


@dataclass(frozen=True)
class Launches:
    """`delay`: from the start of the call to the start of the work; `queue`: work launched but not begun, at each launch."""

    count: int
    without_launch: int  # device events whose call is not in the trace
    without_launch_ns: int
    kernels_without_launch: int
    kernels_without_launch_ns: int
    short_kernels: int
    short_kernels_ns: int
    delay_median_ns: int
    delay_p95_ns: int
    queue_median: int
    queue_max: int
    host_ns: int  # the time inside the calls
    ambiguous: int = 0  # device events whose correlation id several calls share


@dataclass(frozen=True)
class Sync:
    """One kind of waiting call, by the operator around it; `where`: the source line where a stack was recorded."""

    name: str
    op: str
    where: str
    count: int
    total_ns: int
    max_ns: int


@dataclass(frozen=True)
class Copy:
    """Copies of one kind, "HtoD (Pageable -> Device)". `bytes` and `gb_per_s` are None where sizes were not recorded."""

    kind: str
    count: int
    total_ns: int
    bytes: int | None
    gb_per_s: float | None


def sums(key: np.ndarray, value: np.ndarray, n: int) -> np.ndarray:
    """Sums of int64 values by key, exactly."""
    if np.abs(value).sum(dtype=np.float64) < EXACT:  # four times as fast; its partial sums are float64, so whole numbers all the way
        return np.bincount(key, value, n).astype(np.int64)
    out = np.zeros(n, np.int64)
    np.add.at(out, key, value)
    return out


def _groups(index: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The numbers below n that occur, each element's place among them, and how often: np.unique, without
    sorting where counting takes no more memory than that would."""
    if n > 2 * len(index) + 4096:
        return np.unique(index, return_inverse=True, return_counts=True)
    count = np.bincount(index, minlength=n)
    used = np.flatnonzero(count)
    place = np.zeros(max(n, 1), np.int64)
    place[used] = np.arange(len(used))
    return used, place[index], count[used]


def _callers(
    names: list[str], own: np.ndarray, callers: np.ndarray, dur: np.ndarray, most: int = 5
) -> dict[int, tuple[Caller, ...]]:
    """For each kernel name: who launched it, the longest first. `callers`: name index, -1 for none."""
    if not (callers >= 0).any():
        return {}
    key = own.astype(np.int64) * (len(names) + 1) + callers + 1
    pairs, where, count = np.unique(key, return_inverse=True, return_counts=True)
    total = sums(where, dur, len(pairs))
    found: dict[int, list[Caller]] = {}
    for i in np.argsort(-total, kind="stable").tolist():
        k, c = divmod(int(pairs[i]), len(names) + 1)
        if c:
            found.setdefault(k, []).append(Caller(names[c - 1], int(count[i]), int(total[i])))
    return {k: tuple(v[:most]) for k, v in found.items()}


def _name_of(rank: Rank, rows: np.ndarray) -> np.ndarray:
    return np.where(rows >= 0, rank.events.name[np.maximum(rows, 0)], -1) if len(rank.events) else rows


def kernels(rank: Rank, links: Links) -> tuple[KernelRow, ...]:
    """The kernel table, longest first."""
    e = rank.events
    mine = np.flatnonzero(e.cat[links.gpu] == KERNEL)
    rows = links.gpu[mine]
    names, dur = e.name[rows], e.dur_ns[rows]
    used, index, count = _groups(names, len(rank.names))
    total, n = sums(index, dur, len(used)), len(used)
    by_name, first = dur[np.argsort(names, kind="stable")], np.cumsum(count) - count
    low, high = np.minimum.reduceat(by_name, first), np.maximum.reduceat(by_name, first)
    launched = sums(index, (links.call[mine] >= 0).astype(np.int64), n)
    ops = _callers(rank.names, names, _name_of(rank, links.op[mine]), dur) if len(rows) else {}
    modules = _callers(rank.names, names, _name_of(rank, links.module[mine]), dur) if len(rows) else {}
    everything = max(int(total.sum()), 1)
    table = []
    for i in np.argsort(-total, kind="stable").tolist():
        name = rank.names[used[i]]
        k = kind(name)
        table.append(
            KernelRow(
                name,
                k.category,
                int(count[i]),
                int(total[i]),
                int(low[i]),
                int(high[i]),
                int(total[i]) / everything,
                k.tensor_cores,
                k.layout,
                k.norm,
                int(launched[i]),
                ops.get(int(used[i]), ()),
                modules.get(int(used[i]), ()),
            )
        )
    return tuple(table)


def layout(rank: Rank, links: Links) -> Layout:
    """The layout conversions, each attributed to the operator that launched it."""
    e = rank.events
    is_layout = np.array([kind(n).layout for n in rank.names], bool)
    is_conv = np.array([bool(CONVOLUTION_OPS.search(n)) for n in rank.names], bool)
    mine = np.flatnonzero(e.cat[links.gpu] == KERNEL)
    rows, op = links.gpu[mine], links.op[mine]
    turned = is_layout[e.name[rows]] if len(rows) else np.zeros(0, bool)
    by_conv = (op >= 0) & is_conv[e.name[np.maximum(op, 0)]] if len(rows) else turned
    dur = e.dur_ns[rows]
    everything, conv = int(dur.sum()), int(dur[by_conv].sum())
    callers = (
        _callers(rank.names, np.zeros(int(turned.sum()), np.int64), _name_of(rank, op[turned]), dur[turned], 50)
        if turned.any()
        else {}
    )
    return Layout(
        int(turned.sum()),
        int(dur[turned].sum()),
        int(dur[turned].sum()) / max(everything, 1),
        conv,
        int(dur[turned & by_conv].sum()) / conv if conv else None,
        int((turned & by_conv).sum()),
        callers.get(0, ()),
    )


def device_totals(rank: Rank, links: Links) -> np.ndarray:
    """For each operator of links.ops: the device work that was launched on its thread while it ran, ns."""
    e, nest = rank.events, links.ops
    device_total = np.zeros(len(nest.rows), np.int64)
    known = links.call >= 0
    thread, at, length = threads(rank, links.call[known]), e.ts_ns[links.call[known]], e.dur_ns[links.gpu[known]]
    order = np.lexsort((at, thread))
    thread, at, running = thread[order], at[order], np.concatenate(([0], np.cumsum(length[order])))
    for key, (low, high) in nest.bounds.items():
        a, b = np.searchsorted(thread, [key, key + 1])
        begin = a + np.searchsorted(at[a:b], nest.start[low:high], side="left")
        end = a + np.searchsorted(at[a:b], nest.end[low:high], side="right")
        device_total[low:high] = running[end] - running[begin]
    return device_total


def ops(rank: Rank, links: Links) -> tuple[OpRow, ...]:
    """The operator table, by name and input shapes, the longest on the device (then on the host) first."""
    nest = links.ops
    if nest is None:
        return ()
    e, n = rank.events, len(nest.rows)
    dur = e.dur_ns[links.gpu]
    mine = links.position >= 0
    device_self = sums(links.position[mine], dur[mine], n)
    launches = sums(links.position[mine], np.ones(int(mine.sum()), np.int64), n)
    device_total = device_totals(rank, links)
    key = e.name[nest.rows].astype(np.int64) * (len(rank.texts) + 2) + e.shapes[nest.rows] + 1
    used, index, count = _groups(key, len(rank.names) * (len(rank.texts) + 2))
    first = np.full(len(used), n, np.int64)
    np.minimum.at(first, index, np.arange(n))
    columns = [
        sums(index, v, len(used))
        for v in (nest.end - nest.start, nest.self_time(), device_total, device_self, launches)
    ]

    def text(column, i):
        number = int(column[nest.rows[first[i]]])
        return rank.texts[number] if number >= 0 else ""

    order = np.lexsort((-columns[0], -columns[3], -columns[2]))
    return tuple(
        OpRow(
            rank.names[e.name[nest.rows[first[i]]]],
            text(e.shapes, i),
            text(e.strides, i),
            text(e.dtypes, i),
            int(count[i]),
            *(int(c[i]) for c in columns),
        )
        for i in order.tolist()
    )


def launches(rank: Rank, links: Links) -> Launches:
    """Launch statistics over all device events whose call is in the trace."""
    e = rank.events
    gpu, call, known = links.gpu, links.call, links.call >= 0
    kernel = e.cat[gpu] == KERNEL
    short = kernel & (e.dur_ns[gpu] < SHORT_NS)
    begun, asked = e.ts_ns[gpu[known]], e.ts_ns[call[known]]
    n = len(asked)
    middle, late = (min(n - 1, max(0, -(-n * q // 100) - 1)) for q in (50, 95))  # nearest rank: values that occurred
    delay = np.partition(np.maximum(begun - asked, 0), (middle, late)) if n else np.zeros(1, np.int64)
    asked_sorted, begun_sorted = np.sort(asked, kind="stable"), np.sort(begun, kind="stable")  # nearly sorted already
    queue = np.arange(1, n + 1) - np.searchsorted(begun_sorted, asked_sorted, side="right")
    queue = np.sort(queue) if n else np.zeros(1, np.int64)  # a few different numbers: sorted quickly, partitioned slowly
    calls = np.zeros(len(e), bool)
    calls[call[known]] = True
    lost = ~known
    return Launches(
        n,
        int(lost.sum()),
        int(e.dur_ns[gpu[lost]].sum()),
        int((lost & kernel).sum()),
        int(e.dur_ns[gpu[lost & kernel]].sum()),
        int(short.sum()),
        int(e.dur_ns[gpu[short]].sum()),
        int(delay[middle]),
        int(delay[late]),
        int(queue[middle]),
        int(queue[-1]),
        int(e.dur_ns[calls].sum()),
        links.ambiguous,
    )


def syncs(rank: Rank, links: Links) -> tuple[Sync, ...]:
    """Calls that make the host wait for the device, by operator and source line; and `aten::item` and its kind."""
    e = rank.events
    waits = np.array([bool(SYNCS.search(n)) for n in rank.names], bool)
    rows = np.flatnonzero(waits[e.name] & ((e.cat == RUNTIME) | (e.cat == DRIVER))) if len(e) else np.zeros(0, np.int64)
    op, stack = np.full(len(rows), -1), np.full(len(rows), -1)
    if links.ops is not None and len(rows):
        position = links.ops.innermost(threads(rank, rows), e.ts_ns[rows])
        op = np.where(position >= 0, e.name[links.ops.rows[position]], -1)
        stack = np.where(position >= 0, links.ops.inherited(e.stack[links.ops.rows], -1)[position], -1)
    named = np.flatnonzero(np.isin(e.name, [i for i, n in enumerate(rank.names) if n in ITEM_OPS])) if len(e) else rows
    keys = np.concatenate(
        (np.stack((e.name[rows], op, stack), 1), np.stack((e.name[named], np.full(len(named), -1), e.stack[named]), 1))
    )
    if not len(keys):
        return ()
    dur = e.dur_ns[np.concatenate((rows, named))]
    used, index, count = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    index = index.reshape(-1)
    total, most = sums(index, dur, len(used)), np.zeros(len(used), np.int64)
    np.maximum.at(most, index, dur)
    return tuple(
        Sync(
            rank.names[used[i][0]],
            rank.names[used[i][1]] if used[i][1] >= 0 else "",
            _line(rank, int(used[i][2])),
            int(count[i]),
            int(total[i]),
            int(most[i]),
        )
        for i in np.argsort(-total, kind="stable").tolist()
    )


def _line(rank: Rank, text: int) -> str:
    """The user's own line of a recorded stack: the innermost frame outside Python's packages."""
    frames = rank.texts[text].strip('"').split(";") if text >= 0 else []
    return next(
        (f for f in frames if "site-packages" not in f and "dist-packages" not in f and f), frames[0] if frames else ""
    )


def copies(rank: Rank, links: Links) -> tuple[Copy, ...]:
    """Memory copies by kind, longest first."""
    e = rank.events
    mine = np.flatnonzero(e.cat[links.gpu] == MEMCPY)
    rows, call = links.gpu[mine], links.call[mine]
    size = (
        np.where((e.bytes[rows] < 0) & (call >= 0), e.bytes[np.maximum(call, 0)], e.bytes[rows]) if len(rows) else rows
    )
    found = []
    for name in np.flatnonzero(np.bincount(e.name[rows])).tolist() if len(rows) else []:
        of = e.name[rows] == name
        ns = int(e.dur_ns[rows[of]].sum())
        known = bool((size[of] >= 0).all())
        amount = int(size[of].sum()) if known else None
        found.append(
            Copy(
                rank.names[name].removeprefix("Memcpy "),
                int(of.sum()),
                ns,
                amount,
                amount / ns if known and ns else None,
            )
        )
    return tuple(sorted(found, key=lambda c: -c.total_ns))
