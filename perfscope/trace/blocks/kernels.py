"""Kernels, with layout conversions, norms and tensor cores."""

from __future__ import annotations

from perfscope.sections import percent
from perfscope.trace.analysis import RankAnalysis
from perfscope.trace.blocks.base import ALL, Block, Cell, ms, number, part

LEAST = 0.001  # shares below are not put into words


def kernels(rank: RankAnalysis) -> Block:
    """The kernel table, with what layout conversions, norms and tensor cores make of it."""
    if not rank.kernels:
        return Block("kernels", "Kernels")
    everything = max(rank.kernels_ns, 1)
    norm = sum(k.total_ns for k in rank.kernels if k.norm)
    lines = [f"{sum(k.count for k in rank.kernels)} kernels, {rank.kernels_ns / 1e6:.3f} ms together."]
    if rank.layout and rank.layout.count:
        lay = rank.layout
        conv = (
            f", {percent(lay.share_of_convolution, 3)} of what convolutions launch"
            if lay.share_of_convolution is not None
            else ""
        )
        by = f" By operator: {', '.join(f'{c.name} {c.count}x' for c in lay.by_op[:3])}." if lay.by_op else ""
        lines.append(
            f"Layout conversions: {lay.count}, {lay.total_ns / 1e6:.2f} ms, {percent(lay.share, 2)} of kernel time{conv}.{by}"
        )
    if norm:
        lines.append(
            f"Norm kernels: {sum(k.count for k in rank.kernels if k.norm)}, {norm / 1e6:.2f} ms, {percent(norm / everything)} of kernel time."
        )
    rows = tuple(
        (
            Cell(k.name, k.name),
            Cell(k.category),
            number(k.count),
            ms(k.total_ns),
            part(k.share),
            Cell({True: "yes", False: "no", None: ""}[k.tensor_cores]),
            Cell(", ".join(f"{c.name} {c.count}x" for c in k.ops[:2])),
            Cell(", ".join(f"{c.name} {c.count}x" for c in k.modules[:2])),
        )
        for k in rank.kernels[:ALL]
    )
    return Block(
        "kernels",
        "Kernels",
        tuple(lines),
        ("kernel", "kind", "count", "ms", "share", "tensor cores", "launched by", "module"),
        rows,
        (5, 6, 7),
        len(rank.kernels),
    )


def tensor_cores(rank: RankAnalysis) -> Block:
    """How much of the matmuls, convolutions and attention runs on tensor cores, and what else could."""
    t = rank.tensor_cores
    if not t or not t.total_ns:
        return Block("tensor-cores", "Tensor cores")
    words = (
        ("use them, by the kernels' names", t.used_ns),
        ("do not, although the GPU has them for the type", t.eligible_ns),
        ("cannot: not with this type on this GPU", t.other_ns),
        ("are not to be judged: no type, operator or GPU recorded", t.unknown_ns),
    )
    said = "; ".join(f"{percent(ns / t.total_ns)} {text}" for text, ns in words if ns >= LEAST * t.total_ns)
    rows = tuple(
        (
            Cell(u.op, u.op),
            Cell(u.dtype.removeprefix("c10::")),
            number(u.count),
            ms(u.total_ns),
            part(u.total_ns / t.total_ns),
        )
        for u in t.unused[:ALL]
    )
    line = f"Of {t.total_ns / 1e6:.3f} ms of matmuls, convolutions and attention, {said}."
    return Block(
        "tensor-cores",
        "Tensor cores",
        (line,),
        ("eligible, not used", "type", "kernels", "ms", "share"),
        rows,
        (),
        len(t.unused),
    )
