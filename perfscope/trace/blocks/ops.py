"""Operators."""

from __future__ import annotations

from perfscope.trace.analysis import RankAnalysis
from perfscope.trace.blocks.base import ALL, Block, Cell, ms, number


def ops(rank: RankAnalysis) -> Block:
    """The operator table, longest on the device (else on the host) first."""
    gpu = any(o.device_self_ns for o in rank.ops)
    ordered = sorted(rank.ops, key=lambda o: -(o.device_self_ns if gpu else o.host_self_ns))
    rows = []
    for o in ordered[:ALL]:
        device = (ms(o.device_self_ns), ms(o.device_total_ns)) if gpu else ()
        cells = [Cell(o.name, o.name), number(o.count), *device, ms(o.host_self_ns), ms(o.host_total_ns)]
        rows.append((*cells, Cell(o.shapes[:120]), Cell(o.dtypes[:60].replace("c10::", ""))))
    gpu_head = ("GPU self ms", "GPU total") if gpu else ()
    head = ("operator", "count", *gpu_head, "host self ms", "host total", "shapes", "types")
    return Block("ops", "Operators", (), head, tuple(rows), (len(head) - 2, len(head) - 1), len(ordered))
