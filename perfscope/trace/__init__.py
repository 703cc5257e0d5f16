"""Reads and understands PyTorch profiler traces of any size, exactly to the nanosecond. Imports no torch.

    from perfscope.trace import analyze, read
    trace = read("trace.json.gz")           # .json, .json.gz, a tar or a directory of ranks, "-" for standard input
    analysis = analyze(trace)               # frozen dataclasses; perfscope.record.to_dict(analysis) is JSON-able

`read(path, detail="full", limit_bytes=None, executor=None, cache=True) -> Trace`

    trace.ranks        one `Rank` per file (or member of a tar): .rank, .world, .source, .meta, .events, .memory, .streams
    trace.warnings     tuple of perfscope.record.Warned: what is odd or lost, with byte offsets and counts
    rank.events        `Events`: equally long NumPy columns, in the order of the file, one row per event with a duration
        .name          int32 index into rank.names          .cat       int8 index into columns.CATEGORIES
        .ts_ns .dur_ns int64 nanoseconds, exactly the decimal text of the file
        .pid .tid      int32 index into rank.ids (the file's own numbers or texts)
        .device .stream int32, -1: none                     .correlation .external int64, -1: none
        .bytes         int64 of a copy, -1: not recorded    .sequence  int64 autograd sequence number, -1: none
        .shapes .strides .dtypes .stack  int32 index into rank.texts (raw JSON text of that argument), -1: none
    arguments(rank, rows) -> list[dict]     every argument of these rows, read again from the file, on demand

`analyze(trace, executor=None) -> Analysis`; see perfscope.trace.analysis for every figure and its definition.

`with record("runs/mine", model=model) as step:` records the caller's own loop (perfscope.trace.record; needs torch).

A file that is damaged gives what can be read and a warning; perfscope.errors.TraceError when nothing can be.
"""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["Analysis", "Events", "Rank", "Trace", "analyze", "arguments", "read", "record"]

_HOMES = {
    "read": "reader",
    "arguments": "extra",
    "Trace": "columns",
    "Rank": "columns",
    "Events": "columns",
    "analyze": "analysis",
    "Analysis": "analysis",
    "record": "record",
}


def __getattr__(name: str):
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"perfscope.trace.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'perfscope.trace' has no attribute {name!r}")


class _Package(ModuleType):
    """perfscope.trace.record is the context manager, also after somebody imported the module of that name."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value.record if name == "record" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package
