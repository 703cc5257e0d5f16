"""What the ranks did to each other."""

from __future__ import annotations

from perfscope.sections import percent
from perfscope.trace.analysis import Analysis
from perfscope.trace.blocks.base import Block, Cell, ms, number


def ranks(a: Analysis) -> Block:
    """The ranks side by side, the straggler, the longest wait."""
    t = a.together
    if len(a.ranks) < 2 or t is None:
        return Block("ranks", "Ranks")
    lines = []
    if t.straggler is not None:
        lines.append(
            f"Rank {t.straggler} is the straggler: it came last in more than half of {len(t.collectives)} collectives."
        )
    elif t.slowest is not None:
        lines.append(
            f"No rank came last in more than half of {len(t.collectives)} collectives; rank {t.slowest} waited the least."
        )
    if t.imbalance is not None:
        lines.append(f"Imbalance: the rank with the most compute has {percent(t.imbalance)} more than the mean.")
    if t.collectives:
        worst = max(t.collectives, key=lambda c: max(c.wait_ns))
        lines.append(
            f"The longest wait: {max(worst.wait_ns) / 1e6:.3f} ms for rank {worst.last} in {worst.name} of {worst.step}."
        )
    if t.unmatched:
        lines.append(f"{t.unmatched} collective kernels have no partner on another rank.")
    rows = tuple(
        (
            Cell(str(s.rank), s.rank),
            ms(s.step_ns),
            ms(s.compute_ns),
            ms(s.exposed_ns),
            ms(s.wait_ns),
            number(s.came_last),
        )
        for s in t.ranks
    )
    return Block(
        "ranks",
        "Ranks",
        tuple(lines),
        ("rank", "steps ms", "compute", "comm. exposed", "waited", "came last"),
        rows,
        (),
        len(rows),
    )
