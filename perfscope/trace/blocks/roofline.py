"""Arithmetic of the operators whose shapes were recorded, and how far it is from the data sheet's."""

from __future__ import annotations

import json

from perfscope.sections import amount, figures, percent
from perfscope.trace.analysis import RankAnalysis
from perfscope.trace.blocks.base import ALL, Block, Cell, ms, number, part
from perfscope.trace.peaks import Peak, peak
from perfscope.trace.roofline import RooflineRow
from perfscope.trace.typical import main_device


def sheet(rank: RankAnalysis) -> Peak | None:
    """What the data sheet of the rank's busiest GPU says, None where it is not known."""
    return peak(rank.devices.get(str(main_device(rank)), ""))


def dtype(row: RooflineRow) -> str:
    """The type of the operator's first tensor, "" where it was not recorded."""
    try:
        return next((t for t in json.loads(row.dtypes or "[]") if t not in ("", "Scalar", "ScalarList")), "")
    except (ValueError, TypeError):
        return ""


def bound(row: RooflineRow, known: Peak | None) -> tuple[str, float | None]:
    """(what limits it, the share that it reaches of that limit), by the data sheet: "arithmetic" or "memory"; ("", None) if unknown."""
    top = known.flop_per_s.get(dtype(row)) if known else None
    if not top or not row.flop_per_s or not row.intensity:
        return "", None
    by_memory = row.intensity * known.bytes_per_s
    return ("memory", row.flop_per_s / by_memory) if by_memory < top else ("arithmetic", row.flop_per_s / top)


def roofline(rank: RankAnalysis) -> Block:
    """The operators with known arithmetic, those with the most time first."""
    r = rank.roofline
    if not r or not r.rows:
        return Block("roofline", "Arithmetic")
    known, gpu = sheet(rank), main_device(rank) >= 0
    ns = r.device_ns if gpu else sum(row.host_ns for row in r.rows)
    most = "at most " if any(row.upper_bound for row in r.rows) else ""
    lines = [
        f"Matmuls and convolutions of known shapes: {most}{amount(r.flops, 'FLOP')} in {ns / 1e6:.3f} ms of {'device' if gpu else 'host'} time"
        + (f", {amount(r.flops / ns * 1e9, 'FLOP/s')}." if ns else ".")
    ]
    if most:
        lines.append(
            "Backward passes of convolutions count the gradients of input and weight; where only one was needed it is half."
        )
    least = _least(r.rows, known)
    if gpu and least and ns:
        lines.append(
            f"At the data sheet's rates (dense; float32 as TF32 where the GPU has it) it would take {least * 1e3:.3f} ms, {percent(least / ns * 1e9)} of that."
        )
    if r.without:
        lines.append(f"{r.without} calls of such operators are left out: their shapes do not tell the arithmetic.")
    head = [
        "operator",
        "type",
        "count",
        "ms",
        "FLOP",
        "FLOP/byte",
        "FLOP/s",
        *(["limited by", "reached"] if known else []),
        "shapes",
    ]
    rows = []
    for row in r.rows[:ALL]:
        what, share = bound(row, known)
        cells = [
            Cell(row.name, row.name),
            Cell(dtype(row).removeprefix("c10::")),
            number(row.count),
            ms(row.device_ns if gpu else row.host_ns),
            Cell(amount(row.flops, ""), row.flops),
            Cell(figures(row.intensity) if row.intensity else "–", row.intensity),
            Cell(amount(row.flop_per_s, "") if row.flop_per_s else "–", row.flop_per_s),
        ]
        rows.append((*cells, *((Cell(what), part(share)) if known else ()), Cell(row.shapes[:120])))
    if known and any((bound(row, known)[1] or 0) > 1 for row in r.rows):
        lines.append(
            "More than 100 % of the limit: an algorithm with less arithmetic than counted (Winograd, FFT), or half a backward pass."
        )
    return Block(
        "roofline",
        "Arithmetic",
        tuple(lines),
        tuple(head),
        tuple(rows),
        (*((1, 5) if known else ()), len(head) - 1),
        len(r.rows),
    )


def _least(rows, known: Peak | None) -> float | None:
    """Seconds that all of it takes at the data sheet's rates, None where a type is not on it."""
    if not known or any(dtype(row) not in known.flop_per_s for row in rows):
        return None
    return sum(max(row.flops / known.flop_per_s[dtype(row)], (row.bytes or 0) / known.bytes_per_s) for row in rows)
