"""Memory over time, where allocations were recorded."""

from __future__ import annotations

from perfscope.sections import amount
from perfscope.trace.analysis import RankAnalysis
from perfscope.trace.blocks.base import ALL, Block, Cell
from perfscope.trace.memory import Memory


def label(m: Memory) -> str:
    """The device as people call it: "CPU", "GPU 0"."""
    return "CPU" if m.device == "cpu" else f"GPU {m.device.rpartition(':')[2]}"


def size(value: int | None) -> Cell:
    """Bytes."""
    return Cell("–" if value is None or value < 0 else amount(value, "B", 1024), value)


def signed(value: int) -> Cell:
    """Bytes with their sign."""
    return Cell(f"{'+' if value >= 0 else '-'}{amount(abs(value), 'B', 1024)}" if value else "0 B", value)


def memory(rank: RankAnalysis) -> Block:
    """Peak and growth of each device and step."""
    if not rank.memory:
        return Block("memory", "Memory")
    lines = []
    for m in rank.memory:
        reserved = f", {amount(m.peak_reserved, 'B', 1024)} reserved" if m.peak_reserved > 0 else ""
        lines.append(
            f"{label(m)}: at most {amount(m.peak, 'B', 1024)} allocated{reserved}; {m.events} allocations and frees."
        )
    rows = tuple((Cell(s.name), Cell(label(m)), size(s.peak), signed(s.growth)) for m in rank.memory for s in m.steps)
    return Block("memory", "Memory", tuple(lines), ("step", "device", "peak", "growth"), rows[:ALL], (), len(rows))
