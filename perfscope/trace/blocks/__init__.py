"""What there is to say about an analysed trace, as blocks of sentences and tables: the terminal, Markdown and the page show the same.

One file per subject; each gives blocks that are empty where nothing was recorded.
"""

from __future__ import annotations

from perfscope.trace.advice import advice
from perfscope.trace.analysis import Analysis, RankAnalysis
from perfscope.trace.blocks import (
    compiled,
    critical,
    head,
    kernels,
    launches,
    memory,
    modules,
    ops,
    ranks,
    roofline,
    steps,
)
from perfscope.trace.blocks.base import Block
from perfscope.trace.typical import chosen

__all__ = ["Block", "blocks"]


def blocks(analysis: Analysis, rank: RankAnalysis | None = None) -> list[Block]:
    """Everything there is to say, without what is empty. Of several ranks: one in detail (`chosen`), all in a table."""
    rank = rank or chosen(analysis)
    detail = (f"Rank {rank.rank} in detail.",) if len(analysis.ranks) > 1 else ()
    made = [
        Block("verdict", "", (head.facts(analysis), head.verdict(rank), *detail)),
        Block("next", "What to do next", tuple(advice(analysis, rank))),
        ranks.ranks(analysis),
        steps.steps(rank),
        steps.idle(rank),
        steps.input(rank),
        critical.critical(rank),
        kernels.kernels(rank),
        kernels.tensor_cores(rank),
        ops.ops(rank),
        roofline.roofline(rank),
        modules.modules(rank),
        compiled.compiled(rank),
        launches.launches(rank),
        launches.syncs(rank),
        launches.copies(rank),
        memory.memory(rank),
        head.warnings(analysis),
    ]
    return [b for b in made if b.lines or b.rows]
