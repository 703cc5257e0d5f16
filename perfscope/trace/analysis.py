"""`analyze`: every figure of a trace, rank by rank and over all ranks, as frozen dataclasses (integers: nanoseconds).

The definitions stand where the figures are made: steps.py (busy, compute, communication, idle and its reasons, loader),
tables.py (kernels, layout conversions, operators, launches, synchronisations, copies), host.py (which operator and module
launched what), ranks.py (collectives, waiting, straggler, imbalance), critical.py (the critical path), roofline.py
(arithmetic), cores.py (tensor cores), compiled.py (CUDA graphs, torch.compile), modules.py (the tree of modules), memory.py.
What was not recorded is None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from perfscope.trace import cache as store
from perfscope.trace.columns import DATA, KERNEL, LOADER, Rank, Trace
from perfscope.trace.compiled import Compiled, compiled
from perfscope.trace.cores import TensorCores, tensor_cores
from perfscope.trace.critical import CriticalPath, critical_path
from perfscope.trace.host import link
from perfscope.trace.intervals import union
from perfscope.trace.memory import Memory, memory
from perfscope.trace.modules import ModuleRow, modules
from perfscope.trace.names import kind
from perfscope.trace.ranks import Call, Together, calls, together
from perfscope.trace.reader import _attempt, read_rank
from perfscope.trace.roofline import Roofline, roofline
from perfscope.trace.steps import Step, Windows, device, figures, named_rows, windows
from perfscope.trace.tables import (
    Copy,
    KernelRow,
    Launches,
    Layout,
    OpRow,
    Sync,
    copies,
    kernels,
    launches,
    layout,
    ops,
    syncs,
)
from perfscope.trace.text import sources
from perfscope.warned import Warned

SCHEMA = "perfscope/trace/1"
FIGURES = 1  # raise it whenever the analysis of the same columns gives something else: kept ones are made anew
LOADERS = re.compile(
    r"^enumerate\(DataLoader\)#|_BaseDataLoaderIter|DataLoaderIter\.__next__|^"
    + f"(?:{re.escape(LOADER)}|{re.escape(DATA)}$)"
)

MARKS = re.compile(r"^enumerate\(|^Optimizer\.|^DistributedDataParallel\.forward$")


@dataclass(frozen=True)
class RankAnalysis:
    """One rank. `steps` and `spans`: one per step and device, and one per device from its first event to its last (named "device")."""

    rank: int
    world: int
    source: str
    devices: dict[str, str] = field(default_factory=dict)  # number -> the name the trace gives it
    events: int = 0
    device_events: int = 0
    device_events_ns: int = 0  # the sum of their lengths
    kernels_ns: int = 0
    steps: tuple[Step, ...] = ()
    spans: tuple[Step, ...] = ()
    kernels: tuple[KernelRow, ...] = ()
    layout: Layout | None = None
    ops: tuple[OpRow, ...] = ()
    launches: Launches | None = None
    syncs: tuple[Sync, ...] = ()
    copies: tuple[Copy, ...] = ()
    collectives: tuple[Call, ...] = ()
    critical: CriticalPath | None = None  # of the step of median length
    roofline: Roofline | None = None  # None: no shapes
    compiled: Compiled | None = None  # None: neither CUDA graphs nor torch.compile
    modules: tuple[ModuleRow, ...] | None = None
    memory: tuple[Memory, ...] | None = None
    marks: dict[str, int] = field(default_factory=dict)  # PyTorch's own annotations on the host, by name: how many
    tensor_cores: TensorCores | None = None  # None: no kernel could use them


@dataclass(frozen=True)
class Analysis:
    """What a trace says. `perfscope.record.to_dict` makes JSON of it."""

    schema: str = SCHEMA
    detail: str = "full"
    ranks: tuple[RankAnalysis, ...] = ()
    together: Together | None = None
    warnings: tuple[Warned, ...] = ()


def analyze(trace: Trace, executor=None) -> Analysis:
    """The complete analysis of a trace that was read; with detail "summary" without operators and modules. An executor
    gets one task per rank, columns and all: `analyze_files` sends less."""
    done = list((executor.map if executor else map)(analyze_rank, trace.ranks))
    return _joined(
        done,
        [*trace.warnings, *(w for a, r in zip(done, trace.ranks) for w in _odd(a, r.meta))],
        trace.ranks[0].detail if trace.ranks else "full",
    )


def analyze_files(
    path, detail: str = "full", limit_bytes: int | None = None, executor=None, cache: bool = True
) -> Analysis:
    """Reads and analyses a file, tar or directory of ranks: each rank is one task of `executor` (any concurrent.futures
    executor: a ProcessPoolExecutor, Dask's `client.get_executor()`, mpi4py's MPIPoolExecutor), and only the result travels.

        with concurrent.futures.ProcessPoolExecutor() as pool:
            analysis = analyze_files("traces/", executor=pool)
    """
    found = sources(path)
    task = partial(_attempt, partial(_one, detail=detail, limit_bytes=limit_bytes, cache=cache))
    results = list((executor.map if executor and len(found) > 1 else map)(task, found))
    good = [r for r in results if not isinstance(r, Exception)]
    bad = [(s, r) for s, r in zip(found, results) if isinstance(r, Exception)]
    if not good:
        raise bad[0][1]
    warnings = [Warned("not_a_trace", f"left out {s.label}: {e.message}", e.hint) for s, e in bad]
    good.sort(key=lambda g: g[0].rank)
    return _joined([a for a, _ in good], warnings + [w for _, some in good for w in some], detail)


@dataclass(frozen=True)
class _Kept:
    """What is kept of an analysed rank; `key` as in cache.py, `figures` this file's own version."""

    key: dict
    rank: RankAnalysis
    warnings: list[Warned]
    figures: int = 0


def _one(source, detail, limit_bytes, cache):
    cache = cache and source.lasting
    known = store.load_analysis(source, detail, _Kept) if cache else None
    if known is not None and known.figures == FIGURES:
        return known.rank, known.warnings
    rank = read_rank(source, detail, limit_bytes, cache)
    done = analyze_rank(rank)
    warnings = [*rank.warnings, *_odd(done, rank.meta)]
    if cache and rank.counts["bytes"] >= store.FROM_BYTES:
        store.save_analysis(source, detail, _Kept(store.key(source, detail), done, warnings, FIGURES))
    return done, warnings


def _joined(done: list[RankAnalysis], warnings: list[Warned], detail: str) -> Analysis:
    numbers = [a.rank for a in done]
    if len(set(numbers)) < len(numbers):  # the files do not say which rank they are: by their order
        done = [replace(a, rank=i) for i, a in enumerate(done)]
        warnings.append(
            Warned("ranks_numbered", "several files claim the same rank: numbered in the order of their names")
        )
    joined = together([(a.rank, a.collectives, list(a.steps)) for a in done]) if done else None
    if joined and joined.disagreeing:
        warnings.append(
            Warned(
                "collectives_disagree",
                f"{joined.disagreeing} collectives have other names or sizes on other ranks: left out of the comparison",
            )
        )
    return Analysis(SCHEMA, detail, tuple(done), joined, tuple(warnings))


def analyze_rank(rank: Rank) -> RankAnalysis:
    """Everything about one rank."""
    e = rank.events
    links = link(rank)
    steps = windows(rank)
    collective = np.array([kind(n).communication for n in rank.names], bool)
    loading = named_rows(rank, LOADERS.search)
    loader = union(e.ts_ns[loading], e.ts_ns[loading] + e.dur_ns[loading])
    called = np.where(links.call >= 0, e.ts_ns[np.maximum(links.call, 0)], -1) if len(e) else links.call
    rows: list[Step] = []
    spans: list[Step] = []
    numbers = sorted(set(e.device[links.gpu].tolist()))
    for number in numbers or [-1]:
        mine = np.flatnonzero(e.device[links.gpu] == number)
        d = device(rank, number, links.gpu[mine], collective)
        if not len(mine):
            rows += figures(rank, d, steps, called[mine], loader)
            continue
        first, last = e.ts_ns[d.rows].min(), (e.ts_ns[d.rows] + e.dur_ns[d.rows]).max()
        both = Windows([*steps.names, "device"], np.append(steps.start, first), np.append(steps.end, last))
        *some, span = figures(rank, d, both, called[mine], loader)
        rows += some
        spans.append(span)
    names = rank.meta.get("deviceProperties")
    names = (
        {str(p.get("id")): str(p.get("name", "")) for p in names if isinstance(p, dict)}
        if isinstance(names, list)
        else {}
    )
    return RankAnalysis(
        rank=rank.rank,
        world=rank.world,
        source=rank.source,
        devices={str(n): names.get(str(n), "") for n in numbers},
        events=rank.counts["events"],
        device_events=len(links.gpu),
        device_events_ns=int(e.dur_ns[links.gpu].sum()),
        kernels_ns=int(e.dur_ns[e.cat == KERNEL].sum()),
        steps=tuple(sorted(rows, key=lambda s: (s.start_ns, s.device))),
        spans=tuple(spans),
        kernels=kernels(rank, links),
        layout=layout(rank, links),
        ops=ops(rank, links),
        launches=launches(rank, links),
        syncs=syncs(rank, links),
        copies=copies(rank, links),
        collectives=calls(rank, links, steps),
        critical=critical_path(rank, links, steps, loader),
        roofline=roofline(rank, links),
        compiled=compiled(rank, links),
        modules=modules(rank, links),
        memory=memory(rank, steps),
        marks=_marks(rank),
        tensor_cores=tensor_cores(rank, links),
    )


def _marks(rank: Rank) -> dict[str, int]:
    rows = named_rows(rank, MARKS.search)
    count = np.bincount(rank.events.name[rows], minlength=len(rank.names)) if len(rows) else ()
    return {rank.names[i]: int(count[i]) for i in np.flatnonzero(count).tolist()} if len(rows) else {}


def _odd(a: RankAnalysis, meta: dict) -> list[Warned]:
    found = []
    if not a.device_events:
        found.append(
            Warned(
                "no_device_events",
                f"{a.source}: no kernel was recorded: a trace of the host alone",
                "Record with ProfilerActivity.CUDA to see the GPU.",
            )
        )
    if not any(s.name.startswith("ProfilerStep") for s in a.steps):
        found.append(
            Warned(
                "no_steps",
                f"{a.source}: no ProfilerStep: the whole trace counts as one step",
                "Call profiler.step() once per training step.",
            )
        )
    if a.launches and a.launches.without_launch:
        n, share = a.launches.without_launch, a.launches.without_launch_ns / max(a.device_events_ns, 1)
        found.append(
            Warned(
                "no_launch",
                f"{a.source}: {n} device events ({share:.1%} of device time) were launched before the trace began or by calls it does "
                "not have: they count in every total, but have no operator",
            )
        )
    if a.launches and a.launches.ambiguous:
        found.append(
            Warned(
                "ids_repeat",
                f"{a.source}: {a.launches.ambiguous} device events have a correlation id that several calls share: they are "
                "attributed to the first of them; totals do not depend on it",
            )
        )
    return found
