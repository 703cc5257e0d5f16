"""Launches, synchronisations and memory copies."""

from __future__ import annotations

from perfscope.sections import amount
from perfscope.trace.analysis import RankAnalysis
from perfscope.trace.blocks.base import ALL, Block, Cell, ms, number


def launches(rank: RankAnalysis) -> Block:
    """Launch statistics."""
    found = rank.launches
    if not found or not found.count + found.without_launch:
        return Block("launches", "Launches")
    lines = [
        f"{found.count} launches take the host {found.host_ns / 1e6:.3f} ms; from call to start: median {found.delay_median_ns / 1e3:.1f} µs, "
        f"95 % below {found.delay_p95_ns / 1e3:.1f} µs.",
        f"Queue at a launch: median {found.queue_median}, at most {found.queue_max}.",
        f"{found.short_kernels} kernels are shorter than 10 µs: {found.short_kernels_ns / 1e6:.3f} ms.",
    ]
    if found.without_launch:
        lines.append(
            f"{found.without_launch} device events ({found.without_launch_ns / 1e6:.3f} ms) have no launch in the trace."
        )
    return Block("launches", "Launches", tuple(lines))


def syncs(rank: RankAnalysis) -> Block:
    """Calls that wait for the device."""
    rows = tuple(
        (Cell(s.name), Cell(s.where or s.op), number(s.count), ms(s.total_ns), ms(s.max_ns)) for s in rank.syncs[:ALL]
    )
    return Block(
        "syncs", "Synchronisations", (), ("call", "where", "count", "ms", "longest"), rows, (), len(rank.syncs)
    )


def copies(rank: RankAnalysis) -> Block:
    """Memory copies by kind."""
    rows = tuple(
        (
            Cell(c.kind),
            number(c.count),
            ms(c.total_ns),
            Cell("–" if c.bytes is None else amount(c.bytes, "B", 1024), c.bytes),
            Cell("–" if c.gb_per_s is None else f"{c.gb_per_s:.2f}", c.gb_per_s),
        )
        for c in rank.copies
    )
    return Block("copies", "Memory copies", (), ("kind", "count", "ms", "size", "GB/s"), rows[:ALL], (), len(rows))
