"""The facts of a run as every renderer shows them: the HTML page, the terminal and the Markdown say the same numbers.

Nothing here formats for one medium; `perfscope.sections` holds the digits, the renderers the looks.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from statistics import fmean

from perfscope.measure.stats import MATTERS, Interval, t_interval
from perfscope.record import BASE, BatchResult, Part, Run, label
from perfscope.sections import DASH, Rows, change, figures, lengths, ordered, percent, plain, scaled, share, words

#: Short names for narrow tables.
SHORT = {"activation": "act", "attention": "attn", "dropout": "drop", "embedding": "embed", "communication": "comm"}
GOOD = 0.05  # a half-width that allows to speak of a batch size: a tenth of what counts as a large part
HOPELESS = 0.5  # a half-width beyond which shares say nothing: no bar is drawn
LAUNCH_BOUND = 0.10  # METHOD section 1: above this the step is host-bound


@dataclass(frozen=True)
class Row:
    """One batch size as shown: texts with only the digits that the intervals support, as (point, plus-minus)."""

    batch: BatchResult
    step_ms: tuple[str, str]
    shares: dict[str, tuple[str, str]]  # part -> percent
    floor_ms: str
    efficiency: str
    samples_per_s: str
    note: str  # what happened instead of, or beside, a measurement


def results(run: Run) -> list[BatchResult]:
    """The batch sizes that have derived values."""
    return [b for b in run.batches if b.derived and b.derived.parts]


def part_names(run: Run) -> list[str]:
    """Every part that some batch size has, in the order in which this run's ladder added them, the base first."""
    return list(dict.fromkeys(p for b in results(run) for p in b.derived.parts))


def short(run: Run, part: str) -> str:
    """The name of a part for a narrow table."""
    return plain(run.base_label) if part == BASE else SHORT.get(part, plain(part))


def sure(batch: BatchResult) -> bool:
    """Whether the shares of a batch size are known at all: their intervals are narrower than the step itself."""
    return bool(batch.derived and batch.derived.parts) and batch.derived.half_width < HOPELESS  # False for NaN


def known(run: Run) -> list[BatchResult]:
    """The batch sizes whose shares can be drawn."""
    return [b for b in results(run) if sure(b)]


def focus(run: Run) -> BatchResult | None:
    """The batch size that the report talks about: the best throughput among those that were measured well enough.

    Where none was, the one whose shares are known best.
    """
    good = [b for b in results(run) if b.derived.half_width <= GOOD]
    if good:
        return max(good, key=lambda b: b.derived.samples_per_s)
    return min(results(run), key=lambda b: b.derived.half_width if sure(b) else math.inf, default=None)


def published(run: Run) -> str:
    """Where the figures come from, if they were read from a publication and not measured by perfscope."""
    return plain(run.extra.get("published", "")) if isinstance(run.extra.get("published"), str) else ""


def note(batch: BatchResult) -> str:
    """What the reader must know about a batch size, "" if it simply went well."""
    known = {"ok": "", "partial": "partial", "out-of-memory": "out of memory", "failed": "failed"}
    text = known.get(batch.status, plain(batch.status))
    if not batch.derived and batch.status in ("ok", "partial"):
        n = len(batch.rounds)
        text = f"{text or 'no result'}: {n} round{'s' * (n != 1)}, too few to derive anything"
    elif batch.derived and not sure(batch):
        n, half = len(batch.rounds), batch.derived.half_width
        why = f"±{figures(half * 100, 2)} %" if math.isfinite(half) else f"{n} round{'s' * (n != 1)}"
        text = f"{text + ', ' if text else ''}too little is known ({why})"
    return text


def rows(run: Run) -> list[Row]:
    """All batch sizes of a run, in its order, also those that ran out of memory."""
    out = []
    for b in run.batches:
        d = b.derived if b.derived and b.derived.parts else None
        out.append(
            Row(
                b,
                scaled(d.step) if d else (DASH, ""),
                {p: share(v.share) for p, v in d.parts.items()} if d else {},
                figures(d.floor_s * 1e3) if d and d.floor_s else DASH,
                percent(d.efficiency) if d and d.efficiency else DASH,
                figures(d.samples_per_s) if d and d.samples_per_s else DASH,
                note(b),
            )
        )
    return out


def headline(run: Run) -> list[str]:
    """What was measured, where, how well: the pieces of the first line. Records of other kinds say it themselves."""
    if hasattr(run, "headline"):
        return [plain(p) for p in run.headline() if p]
    w, env = run.workload, run.environment
    setting = ", ".join(
        plain(s)
        for s in (
            w.dtype,
            w.memory_format if w.memory_format != "contiguous" else "",
            f"compile {w.compile}" if w.compile not in ("off", "") else "",
            "CUDA graph" if w.cuda_graph else "",
        )
        if s
    )
    versions = env.software.get("torch") or run.provenance.versions.get("torch")
    pieces = [
        w.name,
        setting,
        env.device_name or env.device,
        f"torch {versions}" if versions else "",
        f"{env.world_size} ranks" if env.world_size > 1 else "",
    ]
    return [plain(p) for p in pieces if p] + clock(run)


def clock(run: Run) -> list[str]:
    """Which clock, how many rounds and what they can see; or that these are published figures."""
    if published(run):
        return ["published figures, not measured by perfscope"]
    counts = sorted({b.derived.rounds for b in results(run)} - {0})
    if not counts:
        return ["nothing derived yet"]
    span = f"{counts[0]}–{counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    worst = max((b.derived.resolution for b in results(run) if sure(b)), default=0.0)
    sees = f", sees changes of {change(worst)} and more" if worst > 0 else ""
    return [f"step clock, {span} round{'s' * (counts[-1] != 1)}{sees}"]


def largest_part(batch: BatchResult) -> str:
    """The part, besides the base, with the largest share that can be told from nothing; "" if there is none."""
    parts = batch.derived.parts
    return max(
        (p for p in parts if p != BASE and parts[p].share.low > 0), key=lambda p: parts[p].share.point, default=""
    )


def saved(part: Part) -> Interval:
    """Seconds that the full step would save without this part: last in where that was measured, else the ladder's."""
    return part.last if part.last and math.isfinite(part.last.half_width) else part.seconds


def verdict(run: Run) -> str:
    """The one sentence of a run: the step, its largest cost besides the base, and how far from the floor it is."""
    best = focus(run)
    if best is None or not sure(best):
        seen = ", ".join(f"batch {b.batch_size} {note(b)}" for b in run.batches) or "no batch size was finished"
        return f"Nothing can be said yet: {seen}."
    d = best.derived
    text = f"At batch {best.batch_size} a training step takes {words(scaled(d.step), 'ms')}"
    part = largest_part(best)
    if part:
        text += f", of which {label(run, part)} is {words(share(d.parts[part].share), '%')}"
        text += f": were it free, the step would be {words(scaled(saved(d.parts[part])), 'ms')} shorter"
    end = [] if part else ["No part besides the base can be told from noise."]
    if d.efficiency and math.isfinite(d.efficiency):
        end.append(f"The step reaches {percent(d.efficiency)} of what this machine's measured ceilings allow.")
    if d.launch_bound is not None and d.launch_bound > LAUNCH_BOUND:
        end.append(f"The device waits for the host {percent(d.launch_bound)} of the time.")
    return " ".join([plain(text) + ".", *end])


@dataclass(frozen=True)
class Opinion:
    """One part in the breakdown and in a trace of the same step, as shares of it.

    `cost` spans what taking the part away says: its share, and first and last in where they were measured. `trace` is its time in
    the trace with the interval over its steps, `host` (on a CPU) what of that is time between operators, `waiting` the rest of the
    traced step, which belongs to no part and can explain a difference of that size. `beyond`: what is left unexplained.
    """

    part: str
    cost: Interval
    trace: Interval
    host: float
    waiting: float

    @property
    def beyond(self) -> float:
        apart = max(self.cost.low - self.trace.high, self.trace.low - self.cost.high)
        return max(apart - self.waiting, 0.0)

    @property
    def agrees(self) -> bool:
        """Whether nothing that matters (METHOD 8) is left unexplained."""
        return self.beyond < MATTERS


#: What a traced step has besides the parts, by the clock.
WAITING = {"operators": "the host's own time between operators", "kernels": "the launch-bound share"}


def opinions(run: Run) -> list[Opinion]:
    """What a trace of the same step says of each part, beside the breakdown; [] if there is none."""
    s = run.second_opinion
    d = next((b.derived for b in results(run) if s and b.batch_size == s.batch_size), None)
    if d is None or not d.step.point > 0 or not s.step_s or min(s.step_s) <= 0:
        return []
    nothing = (0.0,) * len(s.step_s)

    def of_step(column) -> list[float]:
        return [x / t for x, t in zip(column, s.step_s)]

    waiting, out = fmean(of_step(s.waiting_s)), []
    for name, p in d.parts.items():
        spans = [p.share, *(x.scaled(1 / d.step.point) for x in (p.first, p.last) if x is not None)]
        cost = Interval(p.share.point, min(x.low for x in spans), max(x.high for x in spans))
        own, host = (of_step(column.get(name, nothing)) for column in (s.parts, s.host))
        out.append(Opinion(name, cost, t_interval([a + b for a, b in zip(own, host)]), fmean(host), waiting))
    return out


def opinion_words(run: Run) -> str:
    """The second opinion in two sentences; "" if there is none."""
    s, found = run.second_opinion, opinions(run)
    if not found:
        return ""
    d = next(b.derived for b in results(run) if b.batch_size == s.batch_size)
    apart = [plain(label(run, o.part)) for o in found if not o.agrees]
    return (
        f"Second opinion, batch {s.batch_size}: a trace of {len(s.step_s)} steps, recorded in a process of its own, "
        + (f"disagrees about {', '.join(apart)} beyond" if apart else "agrees about every part within")
        + f" the intervals and {plain(WAITING.get(s.clock, s.clock))} ({percent(found[0].waiting)} of the traced step). "
        f"A traced step took {figures(fmean(s.step_s) / d.step.point, 2)} times as long as a measured one: only shares compare."
    )


def opinion_rows(run: Run) -> Rows:
    """The two side by side, in per cent of the step."""
    return Rows(
        ("part", "taken away %", "in the trace %", "unexplained %"),
        tuple(
            (
                plain(label(run, o.part)),
                words(share(o.cost)),
                words(share(o.trace)),
                DASH if o.agrees else figures(100 * o.beyond, 2),
            )
            for o in opinions(run)
        ),
    )


def growing(run: Run) -> list[str]:
    """The parts whose cost per sample grows with the batch, by their names."""
    return [label(run, p) for p, f in run.scaling.parts.items() if f.kind == "grows"] if run.scaling else []


def scaling_words(run: Run) -> list[tuple[str, str]]:
    """(part, how it scales with the batch, in words), in ladder order; one line where nothing can be said of any part."""
    fits = run.scaling.parts if run.scaling else {}
    words = [
        (plain(label(run, p)), re.sub(r"(?<=\d) us\b", " µs", plain(fits[p].words or fits[p].kind)))
        for p in ordered(fits)
    ]
    silent = len(words) > 1 and {f.kind for f in fits.values()} == {"too few points"} and len({w for _, w in words}) == 1
    return [("every part", words[0][1])] if silent else words


def sweep_words(run: Run) -> list[str]:
    """What the sweep over batch sizes says of the whole step: overhead, knee, the largest batch."""
    s, out = run.scaling, []
    if s and s.b_half is not None and math.isfinite(s.b_half) and s.b_half > 0:
        out.append(f"half of the step is overhead at batch {figures(s.b_half, 2)}")
    if s and s.knee:
        out.append(f"within 5 % of the best throughput from batch {s.knee}")
    if run.largest_batch:
        out.append(f"largest batch that fits: {run.largest_batch}")
    return out


def residues(run: Run) -> list[tuple[str, str, int]]:
    """(variant, operation, calls) of what should be gone and is not. Never silent."""
    found = run.inspection.residues if run.inspection else {}
    return [(plain(v), plain(op), n) for v, ops in found.items() for op, n in ops.items()]


def incomplete(run: Run) -> str:
    """Says so if the run did not come to its end."""
    known = {
        "partial": "This record is partial: the run was still going, or was killed, when it was written.",
        "interrupted": "This run was interrupted: what is here was measured, the rest was not.",
    }
    return known.get(run.status, "")


def per_sample(run: Run) -> tuple[float, str]:
    """(scale, unit) for seconds per sample over all batch sizes: "µs" or "ms"."""
    return lengths([b.derived.step.point / b.batch_size for b in results(run)])


def over(interval: Interval, batch_size: int) -> Interval:
    """The interval per sample."""
    return interval.scaled(1 / batch_size)
