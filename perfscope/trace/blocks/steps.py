"""The steps, all of them together, and their input."""

from __future__ import annotations

from perfscope.sections import percent
from perfscope.trace.analysis import RankAnalysis
from perfscope.trace.blocks.base import Block, Cell, ms, number, part
from perfscope.trace.typical import PIECES, REASONS, main_device, median, pieces, steady

STEPS = 200  # rows of steps on the page


def steps(rank: RankAnalysis) -> Block:
    """Every step, with what it is made of."""
    gpu, several = main_device(rank) >= 0, len({s.device for s in rank.steps}) > 1
    named = [s.name.removeprefix("Profiler") + (f" GPU {s.device}" if several else "") for s in rank.steps]
    if not gpu:
        rows = tuple((Cell(n), ms(s.duration_ns), ms(s.loader_ns)) for n, s in zip(named, rank.steps))
        return Block("steps", "Steps", (), ("step", "ms", "loading"), rows[:STEPS], (), len(rows))
    rows = tuple(
        (
            Cell(n, i),
            ms(s.duration_ns),
            ms(s.busy_ns),
            ms(s.compute_ns),
            ms(s.communication_ns),
            ms(s.communication_exposed_ns),
            ms(s.copy_ns),
            ms(s.idle_ns),
            ms(s.loader_ns),
            number(s.kernels),
        )
        for i, (n, s) in enumerate(zip(named, rank.steps))
    )
    _, odd = steady(rank)
    lines = (f"{odd.name} is left out of the median: its length differs by more than a quarter.",) if odd else ()
    return Block(
        "steps",
        "Steps",
        lines,
        ("step", "ms", "busy", "compute", "comm.", "exposed", "copies", "idle", "loader", "kernels"),
        rows[:STEPS],
        (5,),
        len(rows),
    )


def idle(rank: RankAnalysis) -> Block:
    """All steps together: what the device did, and why it was idle."""
    steps = [s for s in rank.steps if s.device == main_device(rank)]
    whole = sum(s.duration_ns for s in steps)
    if main_device(rank) < 0 or not whole:
        return Block("idle", "All steps together")

    def of(key):
        return sum(getattr(s, key) for s in steps)

    busy = [(k, sum(pieces(s)[k] for s in steps)) for k in PIECES[:3]]
    rows = [*busy, *((f"idle: {k.removesuffix(' idle')}", of(v)) for k, v in REASONS.items()), ("all steps", whole)]
    lines = [
        f"The GPU is busy {percent(of('busy_ns') / whole, 3)} of the steps and idle {percent(of('idle_ns') / whole, 3)}."
    ]
    if of("communication_ns"):
        lines.append(
            f"Communication: {of('communication_ns') / 1e6:.3f} ms, of which {of('communication_overlapped_ns') / 1e6:.3f} ms run beside compute."
        )
    return Block(
        "idle",
        "All steps together",
        tuple(lines),
        ("piece", "ms", "share"),
        tuple((Cell(n), ms(v), part(v / whole)) for n, v in rows),
        (),
        len(rows),
    )


def input(rank: RankAnalysis) -> Block:
    """What loading costs."""
    steps, _ = steady(rank)
    if not any(s.loader_ns for s in steps):
        return Block("input", "Input")
    whole, load, bare = (sum(getattr(s, k) for s in steps) for k in ("duration_ns", "loader_ns", "loader_exposed_ns"))
    text = f"Loading takes {median(s.loader_ns for s in steps) / 1e6:.3f} ms of the median step, {percent(load / whole)} of all"
    if main_device(rank) >= 0:
        text += f"; the GPU is idle during {percent(bare / load)} of it: {bare / len(steps) / 1e6:.3f} ms per step"
    return Block("input", "Input", (text + ".",))
