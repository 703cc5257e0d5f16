"""Which operator or kernel of one trace is which of another, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from perfscope.trace.align import common
from perfscope.trace.ledger import Entry, Ledger

EQUAL = 0.01  # of a time: below that two are called equal


@dataclass(frozen=True)
class Change:
    """One kernel or operator: counts and nanoseconds per step in A and B.

    `state` is what B made of it: slower, faster, equal (within EQUAL), new (only in B), gone (only in A). Of operators that
    were matched in order: `nth` of the `of` with this name and these shapes; `where`: its module; idle: see ledger.py.
    """

    name: str
    shapes: str
    state: str
    a_count: float
    b_count: float
    a_ns: float
    b_ns: float
    a_idle_ns: float = 0.0
    b_idle_ns: float = 0.0
    nth: int = 0
    of: int = 0
    where: str = ""

    @property
    def difference_ns(self) -> float:
        return self.b_ns - self.a_ns

    @property
    def idle_difference_ns(self) -> float:
        return self.b_idle_ns - self.a_idle_ns


def state(a_count: float, b_count: float, a_ns: float, b_ns: float) -> str:
    """What B made of it."""
    if not a_count or not b_count:
        return "gone" if a_count else "new"
    if abs(a_ns - b_ns) <= EQUAL * max(a_ns, b_ns):
        return "equal"
    return "slower" if b_ns > a_ns else "faster"


def by_key(a: list, b: list, a_steps: int, b_steps: int) -> tuple[Change, ...]:
    """Rows ((name, shapes), count, ns) matched by key, per step, the largest difference first. The differences add up to that of the totals."""
    sums: list[dict] = []
    for rows, steps in ((a, a_steps), (b, b_steps)):
        found: dict = {}
        for key, count, ns in rows:
            old = found.get(key, (0, 0))
            found[key] = (old[0] + count, old[1] + ns)
        sums.append({k: (c / steps, ns / steps) for k, (c, ns) in found.items()})
    out = []
    for key in dict.fromkeys([*sums[0], *sums[1]]):
        (ac, at), (bc, bt) = (s.get(key, (0.0, 0.0)) for s in sums)
        out.append(Change(*key, state(ac, bc, at, bt), ac, bc, at, bt))
    return tuple(sorted(out, key=lambda c: -abs(c.difference_ns)))


@dataclass
class _Row:
    key: tuple[str, str]
    found: tuple[list[Entry], list[Entry]] = field(default_factory=lambda: ([], []))


def in_order(a: list[Ledger], b: list[Ledger]) -> tuple[Change, ...]:
    """The operators of A's and B's median steps (one or two each), matched by name, shapes and types (where both have them), and order.

    The steps are aligned one after the other to what has been seen so far: the longest common subsequence. Means per step;
    the differences of own and idle time add up to those of the ledgers' entries. In the order of the ledgers, without
    those that take nothing in either.
    """
    shaped = all(any(e.shapes for x in some for e in x.entries) for some in (a, b))  # else by name and order alone
    rows: list[_Row] = []
    for side, some in ((0, a), (1, b)):
        for ledger in some:
            keys = [(e.name, e.shapes if shaped else "") for e in ledger.entries]
            merged, i, j = [], 0, 0
            for p, q in [*common([r.key for r in rows], keys), (len(rows), len(keys))]:
                merged += rows[i:p]
                for k in range(j, q):  # only in this step: a row of its own
                    merged.append(_Row(keys[k]))
                    merged[-1].found[side].append(ledger.entries[k])
                if p < len(rows):
                    rows[p].found[side].append(ledger.entries[q])
                    merged.append(rows[p])
                i, j = p + 1, q + 1
            rows = merged
    return tuple(_changes(rows, len(a), len(b)))


def _changes(rows: list[_Row], a_steps: int, b_steps: int):
    of: dict = {}
    for r in rows:
        of[r.key] = of.get(r.key, 0) + 1
    seen: dict = {}
    for r in rows:
        n = seen[r.key] = seen.get(r.key, 0) + 1
        (ac, at, ai), (bc, bt, bi) = (
            (len(f) / k, sum(e.own_ns for e in f) / k, sum(e.idle_ns for e in f) / k)
            for f, k in zip(r.found, (a_steps, b_steps))
        )
        if not any((at, bt, ai, bi)):
            continue  # it takes nothing in either
        where = next((e.where for f in r.found for e in f if e.where), "")
        yield Change(*r.key, state(ac, bc, at, bt), ac, bc, at, bt, ai, bi, n, of[r.key], where)
