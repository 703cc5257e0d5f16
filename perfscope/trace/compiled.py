"""CUDA graphs and torch.compile as a trace shows them. Integer nanoseconds.

graphs          calls of cudaGraphLaunch / hipGraphLaunch: how many, the host's time in them, and the device work that has
                their correlation id
regions         "Torch-Compiled Region: frame/entry": calls of compiled code. `entry` counts the compilations of a frame:
                1 and more stand for a recompilation, made before or within the trace. Host time is the calls' own length;
                device time what was launched on the thread while they ran (the backward pass has regions of its own)
recompiled      frames with an entry above 0; recompilations: the entries above 0 that ran
compiling       the union of the times inside compilation itself, on the host: events of torch._dynamo's own timer
                ("... (dynamo_timed)"), "_compile.compile_inner", or Python calls of torch/_dynamo/convert_frame.py(...): _compile.
                0 in a trace that recorded none of these, although something may have been compiled
lookups         "TorchDynamo Cache Lookup": checks of the guards in front of each region
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from perfscope.trace.columns import ANNOTATION, CPU_OP, DRIVER, PYTHON, RUNTIME, Rank
from perfscope.trace.host import Links, threads
from perfscope.trace.intervals import union

GRAPH = re.compile(r"^(cuda|hip|cu)GraphLaunch")
REGION = re.compile(r"^Torch-Compiled Region: ?(?:\d+/)*?(\d+)/(\d+)(?:_\d+)?$|^Torch-Compiled Region")
COMPILING = re.compile(r"\(dynamo_timed\)$|^_compile\.compile_inner|torch/_dynamo/convert_frame\.py\(\d+\): _compile$")
LOOKUP = "TorchDynamo Cache Lookup"


@dataclass(frozen=True)
class Region:
    """All calls of one compiled region."""

    name: str
    count: int
    host_ns: int
    device_ns: int


@dataclass(frozen=True)
class Compiled:
    """What was compiled or captured."""

    graph_launches: int
    graph_host_ns: int
    graph_device_events: int
    graph_device_ns: int
    regions: tuple[Region, ...]
    recompiled: int
    recompilations: int
    compiling: int  # outermost events of compilation
    compiling_ns: int
    lookups: int
    lookups_ns: int


def compiled(rank: Rank, links: Links) -> Compiled | None:
    """None if the trace has neither a graph's launch nor any sign of torch.compile."""
    e = rank.events
    if not len(e):
        return None
    host = (e.cat == CPU_OP) | (e.cat == ANNOTATION)
    graphs = _rows(rank, GRAPH.search, (e.cat == RUNTIME) | (e.cat == DRIVER))
    regions = _rows(rank, REGION.search, host)
    busy = _rows(rank, COMPILING.search, host | (e.cat == PYTHON))
    looked = _rows(rank, lambda n: n == LOOKUP, host)
    if not any(map(len, (graphs, regions, busy, looked))):
        return None
    theirs = links.gpu[np.isin(links.call, graphs)] if len(graphs) else graphs
    entries = {
        (m[1], m[2]) for i in set(e.name[regions].tolist()) if (m := REGION.search(rank.names[i])) and m[1] is not None
    }
    again = {k for k in entries if int(k[1]) > 0}
    during = union(e.ts_ns[busy], e.ts_ns[busy] + e.dur_ns[busy])
    return Compiled(
        len(graphs),
        int(e.dur_ns[graphs].sum()),
        len(theirs),
        int(e.dur_ns[theirs].sum()),
        _regions(rank, links, regions),
        len({frame for frame, _ in again}),
        len(again),
        len(during.start),
        during.total,
        len(looked),
        int(e.dur_ns[looked].sum()),
    )


def _rows(rank: Rank, test, among: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.array([bool(test(n)) for n in rank.names], bool)[rank.events.name] & among)


def _regions(rank: Rank, links: Links, rows: np.ndarray) -> tuple[Region, ...]:
    e, found = rank.events, {}
    known = links.call >= 0
    call, length = links.call[known], e.dur_ns[links.gpu[known]]
    order = np.lexsort((e.ts_ns[call], threads(rank, call)))
    thread, at = threads(rank, call)[order], e.ts_ns[call][order]
    running = np.concatenate(([0], np.cumsum(length[order])))
    for row, key in zip(rows.tolist(), threads(rank, rows).tolist()):
        a, b = np.searchsorted(thread, [key, key + 1])
        begin = a + np.searchsorted(at[a:b], e.ts_ns[row], side="left")
        end = a + np.searchsorted(at[a:b], e.ts_ns[row] + e.dur_ns[row], side="right")
        one = found.setdefault(rank.names[e.name[row]], [0, 0, 0])
        for i, value in enumerate((1, int(e.dur_ns[row]), int(running[end] - running[begin]))):
            one[i] += value
    return tuple(Region(n, *v) for n, v in sorted(found.items(), key=lambda f: (-f[1][2], -f[1][1])))
