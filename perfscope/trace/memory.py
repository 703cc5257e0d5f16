"""The memory of each device over time, from the `[memory]` events that `profile_memory=True` records. Bytes.

allocated       the allocator's own "Total Allocated" after each event; reserved: its "Total Reserved"
peak            the largest of them, and when. In a step: of the events inside its window, and of what was allocated as it began
growth          allocated at the end of the step minus at its beginning (the last event before each moment; before the
                first event: what it says minus its own bytes)
curve           (time, largest allocated) in at most 200 stretches of equal length; a stretch without an event is left out
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfscope.trace.columns import Rank
from perfscope.trace.steps import Windows

POINTS = 200
CPU = 0  # c10::DeviceType


@dataclass(frozen=True)
class StepMemory:
    """One step of one device."""

    name: str
    peak: int
    growth: int


@dataclass(frozen=True)
class Memory:
    """One device. `device`: "cpu", or the type's number in c10 and the device's ("1:0": CUDA's first; ROCm says 1 or 20)."""

    device: str
    events: int
    peak: int
    peak_at_ns: int
    peak_reserved: int
    first: int  # allocated before the first event
    last: int
    steps: tuple[StepMemory, ...] = ()
    curve: tuple[tuple[int, int], ...] = ()


def memory(rank: Rank, w: Windows) -> tuple[Memory, ...] | None:
    """One per device, None if no memory was recorded. Events without a total count for nothing."""
    m = rank.memory
    if not len(m["ts_ns"]):
        return None
    found = []
    for kind, number in np.unique(np.stack((m["device_type"], m["device_id"]), 1), axis=0).tolist():
        mine = np.flatnonzero((m["device_type"] == kind) & (m["device_id"] == number) & (m["allocated"] >= 0))
        if len(mine):
            mine = mine[np.argsort(m["ts_ns"][mine], kind="stable")]
            found.append(
                _one(
                    "cpu" if kind == CPU else f"{kind}:{number}",
                    *(m[c][mine] for c in ("ts_ns", "allocated", "reserved", "bytes")),
                    w,
                )
            )
    return tuple(found) or None


def _one(
    name: str, at: np.ndarray, allocated: np.ndarray, reserved: np.ndarray, size: np.ndarray, w: Windows
) -> Memory:
    first = int(allocated[0] - size[0])
    before = np.concatenate(([first], allocated))
    top = int(allocated.argmax())
    steps = []
    for i, step in enumerate(w.names):
        a, b = np.searchsorted(at, [w.start[i], w.end[i]])
        steps.append(StepMemory(step, int(before[a : b + 1].max()), int(before[b] - before[a])))
    width = max(-(-int(at[-1] - at[0] + 1) // POINTS), 1)
    stretch = (at - at[0]) // width
    begin = np.flatnonzero(np.diff(stretch, prepend=-1))
    curve = tuple(zip(at[begin].tolist(), np.maximum.reduceat(allocated, begin).tolist()))
    return Memory(
        name,
        len(at),
        int(allocated[top]),
        int(at[top]),
        int(reserved.max()),
        first,
        int(allocated[-1]),
        tuple(steps),
        curve,
    )
