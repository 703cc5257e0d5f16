"""The tree of modules, where it was recorded."""

from __future__ import annotations

from perfscope.trace.analysis import RankAnalysis
from perfscope.trace.blocks.base import Block, Cell, ms, number

ROWS = 200  # on the page: a tree is shown down to the level that fits into so many


def modules(rank: RankAnalysis) -> Block:
    """Each module below its parent, in the order of their first calls."""
    found = rank.modules
    if not found:
        return Block("modules", "Modules")
    gpu = any(m.device_ns for m in found)
    levels = max((d for d in {m.depth for m in found} if sum(m.depth <= d for m in found) <= ROWS), default=0)
    shown = [m for m in found if m.depth <= levels][:ROWS]
    rows = tuple(
        (
            Cell("· " * m.depth + m.path.rpartition("/")[2], i),
            number(m.count),
            *((ms(m.device_ns), ms(m.device_self_ns)) if gpu else ()),
            ms(m.host_ns),
        )
        for i, m in enumerate(shown)
    )
    head = ("module", "calls", *(("GPU ms", "GPU self") if gpu else ()), "host ms")
    line = "Work of the backward pass counts for the module of its forward pass." if gpu else ""
    return Block("modules", "Modules", (line,) if line else (), head, rows, (), len(found))
