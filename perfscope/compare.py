"""Compares two runs: `compare(a, b)` gives a Comparison; `perfscope.compare_text` makes it readable. No torch.

What may be compared (DESIGN section 4): the same workload by the same method version. On the same device: ratios of step
times with verdicts, Holm over the batch sizes (METHOD 5 and 8). On another one: shares, efficiency and canary-normalised
times, never ratios of milliseconds. What differs otherwise (dtype, layout, versions, commit) is what the comparison is
about: it is listed, and forbids nothing.

Two runs are not paired: A n times and then B n times is what METHOD 4 warns of. So the interval of a ratio holds more than
the noise from round to round: drift within each run (batch means, Law & Kelton) and, as the one look at drift between the
runs that there is, 1.96 times what the canary moved, which did the same work in both. Of 56 pairs of equal runs on a busy
2-core machine 39 were called FASTER or SLOWER without the two, none with them. What differs from process to process is not
in it: that takes several processes, and is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from perfscope import facts
from perfscope.comparable import Changed, changes, check_both, check_one, notes, other_device
from perfscope.errors import RecordError, UsageError
from perfscope.measure import stats
from perfscope.measure.attribution import derive
from perfscope.measure.stats import Interval, Verdict
from perfscope.record import BatchResult, Run, Warned, load

CHUNKS = 6                  # of a run's rounds, for batch means: the least that METHOD 5 gives an interval to
CANARY_MOVED = 0.03         # METHOD 10: beyond this the machine itself was another one
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
    """One batch size in both runs; no times on different devices.

    `change` is the interval of ln(b/a) of the step time, `rounds_only` the same with nothing but the noise from round to
    round in it. The seconds of the parts hold that noise only; shares do not feel drift.
    """

    batch_size: int
    step_a: Interval | None
    step_b: Interval | None
    change: Interval | None
    rounds_only: Interval | None
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
    felt = [c.what for c in changed if c.what not in NOT_FELT]
    batches = _with_verdicts([_batch(rows_a[n], rows_b[n], bool(why), _shared_canaries(a, b), not felt) for n in common],
                             {n: _reason_not_to_judge(a, b, n) for n in common},
                             {n: min(rows_a[n].derived.clean_rounds, rows_b[n].derived.clean_rounds) for n in common}, smallest)
    return Comparison(
        a.workload.name, a.base_label, _side(a, path_a), _side(b, path_b), smallest, why, changed, tuple(batches),
        tuple(n for n in rows_a if n not in rows_b), tuple(n for n in rows_b if n not in rows_a),
        tuple(notes(a, b, common, felt, not why)))


def _opened(x) -> tuple[Run, str]:
    run, path = (x, f"runs/{x.id}") if hasattr(x, "kind") else (load(x), str(x))
    if not isinstance(run, Run):
        raise RecordError(f"{path} is the record of a {run.kind}, not of a breakdown", "Compare two of: perfscope breakdown")
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


def _drift_half(x: BatchResult) -> float:
    """Half-width of ln(step time) by batch means: the rounds in order, in a few chunks, each as one value."""
    logs = [math.log(r.step_s[x.reference]) for r in x.rounds if r.step_s.get(x.reference, 0) > 0]
    size = len(logs) // CHUNKS
    return stats.t_interval([stats.hodges_lehmann(logs[i * size:(i + 1) * size]) for i in range(CHUNKS)]).half_width if size else math.inf


def _change(a: BatchResult, b: BatchResult, canary: dict[str, Interval]) -> tuple[Interval, Interval]:
    """ln(b/a) of the step time with drift in its interval, and without."""
    noise = stats.log_ratio_of(a.derived.step, b.derived.step)
    own = [max(_drift_half(x), x.derived.step.half_width / x.derived.step.point) for x in (a, b)]
    between = stats.z_quantile(0.975) * max((abs(moved.point) for moved in canary.values()), default=0.0)
    half = math.hypot(*own, between)
    return (Interval(noise.point, noise.point - half, noise.point + half) if math.isfinite(half) else stats.unknown(noise.point)), noise


def _batch(a: BatchResult, b: BatchResult, shares_only: bool, canaries: tuple[str, ...], same_settings: bool) -> BatchChange:
    da, db = a.derived, b.derived
    parts = {}
    for name in dict.fromkeys([*da.parts, *db.parts]):
        pa, pb = da.parts.get(name), db.parts.get(name)
        sa, sb = pa and pa.share, pb and pb.share
        times = () if shares_only else (pa and pa.seconds, pb and pb.seconds, _difference(pa and pa.seconds, pb and pb.seconds))
        parts[name] = PartChange(sa, sb, _difference(sa, sb), *times)
    seconds = {n: [stats.seconds_interval([r.canary_s[n] for r in x.rounds if r.canary_s.get(n, 0) > 0]) for x in (a, b)]
               for n in canaries if all(any(r.canary_s.get(n, 0) > 0 for r in x.rounds) for x in (a, b))}
    canary = {} if shares_only else {n: stats.log_ratio_of(*pair) for n, pair in seconds.items()}
    times = (None,) * 4 if shares_only else (da.step, db.step, *_change(a, b, canary if same_settings else {}))
    return BatchChange(a.batch_size, *times, None, parts, da.efficiency, db.efficiency, canary,
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


def _with_verdicts(batches: list[BatchChange], doubts: dict[int, str], rounds: dict[int, int], smallest: float) -> list[BatchChange]:
    """Each with its verdict, unless there are no ratios; Holm over the batch sizes."""
    tested = [b for b in batches if b.change is not None]
    adjusted = stats.holm([stats.p_value(b.change) for b in tested])
    verdicts = {b.batch_size: _verdict(b, doubts[b.batch_size], rounds[b.batch_size], smallest, p) for b, p in zip(tested, adjusted)}
    return [replace(b, verdict=verdicts.get(b.batch_size)) for b in batches]


def _verdict(b: BatchChange, doubt: str, rounds: int, smallest: float, p: float) -> Verdict:
    """The verdict of METHOD 8. If it is UNCLEAR because of drift, it says so: more rounds are no answer to that."""
    found = stats.verdict(b.change, rounds, smallest, p)
    if doubt:
        return Verdict("UNCLEAR", b.change, doubt)
    alone, without_drift = (stats.verdict(x, rounds, smallest).word for x in (b.change, b.rounds_only))
    if found.word != "UNCLEAR" or alone != "UNCLEAR" or without_drift == "UNCLEAR":
        return found
    name, moved = max(b.canary.items(), key=lambda x: abs(x[1].point), default=("", None))
    if moved is not None and abs(moved.point) > CANARY_MOVED:
        return Verdict("UNCLEAR", b.change, f"the machine itself was {abs(math.expm1(moved.point)):.0%} {'slower' if moved.point > 0 else 'faster'} "
                       f"in B (the canary {name}): this need not be the step")
    return Verdict("UNCLEAR", b.change, "the machine drifted by as much, within the runs or between them: measure A and B again, in turns")
