"""torch.compile and CUDA graphs."""

from __future__ import annotations

from perfscope.trace.analysis import RankAnalysis
from perfscope.trace.blocks.base import ALL, Block, Cell, ms, number


def compiled(rank: RankAnalysis) -> Block:
    """Regions of compiled code, recompilations, graphs."""
    c = rank.compiled
    if not c:
        return Block("compiled", "Compiled code")
    lines = []
    if c.regions:
        again = (
            f"; {c.recompiled} of their frames had been compiled again, {c.recompilations} times in all"
            if c.recompilations
            else "; none was compiled twice"
        )
        lines.append(f"{len(c.regions)} regions of torch.compile ran{again}.")
    if c.compiling_ns:
        lines.append(
            f"Compilation within the trace: {c.compiling_ns / 1e6:.3f} ms of the host in {c.compiling} stretches."
        )
    if c.lookups:
        lines.append(f"Guards were checked {c.lookups} times, {c.lookups_ns / 1e6:.3f} ms.")
    if c.graph_launches:
        lines.append(
            f"CUDA graphs: {c.graph_launches} launches, {c.graph_host_ns / 1e6:.3f} ms of the host, for {c.graph_device_events} kernels and copies of "
            f"{c.graph_device_ns / 1e6:.3f} ms."
        )
    rows = tuple((Cell(r.name, r.name), number(r.count), ms(r.device_ns), ms(r.host_ns)) for r in c.regions[:ALL])
    return Block(
        "compiled", "Compiled code", tuple(lines), ("region", "calls", "GPU ms", "host ms"), rows, (), len(c.regions)
    )
