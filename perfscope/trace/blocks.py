"""What there is to say about an analysed trace, as blocks of sentences and tables: the terminal, Markdown and the page show the same."""

from __future__ import annotations

from dataclasses import dataclass

from perfscope.sections import amount, percent
from perfscope.trace.analysis import Analysis, RankAnalysis
from perfscope.trace.steps import Step

#: The pieces of a step; they add up to its length exactly. See `pieces`.
PIECES = ("compute", "communication exposed", "copies exposed", "loading exposed", "other idle")
#: Warnings that say what a trace is, not that something is wrong with it.
NOTES = ("no_device_events", "no_steps", "ranks_numbered")
_REASONS = {
    "waiting for the host": "idle_host_ns",
    "launch gaps": "idle_launch_ns",
    "waiting for another stream": "idle_stream_ns",
    "unexplained idle": "idle_unknown_ns",
}
ALL, BRIEF = 40, 10  # rows of a long table on the page, and in the terminal and Markdown
STEPS = 200  # rows of steps on the page


@dataclass(frozen=True)
class Cell:
    """One cell: what is shown, and what it is sorted by."""

    text: str
    sort: float | str | None = None


@dataclass(frozen=True)
class Block:
    """Sentences and a table. `wide`: columns that only the page shows; `total`: rows there are (the page has ALL, the others BRIEF)."""

    name: str
    title: str
    lines: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    wide: tuple[int, ...] = ()
    total: int = 0


def ms(ns: float | None) -> Cell:
    """Nanoseconds as milliseconds."""
    return Cell("–" if ns is None else f"{ns / 1e6:.3f}" if abs(ns) < 1e9 else f"{ns / 1e6:.1f}", ns)


def number(value: int | None) -> Cell:
    """A count."""
    return Cell("–" if value is None else str(value), value)


def part(value: float | None) -> Cell:
    """A share, as a percentage."""
    return Cell("–" if value is None else f"{100 * value:.1f} %", value)


def pieces(step: Step) -> dict[str, int]:
    """A step in disjoint pieces, nanoseconds, that add up to its length: PIECES.

    compute: a kernel that is no collective, or a memset, runs on the device. communication exposed: a collective runs and
    no compute. copies exposed: only a memory copy runs. loading exposed: the device is idle while a loader runs on the
    host. other idle: the rest.
    """
    copies = step.busy_ns - step.compute_ns - step.communication_exposed_ns
    return dict(
        zip(
            PIECES,
            (
                step.compute_ns,
                step.communication_exposed_ns,
                copies,
                step.loader_exposed_ns,
                step.idle_ns - step.loader_exposed_ns,
            ),
        )
    )


def main_device(rank: RankAnalysis) -> int:
    """The device that is busy the longest; -1 without one."""
    busy: dict[int, int] = {}
    for s in rank.steps:
        busy[s.device] = busy.get(s.device, 0) + s.busy_ns
    return max(busy, key=lambda d: (busy[d], -d), default=-1)


def steady(rank: RankAnalysis) -> tuple[list[Step], Step | None]:
    """(the steps of the main device without a first one that is an obvious outlier, that one). An outlier differs by more
    than a quarter from the median of at least two others."""
    steps = [s for s in rank.steps if s.device == main_device(rank)]
    if len(steps) < 3:
        return steps, None
    rest = median([float(s.duration_ns) for s in steps[1:]])
    return (steps[1:], steps[0]) if abs(steps[0].duration_ns - rest) > 0.25 * rest else (steps, None)


def median(values) -> float:
    """The median; 0 for none."""
    ordered = sorted(values)
    n = len(ordered)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2 if n else 0.0


def middle(steps: list[Step]) -> tuple[Step, ...]:
    """The median step: the middle one by length, or the two middle ones, whose mean it is."""
    ordered = sorted(steps, key=lambda s: (s.duration_ns, s.start_ns))
    n = len(ordered)
    return tuple(ordered[(n - 1) // 2 : n // 2 + 1])


def chosen(analysis: Analysis, number: int | None = None) -> RankAnalysis:
    """The rank of this number, else the one that the others wait for, else the first. KeyError if there is none of the number."""
    by = {r.rank: r for r in analysis.ranks}
    if number is not None:
        return by[number]
    slowest = analysis.together.slowest if analysis.together else None
    return by.get(slowest, analysis.ranks[0])


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
        total |= {k: sum(getattr(s, v) for s in steps) for k, v in _REASONS.items()}
    shares = ", ".join(
        f"{k} {percent(v / whole)}" for k, v in sorted(total.items(), key=lambda i: -i[1]) if v / whole >= 0.005
    )
    return f"{length}: {shares}."


def blocks(analysis: Analysis, rank: RankAnalysis | None = None) -> list[Block]:
    """Everything there is to say, without what is empty. Of several ranks: one in detail (`chosen`), all in a table."""
    rank = rank or chosen(analysis)
    first = Block(
        "verdict",
        "",
        (facts(analysis), verdict(rank), *([f"Rank {rank.rank} in detail."] if len(analysis.ranks) > 1 else [])),
    )
    made = [
        first,
        _ranks(analysis),
        _steps(rank),
        _idle(rank),
        _input(rank),
        _kernels(rank),
        _ops(rank),
        _launches(rank),
        _syncs(rank),
        _copies(rank),
        _warnings(analysis),
    ]
    return [b for b in made if b.lines or b.rows]


def _warnings(a: Analysis) -> Block:
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


def _ranks(a: Analysis) -> Block:
    t = a.together
    if len(a.ranks) < 2 or t is None:
        return Block("ranks", "Ranks")
    lines = []
    if t.straggler is not None:
        lines.append(
            f"Rank {t.straggler} is the straggler: it came last in more than half of {len(t.collectives)} collectives."
        )
    elif t.slowest is not None:
        lines.append(
            f"No rank came last in more than half of {len(t.collectives)} collectives; rank {t.slowest} waited the least."
        )
    if t.imbalance is not None:
        lines.append(f"Imbalance: the rank with the most compute has {percent(t.imbalance)} more than the mean.")
    if t.collectives:
        worst = max(t.collectives, key=lambda c: max(c.wait_ns))
        lines.append(
            f"The longest wait: {max(worst.wait_ns) / 1e6:.3f} ms for rank {worst.last} in {worst.name} of {worst.step}."
        )
    if t.unmatched:
        lines.append(f"{t.unmatched} collective kernels have no partner on another rank.")
    rows = tuple(
        (
            Cell(str(s.rank), s.rank),
            ms(s.step_ns),
            ms(s.compute_ns),
            ms(s.exposed_ns),
            ms(s.wait_ns),
            number(s.came_last),
        )
        for s in t.ranks
    )
    return Block(
        "ranks",
        "Ranks",
        tuple(lines),
        ("rank", "steps ms", "compute", "comm. exposed", "waited", "came last"),
        rows,
        (),
        len(rows),
    )


def _steps(rank: RankAnalysis) -> Block:
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


def _idle(rank: RankAnalysis) -> Block:
    steps = [s for s in rank.steps if s.device == main_device(rank)]
    whole = sum(s.duration_ns for s in steps)
    if main_device(rank) < 0 or not whole:
        return Block("idle", "All steps together")

    def of(key):
        return sum(getattr(s, key) for s in steps)

    busy = [(k, sum(pieces(s)[k] for s in steps)) for k in PIECES[:3]]
    rows = [*busy, *((f"idle: {k}", of(v)) for k, v in _REASONS.items()), ("all steps", whole)]
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
        ("", "ms", "share"),
        tuple((Cell(n), ms(v), part(v / whole)) for n, v in rows),
        (),
        len(rows),
    )


def _input(rank: RankAnalysis) -> Block:
    steps, _ = steady(rank)
    if not any(s.loader_ns for s in steps):
        return Block("input", "Input")
    whole, load, bare = (sum(getattr(s, k) for s in steps) for k in ("duration_ns", "loader_ns", "loader_exposed_ns"))
    text = f"Loading takes {median(s.loader_ns for s in steps) / 1e6:.3f} ms of the median step, {percent(load / whole)} of all"
    if main_device(rank) >= 0:
        text += f"; the GPU is idle during {percent(bare / load)} of it: {bare / len(steps) / 1e6:.3f} ms per step"
    return Block("input", "Input", (text + ".",))


def _kernels(rank: RankAnalysis) -> Block:
    if not rank.kernels:
        return Block("kernels", "Kernels")
    everything = max(rank.kernels_ns, 1)
    norm, heavy = (
        sum(k.total_ns for k in rank.kernels if k.norm),
        [k for k in rank.kernels if k.tensor_cores is not None],
    )
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
    if heavy:
        on = sum(k.total_ns for k in heavy if k.tensor_cores) / max(sum(k.total_ns for k in heavy), 1)
        lines.append(
            f"Tensor cores: {percent(on)} of the time of matmuls, convolutions and attention, by the kernels' names."
            if on
            else "Tensor cores: no matmul, convolution or attention kernel has a name that says it uses them."
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


def _ops(rank: RankAnalysis) -> Block:
    gpu = any(o.device_self_ns for o in rank.ops)
    ordered = sorted(rank.ops, key=lambda o: -(o.device_self_ns if gpu else o.host_self_ns))
    rows = []
    for o in ordered[:ALL]:
        device = (ms(o.device_self_ns), ms(o.device_total_ns)) if gpu else ()
        rows.append(
            (
                Cell(o.name, o.name),
                Cell(o.shapes[:120]),
                Cell(o.dtypes[:60]),
                number(o.count),
                *device,
                ms(o.host_self_ns),
                ms(o.host_total_ns),
            )
        )
    head = (
        "operator",
        "shapes",
        "types",
        "count",
        *(("GPU self ms", "GPU total") if gpu else ()),
        "host self ms",
        "host total",
    )
    return Block("ops", "Operators", (), head, tuple(rows), (1, 2), len(ordered))


def _launches(rank: RankAnalysis) -> Block:
    found = rank.launches
    if not found or not found.count + found.without_launch:
        return Block("launches", "Launches")
    lines = [
        f"{found.count} launches take the host {found.host_ns / 1e6:.3f} ms; from call to start: median {found.delay_median_ns / 1e3:.1f} µs, "
        f"95 % below {found.delay_p95_ns / 1e3:.1f} µs.",
        f"Queue at a launch: median {found.queue_median}, at most {found.queue_max}.",
        f"{found.short_kernels} kernels are shorter than 10 µs: {found.short_kernels_ns / 1e6:.3f} ms.",
    ]
    if found.without_launch:
        lines.append(
            f"{found.without_launch} device events ({found.without_launch_ns / 1e6:.3f} ms) have no launch in the trace."
        )
    return Block("launches", "Launches", tuple(lines))


def _syncs(rank: RankAnalysis) -> Block:
    rows = tuple(
        (Cell(s.name), Cell(s.where or s.op), number(s.count), ms(s.total_ns), ms(s.max_ns)) for s in rank.syncs[:ALL]
    )
    return Block(
        "syncs", "Synchronisations", (), ("call", "where", "count", "ms", "longest"), rows, (), len(rank.syncs)
    )


def _copies(rank: RankAnalysis) -> Block:
    rows = tuple(
        (
            Cell(c.kind),
            number(c.count),
            ms(c.total_ns),
            Cell("–" if c.bytes is None else amount(c.bytes, "B", 1024), c.bytes),
            Cell("–" if c.gb_per_s is None else f"{c.gb_per_s:.2f}", c.gb_per_s),
        )
        for c in rank.copies
    )
    return Block("copies", "Memory copies", (), ("kind", "count", "ms", "size", "GB/s"), rows[:ALL], (), len(rows))
