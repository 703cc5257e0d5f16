"""How the columns of a trace are filled, block by block."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import compress
from operator import attrgetter

import numpy as np

from perfscope.trace.columns import (
    ANNOTATION,
    CALLS,
    CATEGORIES,
    COLLECTIVE,
    COLUMNS,
    CPU_OP,
    DATA,
    LOADER,
    MEMORY,
    ON_DEVICE,
    ON_HOST,
    OTHER,
    PYTHON,
    STEP,
    Events,
)
from perfscope.trace.decode import _NONE, NO
from perfscope.trace.kinds import ANY, INSTANT, META, NAMED, SKIPPED
from perfscope.trace.lookups import Categories, Ids, Marks, Numbers, Used
from perfscope.trace.times import exact_ns, integers, quick_ns, small

BATCH = 2048  # rows that become columns together: few enough for the cache, enough to pay for NumPy's calls
_CODE = attrgetter("code")  # kinds.py: of its type
_TS, _DUR, _NAME, _CAT, _PID, _TID, _ARGS = map(attrgetter, ("ts", "dur", "name", "cat", "pid", "tid", "args"))


def _table(codes) -> bytes:
    """For bytes.translate: 1 for these codes, 0 for the others."""
    return bytes(c in codes for c in range(256))


_UNLIKELY = (CPU_OP, PYTHON, OTHER)  # the summary wants none of these but the steps of the 2021 layout
_SURE = set(range(len(CATEGORIES))) - {*CALLS, *_UNLIKELY}
_IS_ROW, _IS_CALL, _IS_UNLIKELY, _IS_SURE = map(_table, (range(len(CATEGORIES)), CALLS, _UNLIKELY, _SURE))
_IS_ANY, _IS_NAMED = _table((ANY,)), _table((NAMED,))
_NO_ROWS = bytes(range(len(CATEGORIES), 256))
_GPU, _CALL, _HOST = (np.isin(np.arange(len(CATEGORIES)), c) for c in (ON_DEVICE, CALLS, ON_HOST))
# column -> which events may have it in their arguments: "gpu", "call" (ROCm has the size of a copy only there), "host"
_SUMMARY = {"correlation": ("gpu", "call"), "device": ("gpu",), "stream": ("gpu",), "bytes": ("gpu", "call")}
_FULL = {**_SUMMARY, "external": ("gpu", "call", "host"), "sequence": ("host",)}
_TEXTS = ("shapes", "strides", "dtypes", "stack")
_FIELD = {n: attrgetter(n) for n in (*_FULL, *_TEXTS, "external_2021", "collective")}


def _both_times(rows: list, exact: bool) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths, ns. Raises ValueError or TypeError if one is no time, or not to be had exactly from a float."""
    if exact:
        return exact_ns(list(map(_TS, rows))), exact_ns(list(map(_DUR, rows)))
    times = quick_ns([*map(_TS, rows), *map(_DUR, rows)])  # one call for both: blocks are small
    if times is None:
        raise ValueError("no exact time")
    return times[: len(rows)], times[len(rows) :]


@dataclass
class Builder:
    """Fills the columns, some blocks at a time; `columns` ends it."""

    detail: str
    parts: dict[str, list] = field(default_factory=lambda: {c: [] for c in COLUMNS})
    names: Numbers = field(default_factory=Numbers)
    ids: Ids = field(default_factory=Ids)
    cats: Categories = field(default_factory=Categories)
    texts: Numbers = field(default_factory=Numbers)
    memory: dict[str, list] = field(default_factory=lambda: {c: [] for c in MEMORY})
    collectives: dict[str, list] = field(default_factory=lambda: {c: [] for c in COLLECTIVE})
    labels: list = field(default_factory=list)
    marks: Marks = field(default_factory=Marks)
    used: Used = field(default_factory=Used)
    annotated: bool = False  # annotations have a category of their own, so that no operator of this file is a step
    waiting: list = field(default_factory=list)  # rows that are no columns yet, and their categories and times
    kinds: list = field(default_factory=list)
    times: list = field(default_factory=list)
    operators: bool = True  # whether the last block had some
    rows: int = 0
    events: int = 0

    def add(self, events: list, exact: bool, device: bool = False) -> bool:
        """The events of one block, all from one decoder. All that carry a duration become rows. False, and nothing taken:
        another decoder is needed (times that are not to be had exactly, or bad; a step among the summary's operators).
        `device`: by their phases on the guess that no operator among them is needed; a wrong guess is refused."""
        codes = bytes(map(_CODE, events))
        if NAMED in codes and True in map(
            self.marks.__getitem__, map(_NAME, compress(events, codes.translate(_IS_NAMED)))
        ):
            return False
        if ANY in codes:  # decoded by their phase, with their category as text
            rows = list(compress(events, codes.translate(_IS_ANY)))
            kinds = bytes(map(self.cats.__getitem__, map(_CAT, rows)))
            self.operators = 1 in kinds.translate(_IS_UNLIKELY)
        else:
            self.operators = NAMED in codes or SKIPPED in codes
            kinds = codes.translate(None, _NO_ROWS)
            rows = list(compress(events, codes.translate(_IS_ROW))) if kinds else []
        if kinds and self.detail == "summary":
            rows, kinds = self._needed(rows, kinds)
            if device and 1 in kinds.translate(_IS_UNLIKELY):
                return False
        try:
            start, duration = _both_times(rows, exact)
        except (ValueError, TypeError):
            return False
        if len(rows) and duration.min() < 0:
            return False
        self.annotated = self.annotated or ANNOTATION in kinds
        if META in codes or INSTANT in codes and self.detail == "full":
            self._others(events, codes)
        self.events += len(events)
        if rows:
            self.waiting += rows
            self.kinds.append(kinds)
            self.times.append((start, duration))
            self.rows += len(rows)
            if len(self.waiting) >= BATCH:
                self._flush()
        return True

    def _needed(self, rows: list, kinds: bytes) -> tuple[list, bytes]:
        """Those that the summary needs, and their categories."""
        keep = np.frombuffer(kinds.translate(_IS_SURE), bool).copy()
        for mask, needed in ((_IS_CALL, self.used), (_IS_UNLIKELY, self.marks)):
            some = kinds.translate(mask)
            if 1 in some:
                names = map(_NAME, compress(rows, some))
                keep[np.frombuffer(some, bool)] = np.frombuffer(bytes(map(needed.__getitem__, names)), bool)
        return list(compress(rows, keep.tobytes())), np.frombuffer(kinds, np.int8)[keep].tobytes()

    def _others(self, events: list, codes: bytes) -> None:
        metas = [e for e in compress(events, codes.translate(_table((META,)))) if e.args.name or e.args.labels]
        self.labels += [(e.name, e.pid, e.tid, bytes(e.args.name or e.args.labels)) for e in metas]
        if self.detail == "summary":
            return
        found = [e for e in compress(events, codes.translate(_table((INSTANT,)))) if e.name == "[memory]"]
        if found:
            self.memory["ts_ns"].append(exact_ns([e.ts for e in found]))
            for column, dtype in MEMORY.items():
                if column != "ts_ns":
                    self.memory[column].append(integers([getattr(e.args, column) for e in found], dtype))

    def _flush(self) -> None:
        rows, times, kinds = self.waiting, self.times, self.kinds
        self.waiting, self.times, self.kinds = [], [], []
        cat = np.frombuffer(b"".join(kinds), np.int8)
        self._fill(rows, self.rows - len(rows), *(np.concatenate(t) for t in zip(*times)), cat)

    def _fill(self, rows: list, first: int, start: np.ndarray, duration: np.ndarray, cat: np.ndarray) -> None:
        parts, n = self.parts, len(rows)
        masks = {"gpu": _GPU[cat], "call": _CALL[cat], "host": _HOST[cat]}
        args = {
            k: list(map(_ARGS, compress(rows, mask.tobytes())))
            for k, mask in masks.items()
            if k != "host" or self.detail == "full"
        }
        column = {
            "name": np.fromiter(map(self.names.__getitem__, map(_NAME, rows)), np.int32, n),
            "cat": cat,
            "ts_ns": start,
            "dur_ns": duration,
            "pid": np.fromiter(map(self.ids.__getitem__, map(_PID, rows)), np.int32, n),
            "tid": np.fromiter(map(self.ids.__getitem__, map(_TID, rows)), np.int32, n),
        }
        for name, groups in (_FULL if self.detail == "full" else _SUMMARY).items():
            column[name] = np.full(n, -1, COLUMNS[name])
            for k in groups:
                values = list(map(_FIELD[name], args[k]))
                missing = values.count(NO)
                if name == "external" and missing:
                    values = [a.external_2021 if v == NO else v for v, a in zip(values, args[k])]
                if missing < len(values) or name == "external":
                    column[name][masks[k]] = integers(values, COLUMNS[name])
        self._places(rows, np.flatnonzero(masks["gpu"] & ((column["device"] < 0) | (column["stream"] < 0))), column)
        if self.detail == "full":
            for name in _TEXTS:
                raws = list(map(_FIELD[name], args["host"]))
                column[name] = np.full(n, -1, np.int32)
                if raws.count(_NONE) < len(raws):
                    column[name][masks["host"]] = self._interned(raws)
            names = list(map(_FIELD["collective"], args["gpu"]))
            if names.count(_NONE) < len(names):
                rows_of = (np.flatnonzero(masks["gpu"]) + first).tolist()
                self._collectives([(i, a) for i, a in zip(rows_of, args["gpu"]) if a.collective])
        for name, values in column.items():
            parts[name].append(small(values, COLUMNS[name]))

    def _interned(self, raws: list) -> np.ndarray:
        texts = self.texts
        return np.array([texts[bytes(r)] if r else -1 for r in raws], np.int32)

    def _places(self, rows: list, gpu: np.ndarray, column: dict) -> None:
        """A device event without a stream or device in its arguments has them as its thread and process."""
        for i in gpu.tolist():
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
