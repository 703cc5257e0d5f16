"""The columns of a trace (NumPy arrays, one row per event with a duration) and how they are filled block by block."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np

from perfscope.record import Warned
from perfscope.trace.decode import _NONE, EVENT, Instant, Meta
from perfscope.trace.times import exact_ns, integers, quick_ns, small

#: Canonical categories; `Events.cat` is an index into this.
CATEGORIES = (
    "other",
    "kernel",
    "gpu_memcpy",
    "gpu_memset",
    "cuda_runtime",
    "cuda_driver",
    "cpu_op",
    "user_annotation",
    "gpu_user_annotation",
    "python_function",
    "overhead",
    "cuda_sync",
)
OTHER, KERNEL, MEMCPY, MEMSET, RUNTIME, DRIVER, CPU_OP, ANNOTATION, GPU_ANNOTATION, PYTHON, OVERHEAD, SYNC = range(12)
# the names that PyTorch has given them since 2021 (libkineto: GenericTraceActivity, output_json.cpp; ROCm and XPU alike)
_KNOWN = {
    "operator": CPU_OP,
    "runtime": RUNTIME,
    "memcpy": MEMCPY,
    "memset": MEMSET,
    "concurrent_kernel": KERNEL,
    "privateuse1_runtime": RUNTIME,
    "xpu_runtime": RUNTIME,
    "privateuse1_driver": DRIVER,
    "xpu_driver": DRIVER,
    "hip_runtime": RUNTIME,
    "": CPU_OP,  # no category at all: the Python export
    "user_annotation": ANNOTATION,
    **{c: i for i, c in enumerate(CATEGORIES)},
}
#: What the 2021 layout calls an operator, although it is an annotation.
STEP, LOADER = "ProfilerStep#", "enumerate(DataLoader)#"
DATA = "perfscope:data"  # what perfscope's own recorder calls the loading of a batch (record.py)


@dataclass(frozen=True)
class Events:
    """Equally long arrays of integers, one row per event with a duration, in the order of the file. See perfscope.trace.

    Times are int64; the other columns are as narrow as their numbers allow, so widen before multiplying.
    """

    name: np.ndarray
    cat: np.ndarray
    ts_ns: np.ndarray
    dur_ns: np.ndarray
    pid: np.ndarray
    tid: np.ndarray
    device: np.ndarray
    stream: np.ndarray
    correlation: np.ndarray
    external: np.ndarray
    bytes: np.ndarray
    sequence: np.ndarray
    shapes: np.ndarray
    strides: np.ndarray
    dtypes: np.ndarray
    stack: np.ndarray

    def __len__(self) -> int:
        return len(self.name)


COLUMNS = {
    "name": np.int32,
    "cat": np.int8,
    "ts_ns": np.int64,
    "dur_ns": np.int64,
    "pid": np.int32,
    "tid": np.int32,
    "device": np.int32,
    "stream": np.int32,
    "correlation": np.int64,
    "external": np.int64,
    "bytes": np.int64,
    "sequence": np.int64,
    "shapes": np.int32,
    "strides": np.int32,
    "dtypes": np.int32,
    "stack": np.int32,
}
MEMORY = {
    "ts_ns": np.int64,
    "addr": np.int64,
    "bytes": np.int64,
    "device_type": np.int32,
    "device_id": np.int32,
    "allocated": np.int64,
    "reserved": np.int64,
}
COLLECTIVE = {"row": np.int64, "name": np.int32, "group": np.int32, "elements": np.int64}


@dataclass(frozen=True)
class Rank:
    """One file's events: what one process recorded."""

    source: str  # path, or path:member
    path: str
    member: str
    detail: str  # "full", or "summary": no operators, no shapes
    rank: int  # distributedInfo's, else the number in the file's name, else 0
    world: int
    meta: dict[str, Any]  # the file's other keys
    names: list[str]
    ids: list  # process and thread ids as the file has them
    texts: list[str]  # raw JSON of shapes, strides, types, stacks
    events: Events
    memory: dict[str, np.ndarray]  # [memory] events: MEMORY's columns
    collectives: dict[str, np.ndarray]  # arguments of collective kernels: COLLECTIVE's columns; names in `texts`
    blocks: np.ndarray  # int64 [n, 3]: first row, byte offset, length of each block of text
    counts: dict[str, int]  # "events": in the list, "rows", "lost", "repaired", "bytes"
    warnings: tuple[Warned, ...] = ()


@dataclass(frozen=True)
class Trace:
    """What `read` gives: the ranks, and what is odd about them."""

    ranks: tuple[Rank, ...]
    warnings: tuple[Warned, ...] = ()


class _Numbers(dict):
    """text -> its number, in the order of arrival."""

    def __missing__(self, key):
        value = self[key] = len(self)
        return value


class _Ids(_Numbers):
    """Like _Numbers, with "25738" and 25738 the same thread (the 2021 layout writes both)."""

    def __missing__(self, key):
        if isinstance(key, str) and key.isdigit() and len(key) < 19:
            value = self[key] = self[int(key)]
            return value
        return super().__missing__(key)


class _Categories(dict):
    def __missing__(self, key):
        value = self[key] = _KNOWN.get(key.lower(), OTHER)
        return value


_TS, _DUR, _NAME, _CAT, _PID, _TID, _ARGS = map(attrgetter, ("ts", "dur", "name", "cat", "pid", "tid", "args"))
_CORRELATION, _EXTERNAL = attrgetter("correlation"), attrgetter("external")
_FIELD = {n: attrgetter(n) for n in ("device", "stream", "bytes", "sequence", "shapes", "strides", "dtypes", "stack")}
_ON_DEVICE = np.isin(np.arange(len(CATEGORIES)), (KERNEL, MEMCPY, MEMSET, GPU_ANNOTATION, SYNC))
BATCH = 2048  # rows that become columns together: few enough for the cache, enough to pay for NumPy's calls


class _InSummary(dict):
    """category -> whether the summary needs its events."""

    def __missing__(self, key):
        value = self[key] = _KNOWN.get(key.lower(), OTHER) not in (CPU_OP, PYTHON, OTHER)
        return value


class _Marks(dict):
    """name -> whether the summary needs it although it is an operator's."""

    def __missing__(self, key):
        value = self[key] = key.startswith((STEP, LOADER))
        return value


@dataclass
class Builder:
    """Fills the columns, some blocks at a time; `columns` ends it. `add` gives False, and takes nothing, if the block needs the exact decoder."""

    detail: str
    parts: dict[str, list] = field(default_factory=lambda: {c: [] for c in COLUMNS})
    names: _Numbers = field(default_factory=_Numbers)
    ids: _Ids = field(default_factory=_Ids)
    cats: _Categories = field(default_factory=_Categories)
    texts: _Numbers = field(default_factory=_Numbers)
    keep: _InSummary = field(default_factory=_InSummary)
    memory: dict[str, list] = field(default_factory=lambda: {c: [] for c in MEMORY})
    collectives: dict[str, list] = field(default_factory=lambda: {c: [] for c in COLLECTIVE})
    labels: list = field(default_factory=list)
    marks: _Marks = field(default_factory=_Marks)
    waiting: list = field(default_factory=list)  # rows that are no columns yet, and their times
    times: list = field(default_factory=list)
    rows: int = 0
    events: int = 0

    def add(self, events: list, exact: bool) -> bool:
        """The events of one block. All that carry a duration become rows. False: times that are not to be had exactly, or bad."""
        kind = EVENT[self.detail, exact]
        if self.detail == "summary":
            keep, marks = self.keep, self.marks
            rows = [e for e in events if type(e) is kind and (keep[e.cat] or marks[e.name])]
        else:
            rows = [e for e in events if type(e) is kind]
        convert = exact_ns if exact else quick_ns
        try:
            duration = convert(list(map(_DUR, rows)))
            if duration is None or (len(duration) and duration.min() < 0):
                return False
            start = convert(list(map(_TS, rows)))
        except (ValueError, TypeError):
            return False
        if start is None:
            return False
        if len(rows) < len(events):
            self._others(events)
        self.events += len(events)
        if rows:
            self.waiting += rows
            self.times.append((start, duration))
            self.rows += len(rows)
            if len(self.waiting) >= BATCH:
                self._flush()
        return True

    def _flush(self) -> None:
        rows, times = self.waiting, self.times
        self.waiting, self.times = [], []
        cat = np.fromiter(map(self.cats.__getitem__, map(_CAT, rows)), np.int8, len(rows))
        self._fill(rows, self.rows - len(rows), *(np.concatenate(t) for t in zip(*times)), cat)

    def _others(self, events: list) -> None:
        types = set(map(type, events))
        if Meta in types:
            metas = [e for e in events if type(e) is Meta and (e.args.name or e.args.labels)]
            self.labels += [(e.name, e.pid, e.tid, bytes(e.args.name or e.args.labels)) for e in metas]
        if self.detail == "summary" or Instant not in types:
            return
        found = [e for e in events if type(e) is Instant and e.name == "[memory]"]
        if found:
            self.memory["ts_ns"].append(exact_ns([e.ts for e in found]))
            for column, dtype in MEMORY.items():
                if column != "ts_ns":
                    self.memory[column].append(integers([getattr(e.args, column) for e in found], dtype))

    def _fill(self, rows: list, first: int, start: np.ndarray, duration: np.ndarray, cat: np.ndarray) -> None:
        parts, n = self.parts, len(rows)
        args = list(map(_ARGS, rows))
        column = {
            "name": np.fromiter(map(self.names.__getitem__, map(_NAME, rows)), np.int32, n),
            "cat": cat,
            "ts_ns": start,
            "dur_ns": duration,
            "pid": np.fromiter(map(self.ids.__getitem__, map(_PID, rows)), np.int32, n),
            "tid": np.fromiter(map(self.ids.__getitem__, map(_TID, rows)), np.int32, n),
            "correlation": integers(list(map(_CORRELATION, args))),
        }
        gpu = np.flatnonzero(_ON_DEVICE[cat]).tolist()
        calls = np.flatnonzero(cat == RUNTIME).tolist()  # ROCm has the size of a copy only in the call
        on_gpu = [args[i] for i in gpu]
        for name, where, some in (
            ("device", gpu, on_gpu),
            ("stream", gpu, on_gpu),
            ("bytes", gpu + calls, on_gpu + [args[i] for i in calls]),
        ):
            column[name] = self._some(n, where, integers(list(map(_FIELD[name], some)), COLUMNS[name]), COLUMNS[name])
        self._places(
            rows, np.flatnonzero(_ON_DEVICE[cat] & ((column["device"] < 0) | (column["stream"] < 0))).tolist(), column
        )
        if self.detail == "full":
            external = integers(list(map(_EXTERNAL, args)))
            older = np.flatnonzero(external == -1).tolist()
            if older:
                external[older] = integers([args[i].external_2021 for i in older])
            column["external"] = external
            host = np.flatnonzero((cat == CPU_OP) | (cat == ANNOTATION)).tolist()
            on_host = [args[i] for i in host]
            column["sequence"] = self._some(n, host, integers(list(map(_FIELD["sequence"], on_host))), np.int64)
            for name in ("shapes", "strides", "dtypes", "stack"):
                raws = list(map(_FIELD[name], on_host))
                given = raws.count(_NONE) < len(raws)
                column[name] = self._some(n, host if given else [], self._interned(raws) if given else None, np.int32)
            self._collectives([(first + i, args[i]) for i in gpu if args[i].collective])
        for name, values in column.items():
            parts[name].append(small(values, COLUMNS[name]))

    @staticmethod
    def _some(n: int, where: list, values: np.ndarray, dtype) -> np.ndarray:
        column = np.full(n, -1, dtype)
        if len(where):
            column[where] = values
        return column

    def _interned(self, raws: list) -> np.ndarray:
        texts = self.texts
        return np.array([texts[bytes(r)] if r else -1 for r in raws], np.int32)

    def _places(self, rows: list, gpu: list, column: dict) -> None:
        """A device event without a stream or device in its arguments has them as its thread and process."""
        for i in gpu:
            if column["device"][i] < 0 and isinstance(rows[i].pid, int) and abs(rows[i].pid) < 1 << 31:
                column["device"][i] = rows[i].pid
            if column["stream"][i] < 0:
                digits = str(rows[i].tid).rpartition(" ")[2]
                column["stream"][i] = int(digits) if digits.isdigit() and len(digits) < 10 else -1

    def _collectives(self, found: list) -> None:
        for row, a in found:
            self.collectives["row"].append(row)
            self.collectives["name"].append(self.texts[bytes(a.collective)])
            self.collectives["group"].append(self.texts[bytes(a.group)])
            digits = bytes(a.elements)
            self.collectives["elements"].append(int(digits) if digits.isdigit() and len(digits) < 19 else -1)

    def columns(self) -> Events:
        """The finished columns; the parts are given up one by one, so that memory holds one column twice, not all."""
        if self.waiting:
            self._flush()
        done = {}
        for name, dtype in COLUMNS.items():
            parts = self.parts.pop(name)
            if not parts or all(p.strides == (0,) for p in parts):
                done[name] = np.broadcast_to(np.array(-1, dtype), self.rows)
            else:
                done[name] = (
                    np.concatenate(parts, dtype=np.int64) if name in ("ts_ns", "dur_ns") else np.concatenate(parts)
                )
        marks = np.array([n.startswith((STEP, LOADER, DATA, "Optimizer.")) for n in self.names], bool)
        if marks.any():  # the 2021 layout has them among the operators
            done["cat"][marks[done["name"]] & (done["cat"] == CPU_OP)] = ANNOTATION
        return Events(**done)
