"""The typical step of a rank: its device, its steady steps, the median one, and the pieces that a step is made of."""

from __future__ import annotations

from perfscope.trace.analysis import Analysis, RankAnalysis
from perfscope.trace.steps import Step

#: The pieces of a step; they add up to its length exactly. See `pieces`.
PIECES = ("compute", "communication exposed", "copies exposed", "loading exposed", "other idle")
#: The reasons of idle time: what they are called, and the fields of a `Step`. They add up to its idle time.
REASONS = {
    "waiting for the host": "idle_host_ns",
    "launch gaps": "idle_launch_ns",
    "waiting for another stream": "idle_stream_ns",
    "unexplained idle": "idle_unknown_ns",
}


def pieces(step: Step) -> dict[str, int]:
    """A step in disjoint pieces, nanoseconds, that add up to its length: PIECES.

    compute: a kernel that is no collective, or a memset, runs on the device. communication exposed: a collective runs and
    no compute. copies exposed: only a memory copy runs. loading exposed: the device is idle while a loader runs on the
    host. other idle: the rest.
    """
    copies = step.busy_ns - step.compute_ns - step.communication_exposed_ns
    return dict(
        zip(
            PIECES,
            (
                step.compute_ns,
                step.communication_exposed_ns,
                copies,
                step.loader_exposed_ns,
                step.idle_ns - step.loader_exposed_ns,
            ),
        )
    )


def main_device(rank: RankAnalysis) -> int:
    """The device that is busy the longest; -1 without one."""
    busy: dict[int, int] = {}
    for s in rank.steps:
        busy[s.device] = busy.get(s.device, 0) + s.busy_ns
    return max(busy, key=lambda d: (busy[d], -d), default=-1)


def steady(rank: RankAnalysis) -> tuple[list[Step], Step | None]:
    """(the steps of the main device without a first one that is an obvious outlier, that one). An outlier differs by more
    than a quarter from the median of at least two others."""
    steps = [s for s in rank.steps if s.device == main_device(rank)]
    if len(steps) < 3:
        return steps, None
    rest = median([float(s.duration_ns) for s in steps[1:]])
    return (steps[1:], steps[0]) if abs(steps[0].duration_ns - rest) > 0.25 * rest else (steps, None)


def median(values) -> float:
    """The median; 0 for none."""
    ordered = sorted(values)
    n = len(ordered)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2 if n else 0.0


def middle(steps: list[Step]) -> tuple[Step, ...]:
    """The median step: the middle one by length, or the two middle ones, whose mean it is."""
    ordered = sorted(steps, key=lambda s: (s.duration_ns, s.start_ns))
    n = len(ordered)
    return tuple(ordered[(n - 1) // 2 : n // 2 + 1])


def chosen(analysis: Analysis, number: int | None = None) -> RankAnalysis:
    """The rank of this number, else the one that the others wait for, else the first. KeyError if there is none of the number."""
    by = {r.rank: r for r in analysis.ranks}
    if number is not None:
        return by[number]
    slowest = analysis.together.slowest if analysis.together else None
    return by.get(slowest, analysis.ranks[0])
