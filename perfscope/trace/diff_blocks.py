"""A comparison as blocks of sentences and tables, for the terminal, Markdown and the page."""

from __future__ import annotations

from perfscope.trace.blocks.base import ALL, Block, Cell, ms, number, part
from perfscope.trace.changes import Change
from perfscope.trace.diff import Diff, Side
from perfscope.trace.typical import PIECES


def pieces(d: Diff) -> list[tuple[str, float, float, float]]:
    """(piece, A, B, B - A); without a GPU in either, only loading and the rest."""
    rows = [(k, d.a.pieces[k], d.b.pieces[k], d.pieces[k]) for k in PIECES]
    if d.a.device < 0 and d.b.device < 0:
        rows = [("loading" if k == PIECES[3] else "the rest", *v) for k, *v in rows if k in PIECES[3:]]
    return rows


def blocks(d: Diff) -> list[Block]:
    """Everything there is to say about it."""

    def named(s: Side) -> str:
        return f"{s.source}, {s.steps} steps, median {' and '.join(s.middle)}"

    lines = (d.sentence, f"A: {named(d.a)}", f"B: {named(d.b)}", *(f"note: {n}" for n in d.notes))
    rows = [*pieces(d), ("median step", d.a.step_ns, d.b.step_ns, d.difference_ns)]
    made = [
        Block("verdict", "", lines),
        Block(
            "step",
            "Median step",
            ("The differences add up to that of the step, exactly.",),
            ("piece", "A ms", "B ms", "B - A"),
            tuple((Cell(n), ms(x), ms(y), signed(z)) for n, x, y, z in rows),
            (),
            len(rows),
        ),
        _sum(d),
        _kernels(d),
        _ops(d),
    ]
    if d.ranks:
        made.append(
            Block(
                "ranks",
                "Ranks: median step",
                (),
                ("rank", "A ms", "B ms", "B - A"),
                tuple((number(n), ms(x), ms(y), signed(y - x)) for n, x, y in d.ranks),
                (),
                len(d.ranks),
            )
        )
    return [b for b in made if b.lines or b.rows]


def signed(ns: float) -> Cell:
    """Milliseconds with their sign."""
    return Cell(f"{ns / 1e6:+.3f}", ns)


def _sum(d: Diff) -> Block:
    """What the operators and the rest make of the difference."""
    if not d.aligned:
        return Block("sum", "By operator")
    rows = [("operators, own time", sum(c.difference_ns for c in d.ops)), *d.rest.items()]
    rows.append(("median step", d.difference_ns))
    return Block(
        "sum",
        "By operator",
        ("Operators are matched in the order of the step. All of it adds up to the difference of the step, exactly.",),
        ("piece", "B - A ms"),
        tuple((Cell(k), signed(v)) for k, v in rows),
        (),
        len(rows),
    )


def _counts(found: tuple[Change, ...]) -> str:
    states = {s: sum(c.state == s for c in found) for s in ("slower", "faster", "new", "gone", "equal")}
    return ", ".join(f"{n} {s}" for s, n in states.items() if n)


def _kernels(d: Diff) -> Block:
    found = d.kernels
    moved = [c for c in found if c.state != "equal" and c.difference_ns]
    total = sum(c.a_ns for c in found), sum(c.b_ns for c in found)
    rows = tuple(
        (
            Cell(c.name, c.name),
            Cell(c.state),
            ms(c.a_ns),
            ms(c.b_ns),
            signed(c.difference_ns),
            part(c.difference_ns / total[0] if total[0] else None),
        )
        for c in moved[:ALL]
    )
    what = "their own time, of the median step" if d.aligned else "means per step"
    line = (
        f"From A to B: {_counts(found)}. Together {total[0] / 1e6:.3f} ms in A, {total[1] / 1e6:.3f} ms in B ({what})."
    )
    title = "Kernels of the median step" if d.aligned else "Kernels per step"
    head = ("kernel", "in B", "A ms", "B ms", "B - A", "of A")
    return Block("kernels", title, (line,) if found else (), head, rows, (), len(moved))


def _ops(d: Diff) -> Block:
    found = d.ops
    moved = [c for c in found if (c.state != "equal" and c.difference_ns) or c.idle_difference_ns]
    moved.sort(key=lambda c: -max(abs(c.difference_ns), abs(c.idle_difference_ns)))
    rows = []
    for c in moved[:ALL]:
        which = (Cell(f"{c.nth} of {c.of}" if c.of > 1 else "", c.nth),) if d.aligned else ()
        idle = (signed(c.idle_difference_ns),) if d.aligned else ()
        rows.append(
            (
                Cell(c.name, c.name),
                *which,
                Cell(c.state),
                ms(c.a_ns),
                ms(c.b_ns),
                signed(c.difference_ns),
                *idle,
                Cell(c.shapes[:160]),
                Cell(c.where),
            )
        )
    which, idle = (("which",), ("idle before",)) if d.aligned else ((), ())
    head = ("operator", *which, "in B", "A ms", "B ms", "B - A", *idle, "shapes", "module")
    total = sum(c.a_ns for c in found), sum(c.b_ns for c in found)
    line = f"From A to B: {_counts(found)}. Together {total[0] / 1e6:.3f} ms in A, {total[1] / 1e6:.3f} ms in B."
    if d.aligned and d.a.device >= 0 <= d.b.device:
        line += " Idle before: how much longer the GPU is idle in front of it."
    title = "Operators of the median step, own time" if d.aligned else "Operators per step, own time"
    return Block("ops", title, (line,) if found else (), head, tuple(rows), (len(head) - 2, len(head) - 1), len(moved))
