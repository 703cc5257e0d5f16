"""Compares two runs: `compare(a, b)` gives a Comparison; `perfscope.compare_text` makes it readable. No torch.

What may be compared (DESIGN section 4): the same workload by the same method version. On the same device: ratios of step
times with verdicts, Holm over the batch sizes (METHOD 5 and 8). On another one: shares, efficiency and canary-normalised
times, never ratios of milliseconds. What differs otherwise (dtype, layout, versions, commit) is what the comparison is
about: it is listed, and forbids nothing. The runs are not paired and each is one process, so drift between them and what
differs from process to process are not in the intervals; the canary, which did the same work in both, shows the former.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from perfscope import facts
from perfscope.comparable import Changed, changes, check_both, check_one, other_device
from perfscope.errors import UsageError
from perfscope.measure import stats
from perfscope.measure.attribution import derive, part_order
from perfscope.measure.stats import Interval, Verdict
from perfscope.record import BatchResult, Run, Warned, load

CANARY_MOVED = 0.03         # METHOD 10: beyond this the machine itself was another one
UNTRUSTED = ("throttled", "busy-machine", "still-drifting", "few-clean-rounds", "different-kernels", "diverged",
             "loss-not-finite", "own-overhead", "clocks-disagree")      # warnings of a run that its reader must know
#: Settings that a canary does not feel. If anything else differs, a canary that moved need not mean another machine.
NOT_FELT = ("dtype", "memory format", "compile", "cuda graph", "optimizer", "loss", "data", "parameters", "MFLOP per sample", "parts",
            "order", "git commit", "uncommitted changes", "perfscope", "python", "torchvision", "timm", "transformers", "cudnn.benchmark")
MATMUL_IN = {"half": "float16", "amp-half": "float16", "amp-bfloat16": "bfloat16"}   # dtype of a GPU's canary


@dataclass(frozen=True)
class Side:
    """One of the two runs, in short."""

    id: str
    path: str
    started_utc: str
    device: str
    device_name: str
    status: str


@dataclass(frozen=True)
class PartChange:
    """One part in both runs; None where a run does not have it. Differences are b - a; seconds only on one device."""

    share_a: Interval | None
    share_b: Interval | None
    share: Interval | None
    seconds_a: Interval | None = None
    seconds_b: Interval | None = None
    seconds: Interval | None = None


@dataclass(frozen=True)
class BatchChange:
    """One batch size in both runs. `change` is the interval of ln(b/a) of the step time, None on different devices."""

    batch_size: int
    step_a: Interval | None
    step_b: Interval | None
    change: Interval | None
    verdict: Verdict | None
    parts: dict[str, PartChange]
    efficiency_a: float
    efficiency_b: float
    canary: dict[str, Interval]                             # ln(b/a) of each canary; empty on different devices
    in_canaries: dict[str, tuple[Interval, Interval]]       # step time / canary time of a and of b


@dataclass(frozen=True)
class Comparison:
    """Two runs beside each other. `shares_only` says why there are no ratios of times; "" if there are."""

    workload: str
    base_label: str
    a: Side
    b: Side
    smallest: float
    shares_only: str
    changed: tuple[Changed, ...]
    batches: tuple[BatchChange, ...]
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]
    notes: tuple[Warned, ...]

    @property
    def word(self) -> str:
        """Over all batch sizes: SLOWER if any is, else UNCLEAR if any is, else FASTER if any is, else SAME."""
        words = {b.verdict.word if b.verdict else "UNCLEAR" for b in self.batches}
        return next(w for w in ("SLOWER", "UNCLEAR", "FASTER", "SAME") if w in words)


def compare(a: Run | str | Path, b: Run | str | Path, smallest: float = stats.MATTERS) -> Comparison:
    """Run b against run a, batch size by batch size; records or paths. `smallest`: the smallest change that matters.

    Raises RecordError, naming every difference, where the two are not about the same thing or hold nothing.
    """
    if not 0 < smallest < 1:
        raise UsageError("the smallest change that matters is a share between 0 % and 100 %", "For example: --smallest 1%")
    (a, path_a), (b, path_b) = (_opened(x) for x in (a, b))
    for side, run in (("A", a), ("B", b)):
        check_one(side, run)
    check_both(a, b)
    why = other_device(a, b)
    rows_a, rows_b = ({r.batch_size: r for r in facts.results(run)} for run in (a, b))
    common = [size for size in rows_a if size in rows_b]
    changed = changes(a, b)
    batches = _with_verdicts([_batch(rows_a[n], rows_b[n], bool(why), _shared_canaries(a, b)) for n in common],
                             {n: _reason_not_to_judge(a, b, n) for n in common},
                             {n: min(rows_a[n].derived.clean_rounds, rows_b[n].derived.clean_rounds) for n in common},
                             smallest, all(c.what in NOT_FELT for c in changed))
    return Comparison(
        a.workload.name, a.base_label, _side(a, path_a), _side(b, path_b), smallest, why, changed, tuple(batches),
        tuple(n for n in rows_a if n not in rows_b), tuple(n for n in rows_b if n not in rows_a),
        tuple(_notes(a, b, common, batches)))


def _opened(x) -> tuple[Run, str]:
    run, path = (x, f"runs/{x.id}") if isinstance(x, Run) else (load(x), str(x))
    stale = any(r.derived is None and r.rounds for r in run.batches)      # derived values may have been left out
    return (derive(run) if stale else run), path


def _side(run: Run, path: str) -> Side:
    e = run.environment
    return Side(run.id, path, run.provenance.started_utc, e.device, e.device_name, run.status)


# ---------------------------------------------------------------- one batch size

def _difference(a: Interval | None, b: Interval | None) -> Interval | None:
    """b - a of two runs: independent errors."""
    if a is None or b is None:
        return None
    half, point = math.hypot(a.half_width, b.half_width), b.point - a.point
    return Interval(point, point - half, point + half) if math.isfinite(half) else stats.unknown(point)


def _batch(a: BatchResult, b: BatchResult, shares_only: bool, canaries: tuple[str, ...]) -> BatchChange:
    da, db = a.derived, b.derived
    parts = {}
    for name in dict.fromkeys([*da.parts, *db.parts]):
        pa, pb = da.parts.get(name), db.parts.get(name)
        sa, sb = pa and pa.share, pb and pb.share
        times = () if shares_only else (pa and pa.seconds, pb and pb.seconds, _difference(pa and pa.seconds, pb and pb.seconds))
        parts[name] = PartChange(sa, sb, _difference(sa, sb), *times)
    seconds = {n: [stats.seconds_interval([r.canary_s[n] for r in x.rounds if r.canary_s.get(n, 0) > 0]) for x in (a, b)]
               for n in canaries if all(any(r.canary_s.get(n, 0) > 0 for r in x.rounds) for x in (a, b))}
    return BatchChange(
        a.batch_size, None if shares_only else da.step, None if shares_only else db.step,
        None if shares_only else stats.log_ratio_of(da.step, db.step), None, parts, da.efficiency, db.efficiency,
        {} if shares_only else {n: stats.log_ratio_of(*pair) for n, pair in seconds.items()},
        {n: (_in_canaries(a, n), _in_canaries(b, n)) for n in seconds})


def _in_canaries(x: BatchResult, name: str) -> Interval:
    """The full step's time in times of this canary, paired by round."""
    return stats.seconds_interval([r.step_s[x.reference] / r.canary_s[name] for r in x.rounds
                                   if r.step_s.get(x.reference, 0) > 0 and r.canary_s.get(name, 0) > 0] or [math.nan])


def _shared_canaries(a: Run, b: Run) -> tuple[str, ...]:
    """The canaries that did the same work in both: those of a CPU and of a GPU differ, a GPU's matmul is in the step's dtype."""
    if a.environment.device != b.environment.device:
        return ()
    dtypes = [MATMUL_IN.get(r.workload.dtype, r.workload.dtype) for r in (a, b)]
    return ("matmul", "copy") if a.environment.device == "cpu" or dtypes[0] == dtypes[1] else ("copy",)


# ---------------------------------------------------------------- verdicts

def _reason_not_to_judge(a: Run, b: Run, size: int) -> str:
    """METHOD 10: of a throttled run the shares stay valid, the milliseconds do not."""
    hot = [side for side, run in (("A", a), ("B", b)) if any(w.code == "throttled" and w.batch_size in (None, size) for w in run.warnings)]
    return f"{' and '.join(hot)} {'was' if len(hot) == 1 else 'were'} throttled: such milliseconds do not hold" if hot else ""


def _with_verdicts(batches: list[BatchChange], doubts: dict[int, str], rounds: dict[int, int], smallest: float,
                   same_settings: bool) -> list[BatchChange]:
    """Each with its verdict, unless there are no ratios; Holm over the batch sizes."""
    tested = [b for b in batches if b.change is not None]
    adjusted = stats.holm([stats.p_value(b.change) for b in tested])
    verdicts = {b.batch_size: _verdict(b, doubts[b.batch_size], rounds[b.batch_size], smallest, p, same_settings) for b, p in zip(tested, adjusted)}
    return [replace(b, verdict=verdicts.get(b.batch_size)) for b in batches]


def _verdict(b: BatchChange, doubt: str, rounds: int, smallest: float, p: float, same_settings: bool) -> Verdict:
    """The verdict of METHOD 8. If a canary moved and no setting explains it, it has to hold without the canary's change too."""
    found = stats.verdict(b.change, rounds, smallest, p)
    if doubt:
        return Verdict("UNCLEAR", b.change, doubt)
    for name, moved in b.canary.items() if same_settings else ():
        if abs(moved.point) > CANARY_MOVED:
            half = math.hypot(b.change.half_width, moved.half_width)
            point = b.change.point - moved.point
            other = stats.verdict(Interval(point, point - half, point + half), rounds, smallest, p)
            if other.word != found.word:
                speed = f"{abs(math.expm1(moved.point)):.0%} {'slower' if moved.point > 0 else 'faster'}"
                return Verdict("UNCLEAR", b.change, f"the machine itself was {speed} in B: the same {name} took that much "
                               f"{'longer' if moved.point > 0 else 'less'}, so this need not be the step")
    return found


# ---------------------------------------------------------------- what has to be said with it

def _notes(a: Run, b: Run, common: list[int], batches: list[BatchChange]) -> list[Warned]:
    out = []
    if a == b:
        out.append(Warned("same-record", "A and B are the same record."))
    partial, wide = [], []
    for side, run in (("A", a), ("B", b)):
        seen: dict[str, list] = {}
        for w in run.warnings:
            if w.code in UNTRUSTED and w.batch_size in (None, *common):
                seen.setdefault(w.code, []).extend([w.batch_size] if w.batch_size else [])
        if seen:
            told = [code + (f" (batch {', '.join(map(str, dict.fromkeys(at)))})" if at else "") for code, at in seen.items()]
            out.append(Warned("warned", f"{side} carries warnings: {', '.join(told)}.", f"Read them: perfscope report {side}"))
        rows = [r for r in facts.results(run) if r.batch_size in common]
        if run.status != "complete" or any(r.status == "partial" for r in rows):
            partial.append(f"{side} ({run.status})")
        target = run.method.get("target_half_width")
        target = target if isinstance(target, (int, float)) else stats.TARGET
        sizes = [f"{r.batch_size} ({'±' + stats.format_change(half) if math.isfinite(half) else 'unknown'})"
                 for r in rows if not (half := r.derived.half_width) <= target]
        wide += [f"{side} at batch {', '.join(sizes)}"] if sizes else []
    if partial:
        out.append(Warned("partial", f"{' and '.join(partial)} did not come to {'its' if len(partial) == 1 else 'their'} end: what is "
                          "there was measured, with fewer rounds."))
    if wide:
        out.append(Warned("wide", f"wider than the target for a part's share: {'; '.join(wide)}.", "Give it more time with --budget."))
    ladders = {tuple(part_order(r)) for run in (a, b) for r in facts.results(run) if r.batch_size in common}
    if len(ladders) > 1:
        out.append(Warned("other-ladder", "The ladders differ (" + " against ".join(" ".join(x) or "none" for x in sorted(ladders)) +
                          "): a part's change may come from its place in the order.", "Measure both with the same --order and --parts."))
    if any(x.change is not None for x in batches):
        processes = [r.method.get("processes", 1) for r in (a, b)]
        if all(n == 1 for n in processes):
            out.append(Warned("one-process", "A and B are one process each: what differs from process to process, and drift between the two runs, is "
                              "not in these intervals.", "Before you rely on a small change, measure A and B again, in turns."))
    return out
