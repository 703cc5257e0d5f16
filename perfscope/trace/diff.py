"""`diff`: what makes one trace's step longer or shorter than another's, in pieces that add up exactly; operators and kernels matched.

The steps of one rank and device are compared: the median step of each (the mean of the two middle ones where their number
is even), a first step left out where it differs by more than a quarter from the median of the others. The pieces are those
of `typical.pieces`: disjoint, and their differences add up to the difference of the two median steps, exactly (halves of a
nanosecond are exact in a float). Operators of the median steps match by name, input shapes, types and order (changes.py),
kernels by name; what they take is exclusive (ledger.py), so that their differences and `rest` add up to that of the step too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from perfscope.errors import UsageError
from perfscope.sections import percent
from perfscope.trace.analysis import LOADERS, Analysis, RankAnalysis, analyze, analyze_files
from perfscope.trace.changes import EQUAL, Change, by_key, in_order
from perfscope.trace.ledger import Ledger, ledgers
from perfscope.trace.page import columns
from perfscope.trace.reader import read
from perfscope.trace.typical import PIECES, main_device, median, middle, pieces, steady

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
class Diff:
    """From A to B. `difference_ns` = B - A of the median step = the sum of `pieces`, exactly.

    Also the sum of `rest` and of the differences of `ops`, and that of `rest` and `kernels`, both exactly, where `aligned`.
    Analyses without their traces at hand are not: their tables are matched, as means per step over the whole trace.
    """

    a: Side
    b: Side
    difference_ns: float
    pieces: dict[str, float]
    kernels: tuple[Change, ...]
    ops: tuple[Change, ...]
    ranks: tuple[tuple[int, float, float], ...]  # rank, median step in A and in B: those that both have
    sentence: str
    notes: tuple[str, ...] = ()
    rest: dict[str, float] = field(default_factory=dict)
    aligned: bool = False


def diff(a, b, rank: int | None = None) -> Diff:
    """Compares two traces: paths, or `Analysis` objects. `rank`: which rank; default: the lowest that both have, else the
    first of each. Raises TraceError for what is no trace, UsageError for a rank that is not there."""
    (one, one_columns), (two, two_columns) = (_opened(x) for x in (a, b))
    left, right = _pair(one, two, rank)
    sides = [_side(r) for r in (left, right)]
    change = {k: sides[1].pieces[k] - sides[0].pieces[k] for k in PIECES}
    device = all(s.device >= 0 for s in sides)
    books = [_books(r, get, device) for r, get in ((left, one_columns), (right, two_columns))]
    kernels, ops, rest = _matched(*books) if all(books) else (*_tables(left, right, device), {})
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
        rest,
        bool(rest),
    )


def _opened(x):
    """(the analysis, a function from a rank of it to that rank's columns, or None)."""
    if isinstance(x, Analysis):
        return x, None
    if str(x) == "-":  # it can be read once
        trace = read(x)
        return analyze(trace), lambda r: next(c for c in trace.ranks if c.source == r.source)
    return analyze_files(x), lambda r: columns(x, r)


def _books(rank: RankAnalysis, get, device: bool) -> list[Ledger] | None:
    if get is None:
        return None
    return ledgers(get(rank), list(middle(steady(rank)[0])), main_device(rank) if device else -1, LOADERS.search)


def _matched(a: list[Ledger], b: list[Ledger]):
    """Kernels, operators and the rest of two lists of median steps."""
    sides = [[((k, ""), 1, ns) for book in some for e in book.entries for k, ns in e.kernels] for some in (a, b)]
    names = {
        "idle in front of operators": None,
        "loading": "loading_ns",
        "other idle": "idle_ns",
        "work of other steps": "carried_ns",
    }
    totals = [
        {
            k: sum(getattr(x, f) if f else sum(e.idle_ns for e in x.entries) for x in some) / len(some)
            for k, f in names.items()
        }
        for some in (a, b)
    ]
    return by_key(*sides, len(a), len(b)), in_order(a, b), {k: totals[1][k] - totals[0][k] for k in names}


def _tables(left: RankAnalysis, right: RankAnalysis, device: bool):
    """The same from the tables alone: means per step over the whole trace."""
    steps = [len({(s.name, s.start_ns) for s in r.steps}) or 1 for r in (left, right)]
    kernels = [[((k.name, ""), k.count, k.total_ns) for k in r.kernels] for r in (left, right)]
    ops = [
        [
            ((o.name, f"{o.shapes} {o.dtypes}".strip()), o.count, o.device_self_ns if device else o.host_self_ns)
            for o in r.ops
        ]
        for r in (left, right)
    ]
    return by_key(*kernels, *steps), by_key(*ops, *steps)


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
