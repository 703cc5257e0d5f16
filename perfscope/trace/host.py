"""Which call launched what on the device, and which operator and module made that call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfscope.trace.columns import ANNOTATION, CPU_OP, DRIVER, KERNEL, MEMCPY, MEMSET, PYTHON, RUNTIME, STEP, Rank
from perfscope.trace.nesting import Nest, nest

BACKWARD = "autograd::engine::evaluate_function"
MODULE = "nn.Module: "


@dataclass(frozen=True)
class Links:
    """`gpu`: rows of kernels, copies and memsets. For each: `call`, the row of the call that launched it (-1: not in the
    trace), and with full detail `op`, `module`: rows of the operator and of the module or annotation around it (-1: none)."""

    gpu: np.ndarray
    call: np.ndarray
    op: np.ndarray
    module: np.ndarray
    ops: Nest | None
    position: np.ndarray  # of `op` in ops, -1: none
    ambiguous: int = 0  # device events whose correlation id several calls share (the first one counts)


def threads(rank: Rank, rows: np.ndarray) -> np.ndarray:
    """One number per process and thread."""
    e = rank.events
    return e.pid[rows].astype(np.int64) * (len(rank.ids) + 1) + e.tid[rows]


def link(rank: Rank) -> Links:
    """Launches by correlation id; operators by time, on the thread that made the call.

    The operator is the innermost `cpu_op` that covers the start of the launching call. The module is the innermost
    `nn.Module` around that moment, where modules were recorded, else the innermost annotation other than the step's; work
    of the backward pass has that of the last forward operator with the same autograd sequence number.
    """
    e = rank.events
    gpu = np.flatnonzero((e.cat == KERNEL) | (e.cat == MEMCPY) | (e.cat == MEMSET))
    call, ambiguous = _calls(rank, gpu)
    none = np.full(len(gpu), -1, np.int64)
    host = np.flatnonzero(e.cat == CPU_OP)
    if not len(host) or rank.detail != "full":
        return Links(gpu, call, none, none, None, none, ambiguous)
    ops = nest(host, threads(rank, host), e.ts_ns[host], e.ts_ns[host] + e.dur_ns[host])
    known = np.flatnonzero(call >= 0)
    position = none.copy()
    position[known] = ops.innermost(threads(rank, call[known]), e.ts_ns[call[known]])
    op = np.where(position >= 0, ops.rows[position], -1) if len(ops.rows) else none
    return Links(gpu, call, op, _modules(rank, ops, call, position), ops, position, ambiguous)


def _calls(rank: Rank, gpu: np.ndarray) -> tuple[np.ndarray, int]:
    e = rank.events
    calls = np.flatnonzero(((e.cat == RUNTIME) | (e.cat == DRIVER)) & (e.correlation >= 0))
    ids = e.correlation[calls]
    order = np.argsort(ids, kind="stable")
    calls, ids = calls[order], ids[order]
    found = np.searchsorted(ids, e.correlation[gpu])
    inside = found < len(ids)
    hit = np.zeros(len(gpu), bool)
    hit[inside] = ids[found[inside]] == e.correlation[gpu[inside]]
    result = np.full(len(gpu), -1, np.int64)
    result[hit] = calls[found[hit]]
    twice = np.append(ids[1:] == ids[:-1], False) if len(ids) else np.zeros(0, bool)
    return result, int(twice[found[hit]].sum())


def _modules(rank: Rank, ops: Nest, call: np.ndarray, position: np.ndarray) -> np.ndarray:
    e = rank.events
    is_module = np.array([n.startswith(MODULE) for n in rank.names], bool)
    rows = np.flatnonzero(is_module[e.name] & (e.cat == PYTHON))
    if not len(rows):
        step = np.array([n.startswith(STEP) for n in rank.names], bool)
        rows = np.flatnonzero((e.cat == ANNOTATION) & ~step[e.name])
    result = np.full(len(call), -1, np.int64)
    if not len(rows):
        return result
    around = nest(rows, threads(rank, rows), e.ts_ns[rows], e.ts_ns[rows] + e.dur_ns[rows])

    def at(thread, moment):
        found = around.innermost(thread, moment)
        return np.where(found >= 0, around.rows[found], -1)

    known = np.flatnonzero(call >= 0)
    result[known] = at(threads(rank, call[known]), e.ts_ns[call[known]])
    sequence = ops.inherited(e.sequence[ops.rows], -1)
    starts_back = np.array([n.startswith(BACKWARD) for n in rank.names], bool)[e.name[ops.rows]]
    back = ops.inherited(np.where(starts_back, 1, -1), -1) == 1
    forward = np.flatnonzero(~back & (e.sequence[ops.rows] >= 0))
    if not len(forward):
        return result
    # operators that record nothing for the backward pass carry the number of the next one that does: the last is that one
    numbers, last = np.unique(e.sequence[ops.rows[forward]][::-1], return_index=True)
    last = len(forward) - 1 - last
    want = np.flatnonzero((position >= 0) & back[position] & (sequence[position] >= 0))
    i = np.minimum(np.searchsorted(numbers, sequence[position[want]]), len(numbers) - 1)
    hit = numbers[i] == sequence[position[want]]
    source = forward[last[i[hit]]]
    module = at(ops.thread[source], ops.start[source])
    result[want[hit]] = np.where(module >= 0, module, result[want[hit]])
    return result
