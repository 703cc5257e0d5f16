"""`diff`: what makes one trace's step longer or shorter than another's, in pieces that add up exactly; operators and kernels matched.

The steps of one rank and device are compared: the median step of each (the mean of the two middle ones where their number
is even), a first step left out where it differs by more than a quarter from the median of the others. The pieces are those
of `blocks.pieces`: disjoint, and their differences add up to the difference of the two median steps, exactly (halves of a
nanosecond are exact in a float). Operators match by name, input shapes and types, kernels by name; their figures are means
per step over the whole trace, so work that starts in one step and runs into the next is not lost.
"""

from __future__ import annotations

from dataclasses import dataclass

from perfscope.errors import UsageError
from perfscope.sections import percent
from perfscope.trace.analysis import Analysis, RankAnalysis, analyze_files
from perfscope.trace.blocks.base import Block, Cell, ms, number, part
from perfscope.trace.typical import PIECES, main_device, median, middle, pieces, steady

EQUAL = 0.01  # of the step, or of all kernel time: below that two traces are called equal
EXPLAINS = 0.9  # of the difference: one piece is named alone


@dataclass(frozen=True)
class Side:
    """One of the two. Times in nanoseconds; halves occur, where a median is between two steps."""

    source: str
    rank: int
    device: int
    steps: int  # that count
    left_out: str  # the first step, where it is an outlier, else ""
    middle: tuple[str, ...]  # the names of the median step, or of the two it lies between
    step_ns: float
    pieces: dict[str, float]
    kernels_ns: float  # per step, the mean over the trace
    loader_ns: float  # on the host, per median step


@dataclass(frozen=True)
class Change:
    """One kernel or operator: counts and nanoseconds per step in A and B.

    `state` is what B made of it: slower, faster, equal (within EQUAL), new (only in B), gone (only in A).
    """

    name: str
    shapes: str
    state: str
    a_count: float
    b_count: float
    a_ns: float
    b_ns: float

    @property
    def difference_ns(self) -> float:
        return self.b_ns - self.a_ns


@dataclass(frozen=True)
class Diff:
    """From A to B. `difference_ns` = B - A of the median step = the sum of `pieces`, exactly."""

    a: Side
    b: Side
    difference_ns: float
    pieces: dict[str, float]
    kernels: tuple[Change, ...]
    ops: tuple[Change, ...]
    ranks: tuple[tuple[int, float, float], ...]  # rank, median step in A and in B: those that both have
    sentence: str
    notes: tuple[str, ...] = ()


def diff(a, b, rank: int | None = None) -> Diff:
    """Compares two traces: paths, or `Analysis` objects. `rank`: which rank; default: the lowest that both have, else the
    first of each. Raises TraceError for what is no trace, UsageError for a rank that is not there."""
    one, two = (x if isinstance(x, Analysis) else analyze_files(x) for x in (a, b))
    left, right = _pair(one, two, rank)
    sides = [_side(r) for r in (left, right)]
    device = all(s.device >= 0 for s in sides)
    change = {k: sides[1].pieces[k] - sides[0].pieces[k] for k in PIECES}
    kernels = _changes(
        [((k.name, ""), k.count, k.total_ns) for k in left.kernels],
        [((k.name, ""), k.count, k.total_ns) for k in right.kernels],
        left,
        right,
    )
    ops = _changes(_ops(left, device), _ops(right, device), left, right)
    by = {r.rank: r for r in two.ranks}
    both = (
        tuple((r.rank, _side(r).step_ns, _side(by[r.rank]).step_ns) for r in one.ranks if r.rank in by)
        if len(one.ranks) > 1
        else ()
    )
    return Diff(
        sides[0],
        sides[1],
        sides[1].step_ns - sides[0].step_ns,
        change,
        kernels,
        ops,
        both,
        _sentence(*sides, change),
        _notes(*sides, left, right),
    )


def _pair(a: Analysis, b: Analysis, number: int | None) -> tuple[RankAnalysis, RankAnalysis]:
    one, two = {r.rank: r for r in a.ranks}, {r.rank: r for r in b.ranks}
    common = sorted(set(one) & set(two))
    if number is None:
        return (one[common[0]], two[common[0]]) if common else (a.ranks[0], b.ranks[0])
    if number not in common:
        raise UsageError(f"rank {number} is not in both traces", f"In both: {', '.join(map(str, common)) or 'none'}.")
    return one[number], two[number]


def _side(rank: RankAnalysis) -> Side:
    kept, odd = steady(rank)
    if not kept:
        raise UsageError(f"{rank.source} has no event, so no step to compare", "Give a trace with at least one step.")
    mid = middle(kept)
    n = len(mid)
    steps = len({(s.name, s.start_ns) for s in rank.steps}) or 1
    return Side(
        rank.source,
        rank.rank,
        main_device(rank),
        len(kept),
        odd.name if odd else "",
        tuple(s.name for s in mid),
        sum(s.duration_ns for s in mid) / n,
        {k: sum(pieces(s)[k] for s in mid) / n for k in PIECES},
        rank.kernels_ns / steps,
        median(s.loader_ns for s in kept),
    )


def _ops(rank: RankAnalysis, device: bool) -> list:
    """Self time on the device, or on the host where one of the two has no device."""
    return [
        ((o.name, f"{o.shapes} {o.dtypes}".strip()), o.count, o.device_self_ns if device else o.host_self_ns)
        for o in rank.ops
    ]


def _changes(a: list, b: list, left: RankAnalysis, right: RankAnalysis) -> tuple[Change, ...]:
    """Matched by key, per step, the largest difference first. The differences add up to that of the totals."""
    sums: list[dict] = []
    for rows, rank in ((a, left), (b, right)):
        steps, found = len({(s.name, s.start_ns) for s in rank.steps}) or 1, {}
        for key, count, ns in rows:
            old = found.get(key, (0, 0))
            found[key] = (old[0] + count, old[1] + ns)
        sums.append({k: (c / steps, ns / steps) for k, (c, ns) in found.items()})
    out = []
    for key in dict.fromkeys([*sums[0], *sums[1]]):
        (ac, at), (bc, bt) = (s.get(key, (0.0, 0.0)) for s in sums)
        state = (
            "new"
            if not ac
            else "gone"
            if not bc
            else "equal"
            if abs(at - bt) <= EQUAL * max(at, bt)
            else "slower"
            if bt > at
            else "faster"
        )
        out.append(Change(*key, state, ac, bc, at, bt))
    return tuple(sorted(out, key=lambda c: -abs(c.difference_ns)))


_WORDS = {
    "compute": "compute",
    "communication exposed": "communication that nothing hides",
    "copies exposed": "memory copies",
    "loading exposed": "loading",
    "other idle": "idle time of other kinds",
}


def _sentence(a: Side, b: Side, change: dict[str, float]) -> str:
    delta = b.step_ns - a.step_ns
    steps = f"{a.step_ns / 1e6:.1f} ms in A, {b.step_ns / 1e6:.1f} ms in B"
    words = {**_WORDS, "other idle": "time on the host other than loading"} if a.device < 0 and b.device < 0 else _WORDS
    if abs(delta) <= EQUAL * max(a.step_ns, b.step_ns):
        first = f"The median steps are equal within {percent(EQUAL, 1)}: {steps}"
    else:
        sign, more, less = (1, "B", "A") if delta > 0 else (-1, "A", "B")
        same = sorted((k for k in PIECES if sign * change[k] > 0), key=lambda k: -abs(change[k]))
        grew = abs(change[same[0]])
        if grew >= EXPLAINS * abs(delta):
            first = f"{min(grew, abs(delta)) / 1e6:.1f} ms of {more}'s median step is {words[same[0]]} that {less} does not have: {steps}"
            if grew > (2 - EXPLAINS) * abs(delta):
                first += f" (it is {grew / 1e6:.1f} ms more, and {(grew - abs(delta)) / 1e6:.1f} ms of that is made good by the rest of the step)"
        else:
            named = " and ".join(f"{words[k]} ({abs(change[k]) / 1e6:.1f} ms)" for k in same[:2])
            first = f"{more}'s median step is {abs(delta) / 1e6:.1f} ms longer ({steps}), mostly by {named}"
    if not a.kernels_ns or not b.kernels_ns:
        return first + "."
    apart = b.kernels_ns / a.kernels_ns - 1
    equal = (
        f"equal within {percent(EQUAL, 1)}"
        if abs(apart) <= EQUAL
        else f"{percent(abs(apart))} {'longer' if apart > 0 else 'shorter'} in B"
    )
    return f"{first}; kernel time per step is {equal} ({a.kernels_ns / 1e6:.1f} and {b.kernels_ns / 1e6:.1f} ms)."


def _notes(a: Side, b: Side, left: RankAnalysis, right: RankAnalysis) -> tuple[str, ...]:
    notes = [
        f"{n}: {s.left_out} is left out as a warm-up: its length differs by more than a quarter from the others'"
        for n, s in (("A", a), ("B", b))
        if s.left_out
    ]
    if (a.device < 0) != (b.device < 0):
        notes.append("only one of the two recorded a GPU: the pieces of their steps mean different things")
    names = [{n for n in r.devices.values() if n} for r in (left, right)]
    if names[0] and names[1] and names[0] != names[1]:
        notes.append(f"different devices: {', '.join(sorted(names[0]))} against {', '.join(sorted(names[1]))}")
    if min(a.steps, b.steps) < 3:
        notes.append("fewer than three steps in one of the two: the median says little")
    if a.rank != b.rank:
        notes.append(f"no rank is in both: rank {a.rank} of A against rank {b.rank} of B")
    return tuple(notes)


def blocks(d: Diff) -> list[Block]:
    """The comparison for show.terminal and show.markdown."""

    def named(s: Side) -> str:
        return f"{s.source}, {s.steps} steps, median {' and '.join(s.middle)}"

    lines = (d.sentence, f"A: {named(d.a)}", f"B: {named(d.b)}", *(f"note: {n}" for n in d.notes))
    rows = [(k, d.a.pieces[k], d.b.pieces[k], d.pieces[k]) for k in PIECES]
    if d.a.device < 0 and d.b.device < 0:
        rows = [("loading" if k == PIECES[3] else "the rest", *v) for k, *v in rows if k in PIECES[3:]]
    rows.append(("median step", d.a.step_ns, d.b.step_ns, d.difference_ns))
    made = [
        Block("verdict", "", lines),
        Block(
            "step",
            "Median step",
            ("The differences add up to that of the step, exactly.",),
            ("", "A ms", "B ms", "B - A"),
            tuple((Cell(n), ms(x), ms(y), _signed(z)) for n, x, y, z in rows),
            (),
            len(rows),
        ),
    ]
    made += [_table("kernels", "Kernels per step", d.kernels), _table("ops", "Operators per step, own time", d.ops)]
    if d.ranks:
        made.append(
            Block(
                "ranks",
                "Ranks: median step",
                (),
                ("rank", "A ms", "B ms", "B - A"),
                tuple((number(n), ms(x), ms(y), _signed(y - x)) for n, x, y in d.ranks),
                (),
                len(d.ranks),
            )
        )
    return [b for b in made if b.lines or b.rows]


def _signed(ns: float) -> Cell:
    return Cell(f"{ns / 1e6:+.3f}", ns)


def _table(name: str, title: str, found: tuple[Change, ...]) -> Block:
    moved = [c for c in found if c.state != "equal" and c.difference_ns]
    states = {s: sum(c.state == s for c in found) for s in ("slower", "faster", "new", "gone", "equal")}
    count = ", ".join(f"{n} {s}" for s, n in states.items() if n)
    total = sum(c.a_ns for c in found), sum(c.b_ns for c in found)
    rows = tuple(
        (
            Cell(f"{c.name} {c.shapes}".strip(), c.name),
            Cell(c.state),
            ms(c.a_ns),
            ms(c.b_ns),
            _signed(c.difference_ns),
            part(c.difference_ns / total[0] if total[0] else None),
        )
        for c in moved[:40]
    )
    return Block(
        name,
        title,
        (f"From A to B: {count}. Together {total[0] / 1e6:.3f} ms in A, {total[1] / 1e6:.3f} ms in B.",)
        if found
        else (),
        ("name", "in B", "A ms", "B ms", "B - A", "of A"),
        rows,
        (),
        len(moved),
    )
