"""The critical path: what the median step's length is made of, followed back through host and device."""

from __future__ import annotations

from perfscope.sections import percent
from perfscope.trace.analysis import RankAnalysis
from perfscope.trace.blocks.base import ALL, Block, Cell, ms, number, part
from perfscope.trace.typical import main_device

WORDS = {
    "host_operator": "operators on the host",
    "host_other": "host outside operators",
    "loader": "loading",
    "sync": "end of a waiting call",
    "compute": "compute",
    "communication": "communication",
    "copy": "copies",
    "launch": "launch latency",
    "gap": "gaps on the device",
    "unknown": "unexplained",
}


def critical(rank: RankAnalysis) -> Block:
    """The path by kind in sentences, and what it runs through, longest first."""
    c = rank.critical
    if not c or not c.duration_ns or main_device(rank) < 0:
        return Block("critical", "Critical path")
    kinds = ", ".join(
        f"{WORDS.get(k, k)} {percent(v / c.duration_ns)}" for k, v in c.by_kind.items() if v >= 0.005 * c.duration_ns
    )
    lines = [
        f"{c.step}, {c.duration_ns / 1e6:.3f} ms from the step's begin on the host to the end of its work: {kinds}."
    ]
    if c.after_ns:
        lines.append(f"The device is done {c.after_ns / 1e6:.3f} ms after the host.")
    rows = tuple(
        (
            Cell(p.name or WORDS.get(p.kind, p.kind), p.name),
            Cell(WORDS.get(p.kind, p.kind)),
            number(p.count),
            ms(p.duration_ns),
            part(p.duration_ns / c.duration_ns),
        )
        for p in c.by_name[:ALL]
    )
    return Block(
        "critical",
        "Critical path",
        tuple(lines),
        ("on the path", "kind", "count", "ms", "share"),
        rows,
        (),
        len(c.by_name),
    )
