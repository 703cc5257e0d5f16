"""A second opinion on a breakdown (METHOD 15, V6): what a trace of the same step says about each part.

The trace is recorded in a process of its own, after measuring. Every operator belongs to a part: that of the recorder's mark
around it ("perfscope:norm"), else the one that its name says (census.FAMILIES; of a kernel without an operator, names.kind),
else, in the backward pass, that of the forward operator with the same autograd sequence number, else the base. On a CPU operators
are timed, on a GPU what they launched. `perfscope.facts.opinions` holds the two beside each other.
"""

from __future__ import annotations

import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from perfscope import elsewhere, facts
from perfscope.errors import PerfscopeError
from perfscope.options import Options
from perfscope.record import BASE, Run, SecondOpinion, Warned, label

STEPS, WARMUP = 6, 2        # of the trace; the profiler's own start costs the first ones (trace/record.py)
CODE = "no-second-opinion"
KINDS = {"attention": "attention", "optimizer": "optimizer", "communication": "communication", "pooling": "pooling"}    # names.kind -> part


def ask(run: Run, options: Options) -> Run:
    """The run with a second opinion on its batch size of best throughput, and a warning if the two disagree; or with why there is none."""
    best = facts.focus(run)
    if best is None:
        return run
    if options.compile != "off":
        return said(run, "a compiled step is fused: its operators and kernels belong to no part", "Take the step apart with --compile off.")
    begin = time.perf_counter()
    try:
        opinion, warned = recorded(replace(options, batch_sizes=(best.batch_size,)), tuple(best.derived.parts))
    except PerfscopeError as e:
        return said(run, f"the trace cannot be read: {e.message}", e.hint)
    except KeyboardInterrupt:
        return replace(said(run, "interrupted while recording the trace", ""), status="interrupted")
    cost = {**run.own_cost, "second_opinion_s": time.perf_counter() - begin}
    run = replace(run, second_opinion=opinion, own_cost=cost, warnings=(*run.warnings, *warned))
    return replace(run, warnings=(*run.warnings, *disagreement(run)))


def said(run: Run, why: str, hint: str) -> Run:
    """The run with a warning that there is no second opinion."""
    return replace(run, warnings=(*run.warnings, Warned(CODE, f"no second opinion: {why}", hint)))


def recorded(options: Options, parts: tuple[str, ...]) -> tuple[SecondOpinion | None, list[Warned]]:
    """(the opinion of a trace recorded now; what to say if there is none)."""
    from perfscope.trace.reader import read
    from perfscope.trace.record import record_elsewhere

    with tempfile.TemporaryDirectory() as folder, elsewhere.started("perfscope.trace.record") as (process,):
        file, _, warned = record_elsewhere(process, options, folder, steps=STEPS, warmup=WARMUP, shapes=False)
        if file is None:
            return None, [replace(w, code=CODE, hint="The breakdown is not affected.") for w in warned]
        return opinion(read(file, cache=False).ranks[0], options.batch_sizes[0], parts), []


def disagreement(run: Run) -> list[Warned]:
    """A warning if a part's two figures differ by more than the interval and the waiting explain."""
    apart = [o for o in facts.opinions(run) if not o.agrees]
    if not apart:
        return []
    o = max(apart, key=lambda o: o.beyond)
    others = ", ".join(label(run, x.part) for x in apart if x is not o)
    return [Warned("second-opinion", f"the trace gives {label(run, o.part)} {o.trace.low:.1%} to {o.trace.high:.1%} of the step, the "
                   f"breakdown {o.cost.low:.1%} to {o.cost.high:.1%}: {o.beyond:.1%} more than the intervals "
                   f"and {facts.WAITING[run.second_opinion.clock]} ({o.waiting:.1%}) explain"
                   + (f"; also {others}" if others else ""),
                   "The part may overlap with others, make others slower, or run under another name in the trace.", run.second_opinion.batch_size)]


# ---------------------------------------------------------------- reading a trace

def opinion(rank, batch_size: int, parts: tuple[str, ...]) -> SecondOpinion:
    """What one rank's trace (perfscope.trace.Rank) says of these parts; whatever belongs to none of them is the base."""
    import numpy as np

    from perfscope.trace import host
    from perfscope.trace.columns import ANNOTATION, CPU_OP, KERNEL
    from perfscope.trace.intervals import union
    from perfscope.trace.names import kind
    from perfscope.trace.nesting import nest
    from perfscope.trace.steps import windows

    e, names = rank.events, list(dict.fromkeys((BASE, *parts)))
    number = {p: i for i, p in enumerate(names)}
    mark = np.array([number.get(part_marked(n), -1) for n in rank.names] or [-1])
    family = np.array([number.get(family_of(n), -1) for n in rank.names] or [-1])
    is_mark = (e.cat == ANNOTATION) & (mark[e.name] >= 0)
    rows = np.flatnonzero((e.cat == CPU_OP) | is_mark)
    inside = nest(rows, host.threads(rank, rows), e.ts_ns[rows], e.ts_ns[rows] + e.dur_ns[rows])
    marked = is_mark[inside.rows]
    by_mark = inside.inherited(np.where(marked, mark[e.name[inside.rows]], -1), -1)
    by_name = inside.inherited(np.where(marked, -1, family[e.name[inside.rows]]), -1)
    part = np.where(by_mark >= 0, by_mark, by_name)
    forward = _forward_of(rank, inside)
    part = np.where((part < 0) & (forward >= 0), part[forward], part)
    part = np.where(part < 0, 0, part)

    steps = windows(rank)
    n = len(steps.start)
    step_of = lambda ts: np.where(ts < steps.end[-1], np.searchsorted(steps.start, ts, side="right") - 1, -1) if n else np.full(len(ts), -1)  # noqa: E731
    links = host.link(rank)
    gpu, call = links.gpu, np.maximum(links.call, 0)
    own, beside = np.zeros((n, len(names)), np.int64), np.zeros((n, len(names)), np.int64)
    if len(gpu):
        known = links.call >= 0
        at = np.where(known, inside.innermost(host.threads(rank, call), e.ts_ns[call]), -1)
        guess = np.array([number.get("norm" if kind(m).norm else KINDS.get(kind(m).category, ""), 0) for m in rank.names])
        talks = np.array([kind(m).communication for m in rank.names])
        when = np.where(known, step_of(e.ts_ns[call]), -1)      # launched before the trace began: an earlier step's
        mine = when >= 0
        np.add.at(own, (when[mine],
                        np.where((at >= 0) & ~talks[e.name[gpu]], part[at], np.where(e.cat[gpu] == KERNEL, guess[e.name[gpu]], 0))[mine]),
                  e.dur_ns[gpu][mine])
        start, end = e.ts_ns[gpu][mine], e.ts_ns[gpu][mine] + e.dur_ns[gpu][mine]
        span = max(int(steps.end[-1] - steps.start[0]), int(end.max() - start.min())) if mine.any() else 0      # the host may run ahead
        length, idle = np.full(n, span / n), np.full(n, (span - union(start, end).total) / n)
    else:
        main = np.isin(inside.thread, _threads_of_steps(rank, host))
        when, took = np.where(main, step_of(inside.start), -1), inside.self_time()
        for column, which in ((own, ~marked), (beside, marked)):
            mine = which & (when >= 0)
            np.add.at(column, (when[mine], part[mine]), took[mine])
        length = steps.end - steps.start
        idle = np.maximum(length - own.sum(1) - beside.sum(1), 0)
    seconds = lambda column: tuple((column / 1e9).tolist())  # noqa: E731
    return SecondOpinion(batch_size, "kernels" if len(gpu) else "operators", seconds(length), seconds(idle), {p: seconds(own[:, i]) for p, i in number.items()},
                         {p: seconds(beside[:, i]) for p, i in number.items() if beside[:, i].any()})


def part_marked(name: str) -> str:
    """The part that an annotation stands for: the recorder's own, or PyTorch's around the optimizer's step; "" if none."""
    from perfscope.trace.tb import PREFIX
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else "optimizer" if name.startswith("Optimizer.step#") else ""


def family_of(name: str) -> str:
    """The part that an operator's name stands for, "" if none."""
    from perfscope.workload.census import FAMILIES
    short = name.removeprefix("aten::")
    return next((p for p, pattern in FAMILIES.items() if re.search(pattern, short)), "")


def _forward_of(rank, inside):
    """For each event of the backward pass: the position of the forward operator that it belongs to; -1 for others."""
    import numpy as np

    from perfscope.trace.host import BACKWARD
    sequence = rank.events.sequence[inside.rows].astype(np.int64)
    starts = np.array([n.startswith(BACKWARD) for n in rank.names] or [False])[rank.events.name[inside.rows]]
    back = inside.inherited(np.where(starts, 1, -1), -1) == 1
    found = np.full(len(inside.rows), -1, np.int64)
    forward = np.flatnonzero(~back & (sequence >= 0))
    if not len(forward):
        return found
    # operators that record nothing carry the number of the next one that does: the last to begin is the one
    forward = forward[np.argsort(inside.start[forward], kind="stable")]
    numbers, last = np.unique(sequence[forward][::-1], return_index=True)
    wanted, sought = np.flatnonzero(back), inside.inherited(sequence, -1)
    i = np.minimum(np.searchsorted(numbers, sought[wanted]), len(numbers) - 1)
    hit = numbers[i] == sought[wanted]
    found[wanted[hit]] = forward[::-1][last[i[hit]]]
    return found


def _threads_of_steps(rank, host):
    """The threads that carry the steps' annotations; without any, those of the operators."""
    import numpy as np

    from perfscope.trace.columns import CPU_OP, STEP
    from perfscope.trace.steps import named_rows
    rows = named_rows(rank, lambda n: n.startswith(STEP))
    rows = rows if len(rows) else np.flatnonzero(rank.events.cat == CPU_OP)
    return np.unique(host.threads(rank, rows))
