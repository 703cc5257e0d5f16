"""From raw rounds to the breakdown: all of `derived` and `scaling`, rebuilt at any time (METHOD 5, 9, 11, 12).

`derive(run)` is the whole of it. All shares of a batch size are linear estimators on one set of clean rounds, so the
ladder's sum to 1, and so do the Shapley values with the base. What cannot be known (a variant is missing, too few
rounds) gets an infinite interval, never an exception.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

from perfscope.measure import digits, scaling, stats
from perfscope.measure.stats import Interval
from perfscope.record import (BASE, BatchResult, Ceilings, Derived, Fit, Inspection, Part, Round, Run, Scaling,
                              Warned)

CLOCKS_AGREE = 0.02         # device clock against step clock (METHOD 1)
FEW_CLEAN = 0.5             # below this share of clean rounds the noise is not spikes
OWN_WARNINGS = ("efficiency-above-100", "clocks-disagree", "few-clean-rounds")   # made here, and made anew each time


def derive(run: Run) -> Run:
    """The run with `derived`, `scaling` and this module's warnings made anew from its raw samples."""
    batches = tuple(derive_batch(b, run.inspection, run.ceilings) for b in run.batches)
    kept = tuple(w for w in run.warnings if w.code not in OWN_WARNINGS)
    made = tuple(w for b in batches for w in batch_warnings(b))
    return replace(run, batches=batches, scaling=scaling_of(batches), warnings=kept + made)


def derive_batch(batch: BatchResult, inspection: Inspection | None = None,
                 ceilings: Ceilings | None = None) -> BatchResult:
    """The batch with `derived` made anew; None where no round has the reference variant.

    floor_s and efficiency are 0 (not known) without an inspection and ceilings.
    """
    full = reference_of(batch)
    rounds, times = complete_rounds(batch.rounds, [v.name for v in batch.variants], full)
    if not rounds:
        return replace(batch, derived=None)
    found = stats.levels(times)
    kept = [rounds[r] for r in found.clean]
    step = stats.seconds_interval([r.step_s[full] for r in kept])
    parts = _parts(batch, found, full, step)
    half = _widest(p.share for p in parts.values())
    device, busy = ([getattr(r, clock)[full] for r in kept if getattr(r, clock).get(full, 0) > 0]
                    for clock in ("device_s", "busy_s"))
    busy_share = [r.busy_s[full] / r.step_s[full] for r in kept if r.busy_s.get(full, 0) > 0]
    floor = floor_seconds(inspection, ceilings, batch.batch_size)
    labels = stats.tukey([e for column in found.residual.values() for e in column])
    canaries = {name for r in batch.rounds for name in r.canary_s}
    spreads = [stats.spread_of([r.canary_s[name] for r in batch.rounds if name in r.canary_s]) for name in canaries]
    return replace(batch, derived=Derived(
        step=step, parts=parts, rounds=len(batch.rounds), clean_rounds=len(kept),
        stall=stats.stall(times[full], found.clean), half_width=half, resolution=stats.mde(half),
        samples_per_s=batch.batch_size / step.point, floor_s=floor, efficiency=floor / step.point,
        device=stats.seconds_interval(device) if device else None,
        busy=stats.seconds_interval(busy) if busy else None,
        launch_bound=1 - math.exp(stats.hodges_lehmann([math.log(s) for s in busy_share])) if busy_share else None,
        outliers={kind: labels.count(kind) for kind in ("mild", "far")},
        canary_spread=max(spreads, default=math.nan)))


def headline_half_width(batch: BatchResult) -> float:
    """The widest half-width of the ladder's shares so far, as a share of the step: what the stop rule looks at.

    Infinite while there are too few rounds, or where a rung of the ladder is missing.
    """
    full = reference_of(batch)
    rounds, times = complete_rounds(batch.rounds, [v.name for v in batch.variants], full)
    return _widest(ladder(batch, stats.levels(times), full).values()) if rounds else math.inf


def reference_of(batch: BatchResult) -> str:
    """The name of the full variant; where the record does not say, the variant with the most parts."""
    return batch.reference or max(batch.variants, key=lambda v: len(v.parts)).name if batch.variants else ""


def complete_rounds(rounds: Iterable[Round], variants: list[str], reference: str
                    ) -> tuple[list[Round], dict[str, list[float]]]:
    """The rounds that have every variant, and seconds by variant: what an estimator may be given.

    Variants that are missing from most rounds are left out (the reference never), so that one that failed does not
    take the rest with it, and so is a round that was interrupted.
    """
    rounds = [r for r in rounds if _sampled(r, reference)]
    wanted = list(dict.fromkeys([reference, *variants]))
    while True:
        whole = [r for r in rounds if all(_sampled(r, v) for v in wanted)]
        if 2 * len(whole) >= len(rounds):
            return whole, {v: [r.step_s[v] for r in whole] for v in wanted}
        wanted.remove(min(wanted[1:], key=lambda v: sum(_sampled(r, v) for r in rounds)))


def _sampled(r: Round, variant: str) -> bool:
    seconds = r.step_s.get(variant, 0)
    return seconds > 0 and math.isfinite(seconds)


def part_order(batch: BatchResult) -> list[str]:
    """The parts of the full variant in the order of the ladder, which is the order in which it names them."""
    full = reference_of(batch)
    return list(next((v.parts for v in batch.variants if v.name == full), ()))


def ladder(batch: BatchResult, found: stats.Levels, full: str) -> dict[str, Interval]:
    """Shares of the parts added in order, the base first; they sum to 1 if no rung is missing."""
    order, name = part_order(batch), _names(batch)
    rungs = [name.get(frozenset(order[:i])) for i in range(len(order) + 1)]
    shares = {BASE: stats.linear_share(found, {rungs[0]: 1}, full)}
    for part, before, after in zip(order, rungs, rungs[1:]):
        shares[part] = stats.linear_share(found, _difference(after, before), full)
    return shares


def _names(batch: BatchResult) -> dict[frozenset, str]:
    return {frozenset(v.parts): v.name for v in batch.variants}


def _difference(after: str | None, before: str | None) -> dict[str | None, float]:
    return {after: 1.0, before: -1.0}


def _parts(batch: BatchResult, found: stats.Levels, full: str, step: Interval) -> dict[str, Part]:
    order, name = part_order(batch), _names(batch)
    everything = frozenset(order)
    base = name.get(frozenset())
    shapley = shapley_shares(batch, found, full)
    rows = {}
    for part, share in ladder(batch, found, full).items():
        row = Part(share=share, seconds=stats.product(share, step), shapley=shapley.get(part))
        alone, without = name.get(frozenset([part])), name.get(everything - {part})
        if part != BASE:
            first = _known(found, _difference(alone, base), full)
            last = _known(found, _difference(full, without), full)
            row = replace(row, first=first and stats.product(first, step), last=last and stats.product(last, step))
            if first and last:
                row = _with_interaction(row, found, alone, base, without, full, step)
        rows[part] = row
    return rows


def _with_interaction(row, found, alone, base, without, full, step) -> Part:
    coefficients = dict.fromkeys((full, without, alone, base), 0.0)
    for variant, c in ((full, 1), (without, -1), (alone, -1), (base, 1)):   # some of them may be the same variant
        coefficients[variant] += c
    share = stats.linear_share(found, coefficients, full)
    excludes_zero = abs(share.point) - share.half_width > stats.NO_NOISE
    return replace(row, interaction=stats.product(share, step), depends_on_order=excludes_zero)


def _known(found: stats.Levels, coefficients: dict, full: str) -> Interval | None:
    return stats.linear_share(found, coefficients, full) if all(v in found.x for v in coefficients) else None


def shapley_shares(batch: BatchResult, found: stats.Levels, full: str) -> dict[str, Interval]:
    """Each part's cost averaged over all orders of adding it, and the base; sums to 1. Empty without all 2^p."""
    order, name = part_order(batch), _names(batch)
    n = len(order)
    if not n or len(name) < 2 ** n:
        return {}
    subsets = [frozenset(s) for k in range(n + 1) for s in combinations(order, k)]
    if any(name.get(s) not in found.x for s in subsets):
        return {}
    shares = {BASE: stats.linear_share(found, {name[frozenset()]: 1}, full)}
    for part in order:
        weights = {}
        for s in subsets:
            others = len(s - {part})
            weight = math.factorial(others) * math.factorial(n - others - 1) / math.factorial(n)
            weights[name[s]] = weight if part in s else -weight
        shares[part] = stats.linear_share(found, weights, full)
    return shares


def _widest(shares: Iterable[Interval]) -> float:
    widths = [s.half_width for s in shares]
    return max(widths) if widths and all(map(math.isfinite, widths)) else math.inf


def floor_seconds(inspection: Inspection | None, ceilings: Ceilings | None, batch_size: int) -> float:
    """The least time of a step on this machine: each layer at the ceiling that binds it (METHOD 12). 0: not known."""
    if not inspection or not inspection.layers or not ceilings:
        return 0.0
    if ceilings.flops_per_s <= 0 or ceilings.copy_bytes_per_s <= 0:
        return 0.0
    return math.fsum(layer.count * max(layer.flops * batch_size / ceilings.flops_per_s,
                                       (layer.bytes * batch_size + layer.fixed_bytes) / ceilings.copy_bytes_per_s)
                     for layer in inspection.layers)


def batch_warnings(batch: BatchResult) -> list[Warned]:
    """What the reader must know about the derived values of one batch size."""
    d, b, made = batch.derived, batch.batch_size, []
    if d is None:
        return made
    if d.efficiency > 1:
        made.append(Warned("efficiency-above-100",
                           f"batch {b}: the floor of {digits.format_seconds(d.floor_s)} is above the measured step of "
                           f"{digits.format_seconds(d.step.point)}: the clock, the FLOP count or a ceiling is wrong",
                           "Do not use this run's efficiency. Measure again on an idle machine: the ceilings may have "
                           "been taken while it was busy.", b))
    if d.device is not None and abs(d.device.point / d.step.point - 1) > CLOCKS_AGREE:
        made.append(Warned("clocks-disagree",
                           f"batch {b}: {digits.format_seconds(d.step.point)} by the host's clock, "
                           f"{digits.format_seconds(d.device.point)} by the device's: other streams, or a tail on the "
                           "host", "Shares are of the host's clock, which is what you wait for.", b))
    if d.clean_rounds < FEW_CLEAN * d.rounds:
        made.append(Warned("few-clean-rounds",
                           f"batch {b}: only {d.clean_rounds} of {d.rounds} rounds are clean: the shares are of "
                           "those alone",
                           "Something else uses the machine. Close it, or give more time with --budget.", b))
    return made


def scaling_of(batches: Iterable[BatchResult]) -> Scaling | None:
    """The fit over the batch sizes of the step and of every part; None if nothing was measured.

    Fit.growth_s counts doublings from the smallest batch measured, extra["b_min"].
    """
    derived = {b.batch_size: b.derived for b in batches if b.derived}
    if not derived:
        return None
    step = scaling.fit_step({b: d.step.point for b, d in derived.items()})
    fits = {}
    for part in dict.fromkeys(p for d in derived.values() for p in d.parts):
        f = scaling.fit_part({b: d.parts[part].seconds for b, d in derived.items() if part in d.parts})
        fits[part] = Fit(f.per_step_s, f.per_sample_s, f.growth_s, f.kind, f.words, {"b_min": f.b_min})
    return Scaling(h_s=step.h, a_s=step.a, b_s=step.b, b_half=step.b_half, knee=step.knee, parts=fits,
                   extra={"worst_error": step.worst})
