"""What comes first: the trace in a line, its verdict in a sentence, and what is odd about it."""

from __future__ import annotations

from perfscope.sections import percent
from perfscope.trace.analysis import Analysis, RankAnalysis
from perfscope.trace.blocks.base import Block
from perfscope.trace.typical import PIECES, REASONS, main_device, median, pieces, steady

#: Warnings that say what a trace is, not that something is wrong with it.
NOTES = ("no_device_events", "no_steps", "ranks_numbered", "no_launch")


def facts(analysis: Analysis) -> str:
    """One line: ranks, events, devices."""
    gpus = sorted({n or f"GPU {k}" for r in analysis.ranks for k, n in r.devices.items() if k != "-1"})
    n, count = len(analysis.ranks), sum(r.events for r in analysis.ranks)
    return " · ".join([f"{n} rank{'s' * (n != 1)}", f"{count} events", *(gpus or ["CPU only"])])


def verdict(rank: RankAnalysis) -> str:
    """One sentence: what the steps are made of."""
    steps, _ = steady(rank)
    whole = sum(s.duration_ns for s in steps)
    if not whole:
        return "The trace has no step of any length."
    length = f"The median step takes {median(s.duration_ns for s in steps) / 1e6:.2f} ms"
    loading = sum(s.loader_ns for s in steps) / whole
    if main_device(rank) < 0:
        return (
            f"{length}; no GPU was recorded"
            + (f"; {percent(loading)} of it is loading" if loading >= 0.005 else "")
            + "."
        )
    total = {k: sum(pieces(s)[k] for s in steps) for k in PIECES}
    if total["loading exposed"] < 0.005 * whole:  # nothing else has to be taken out of the idle time's reasons
        del total["loading exposed"], total["other idle"]
        total |= {k: sum(getattr(s, v) for s in steps) for k, v in REASONS.items()}
    shares = ", ".join(
        f"{k} {percent(v / whole)}" for k, v in sorted(total.items(), key=lambda i: -i[1]) if v / whole >= 0.005
    )
    return f"{length}: {shares}."


def warnings(a: Analysis) -> Block:
    """Two of each kind; the rest, of many ranks, as a count. All of them are in the JSON."""
    kinds: dict[str, list] = {}
    for w in a.warnings:
        kinds.setdefault(w.code, []).append(w)
    said = []
    for code, found in kinds.items():
        said += [
            f"{'note' if code in NOTES else 'warning'}: {w.text}" + (f" ({w.hint})" if w.hint else "")
            for w in found[:2]
        ]
        if len(found) > 2:
            said.append(f"note: {len(found) - 2} more of that kind ({code})")
    return Block("warnings", "Notes", tuple(said))
