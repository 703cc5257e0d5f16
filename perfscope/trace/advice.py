"""What to do next: one sentence for each finding that the figures of a trace support, those that cost most first.

A sentence says what was found, what it takes, and what to try; never what it would gain: that is for a measurement to say.
"""

from __future__ import annotations

from perfscope.sections import percent
from perfscope.trace.analysis import Analysis, RankAnalysis
from perfscope.trace.findings import EXPOSED, IMBALANCE, RULES, per_step
from perfscope.trace.typical import main_device, steady


def advice(analysis: Analysis, rank: RankAnalysis) -> list[str]:
    """Sentences, the costliest finding first; those that cost nothing measurable last. Empty for a trace without a step."""
    steps, _ = steady(rank)
    whole = sum(s.duration_ns for s in steps)
    if not whole:
        return []
    found: list[tuple[float, str]] = []
    for rule in RULES:
        found += rule(rank, steps, whole)
    found += _ranks(analysis)
    found.sort(key=lambda f: -f[0])
    return [text for _, text in found] or [_nothing(rank, steps, whole)]


def _ranks(analysis: Analysis):
    t = analysis.together
    if not t or len(t.ranks) < 2:
        return []
    out = []
    length = max(sum(s.step_ns for s in t.ranks), 1)
    waited = sum(s.wait_ns for s in t.ranks)
    who = t.straggler if t.straggler is not None else t.slowest
    if who is not None and waited >= EXPOSED * length:
        out.append(
            (
                waited / length,
                f"Speed up rank {who}: the ranks wait {percent(waited / length)} of their time for the last to arrive, and it is "
                f"rank {who} that waits least; look at its steps (--rank {who}).",
            )
        )
    if t.imbalance is not None and t.imbalance >= IMBALANCE:
        most = max(t.ranks, key=lambda s: s.compute_ns)
        out.append((0.0, f"Even out the work: rank {most.rank} computes {percent(t.imbalance)} longer than the mean."))
    return out


def _nothing(rank, steps, whole) -> str:
    if main_device(rank) < 0:
        by: dict[str, int] = {}
        for o in rank.ops:
            by[o.name] = by.get(o.name, 0) + o.host_self_ns
        most = max(by, key=lambda k: by[k], default="")
        named = (
            f"the operator with the most time is {most} ({per_step(by[most], list(rank.steps))})"
            if most
            else "no operator was recorded"
        )
        return f"No GPU was recorded; {named}; `perfscope breakdown` measures what each part of a step takes."
    kinds: dict[str, int] = {}
    for k in rank.kernels:
        kinds[k.category] = kinds.get(k.category, 0) + k.total_ns
    top = max(kinds, key=lambda k: kinds[k], default="")
    share = f", {percent(kinds[top] / max(rank.kernels_ns, 1))} of kernel time is {top}" if top else ""
    busy = percent(sum(s.busy_ns for s in steps) / whole)
    return f"Nothing here waits for long: the GPU is busy {busy} of the time{share}; `perfscope breakdown` measures what each part takes."
