"""From scripted rounds to the breakdown: exact without noise, honest with noise, whole where pieces are missing."""

import json
import math
import random
from dataclasses import replace
from itertools import combinations

import pytest

from perfscope import record
from perfscope.measure.attribution import derive, derive_batch, floor_seconds, headline_half_width
from perfscope.record import (BASE, BatchResult, Ceilings, Derived, Inspection, Layer, Round, Run, Variant, Warned,
                              variant_name)

PARTS = ("norm", "activation", "optimizer")
COST = {"norm": 2.4e-3, "activation": 1.0e-3, "optimizer": 1.6e-3}      # on a base of 5 ms: a step of 10 ms
INTERACTION = 0.5e-3                                                    # norm and activation together save this


def true_seconds(parts, batch_size=32, interaction=0.0):
    """The scripted machine: optimizer per step, everything else per sample (scaled from batch 32)."""
    scale = batch_size / 32
    seconds = 5e-3 * scale + sum(COST[p] * (1 if p == "optimizer" else scale) for p in parts)
    return seconds - interaction * ({"norm", "activation"} <= set(parts))


def subsets(parts=PARTS):
    return [s for k in range(len(parts) + 1) for s in combinations(parts, k)]


def rungs(parts=PARTS):
    return [parts[:i] for i in range(len(parts) + 1)]


def measured(sets, rounds=12, noise=0.0, seed=1, batch_size=32, interaction=0.0, device=None, busy=None):
    """A BatchResult with raw rounds of these variants; the level of the clock changes from round to round."""
    rng, made = random.Random(seed), []
    for r in range(rounds):
        level = 1 + 0.2 * math.sin(r)
        step = {variant_name(s): true_seconds(s, batch_size, interaction) * level * math.exp(rng.gauss(0, noise))
                for s in sets}
        made.append(Round(order=tuple(step), step_s=step, canary_s={"copy": level * 1e-3},
                          device_s={v: t * device for v, t in step.items()} if device else {},
                          busy_s={v: t * busy for v, t in step.items()} if busy else {}))
    return BatchResult(batch_size, reference=variant_name(PARTS), rounds=tuple(made),
                       variants=tuple(Variant(variant_name(s), tuple(s)) for s in sets))


def test_ladder_is_exact_without_noise():
    d = derive_batch(measured(rungs())).derived
    assert list(d.parts) == [BASE, *PARTS]
    assert [p.share.point for p in d.parts.values()] == pytest.approx([0.50, 0.24, 0.10, 0.16], abs=1e-12)
    assert d.half_width < 1e-9 and d.clean_rounds == d.rounds == 12 and abs(d.stall) < 1e-12
    assert d.parts["norm"].seconds.point == pytest.approx(0.24 * d.step.point)
    assert sum(p.seconds.point for p in d.parts.values()) == pytest.approx(d.step.point, rel=1e-9)
    assert d.samples_per_s == pytest.approx(32 / d.step.point)
    assert d.step.low < d.step.point < d.step.high and d.step.point == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("noise", [0.001, 0.02, 0.2])
@pytest.mark.parametrize("rounds", [1, 2, 5, 6, 30])
def test_shares_sum_to_one_with_noise(rounds, noise):
    d = derive_batch(measured(subsets(), rounds, noise)).derived
    if d.clean_rounds:
        assert math.fsum(p.share.point for p in d.parts.values()) == pytest.approx(1, abs=1e-9)
        assert math.fsum(p.shapley.point for p in d.parts.values()) == pytest.approx(1, abs=1e-9)


def test_brackets_and_shapley_of_a_known_interaction():
    d = derive_batch(measured(subsets(), rounds=30, noise=0.003, interaction=INTERACTION)).derived
    full = true_seconds(PARTS, interaction=INTERACTION)
    norm, optimizer = d.parts["norm"], d.parts["optimizer"]
    unit = d.step.point / full                        # milliseconds belong to the clock they were measured at
    for found, truth in ((norm.first, 2.4e-3), (norm.last, 1.9e-3), (norm.interaction, -0.5e-3)):
        assert found.low <= truth * unit <= found.high and found.half_width < 0.5e-3
    assert norm.depends_on_order and d.parts["activation"].depends_on_order and not optimizer.depends_on_order
    assert norm.shapley.low <= (2.4e-3 - 0.25e-3) / full <= norm.shapley.high
    assert d.parts[BASE].first is None and d.parts[BASE].shapley.point == pytest.approx(d.parts[BASE].share.point)


def test_no_interaction_is_never_called_one_without_noise():
    d = derive_batch(measured(subsets())).derived
    assert not any(p.depends_on_order for p in d.parts.values())
    assert all(abs(p.interaction.point) < 1e-12 for name, p in d.parts.items() if name != BASE)


def test_interaction_is_rarely_called_where_there_is_none():
    called = [p.depends_on_order for seed in range(150)
              for p in derive_batch(measured(subsets(), 12, 0.01, seed)).derived.parts.values()]
    assert sum(called) / (150 * 3) < 0.10


def test_only_brackets_or_only_a_single_part():
    ladder_only = derive_batch(measured(rungs())).derived.parts
    assert ladder_only["norm"].first is not None and ladder_only["norm"].last is None    # base+norm is a rung
    assert ladder_only["optimizer"].first is None and ladder_only["optimizer"].last is not None
    assert all(p.interaction is None and p.shapley is None for p in ladder_only.values())
    sets = rungs(("norm",))
    one = derive_batch(replace(measured(sets, noise=0.01), reference=variant_name(("norm",)))).derived.parts["norm"]
    assert one.first == one.last and one.interaction.point == 0 and not one.depends_on_order
    assert one.shapley.point == pytest.approx(one.share.point)


def test_the_ladder_follows_the_order_in_which_the_full_variant_names_its_parts():
    batch = measured(rungs())
    assert list(derive_batch(batch).derived.parts) == [BASE, *batch.variants[-1].parts]
    others_shuffled = tuple(replace(v, parts=v.parts[::-1]) if v.name != batch.reference else v for v in batch.variants[::-1])
    assert derive_batch(replace(batch, variants=others_shuffled)).derived == derive_batch(batch).derived


def test_a_missing_rung_is_unknown_and_the_rest_is_not():
    batch = measured([s for s in rungs() if s != ("norm", "activation")], noise=0.01)
    parts = derive_batch(batch).derived.parts
    assert parts[BASE].share.half_width < 0.02 and parts["norm"].share.half_width < 0.02
    assert math.isnan(parts["activation"].share.point) and parts["activation"].share.high == math.inf
    assert math.isnan(parts["optimizer"].seconds.point) and headline_half_width(batch) == math.inf


def test_a_variant_that_failed_half_way_and_an_interrupted_round():
    batch = measured(rungs(), rounds=20, noise=0.01)
    gone = variant_name(("norm", "activation"))
    failed = [r if i < 5 else replace(r, step_s={v: t for v, t in r.step_s.items() if v != gone})
              for i, r in enumerate(batch.rounds)]
    d = derive_batch(replace(batch, rounds=tuple(failed))).derived
    assert d.clean_rounds == 20 and d.parts["norm"].share.half_width < 0.02
    assert d.parts["activation"].share.high == math.inf
    cut = replace(batch.rounds[0], step_s={"base": 5e-3})
    d = derive_batch(replace(batch, rounds=(*batch.rounds, cut))).derived
    assert (d.rounds, d.clean_rounds) == (21, 20) and math.isfinite(d.half_width)
    broken = replace(batch.rounds[0], step_s={**batch.rounds[0].step_s, "base": math.nan})
    assert derive_batch(replace(batch, rounds=(*batch.rounds, broken))).derived.clean_rounds == 20


def test_few_rounds_are_honest_and_none_is_none():
    three = derive_batch(measured(rungs(), 3, 0.01)).derived
    assert (three.step.low, three.step.high) == (0, math.inf)
    assert three.half_width > derive_batch(measured(rungs(), 12, 0.01)).derived.half_width
    one = derive_batch(measured(rungs(), 1)).derived
    assert one.half_width == one.resolution == math.inf and one.parts["norm"].share.point == pytest.approx(0.24)
    assert derive_batch(measured(rungs(), 0)).derived is None
    assert headline_half_width(measured(rungs(), 0)) == math.inf
    assert derive_batch(BatchResult(8, status="out-of-memory")).derived is None
    stale = replace(measured(rungs(), 0), derived=Derived(None, {}))
    assert derive_batch(stale).derived is None


def test_headline_half_width_is_what_is_derived():
    batch = measured(rungs(), 20, 0.01)
    d = derive_batch(batch).derived
    assert headline_half_width(batch) == d.half_width == max(p.share.half_width for p in d.parts.values())
    assert d.resolution == pytest.approx(1.43 * d.half_width)


def test_a_spike_shows_as_stall_and_outlier_not_in_the_shares():
    batch = measured(rungs(), 20, 0.002)
    full = batch.reference
    late = replace(batch.rounds[4], step_s={**batch.rounds[4].step_s, full: 3 * batch.rounds[4].step_s[full]})
    spiked = replace(batch, rounds=(*batch.rounds[:4], late, *batch.rounds[5:]))
    before, after = derive_batch(batch).derived, derive_batch(spiked).derived
    assert (before.clean_rounds, after.clean_rounds) == (20, 19)
    assert after.stall == pytest.approx(2 / 20, abs=0.03) and after.outliers["far"] >= 1
    assert after.parts["norm"].share.point == pytest.approx(before.parts["norm"].share.point, abs=0.002)


def test_clocks_and_launch_bound():
    run = derive(Run("r", batches=(measured(rungs(), device=0.9, busy=0.6),)))
    d = run.batches[0].derived
    assert d.launch_bound == pytest.approx(0.4) and d.device.point == pytest.approx(0.9 * d.step.point)
    assert d.busy.point == pytest.approx(0.6 * d.step.point)
    assert [w.code for w in run.warnings] == ["clocks-disagree"]
    plain = derive(Run("r", batches=(measured(rungs()),)))
    assert plain.warnings == () and plain.batches[0].derived.launch_bound is None
    assert plain.batches[0].derived.device is None


def test_canary_spread_is_of_the_worst_canary():
    batch = measured(rungs(), 21)
    steady = tuple(replace(r, canary_s={"copy": 1e-3, "matmul": 1e-3 * (1 + i / 20)})
                   for i, r in enumerate(batch.rounds))
    assert derive_batch(replace(batch, rounds=steady)).derived.canary_spread == pytest.approx(0.9 / 1.5)
    none = tuple(replace(r, canary_s={}) for r in batch.rounds)
    assert math.isnan(derive_batch(replace(batch, rounds=none)).derived.canary_spread)


LAYERS = (Layer("convolution", "forward", "", flops=1e9, bytes=1e3, count=2),           # bound by FLOPs
          Layer("addmm", "backward", "", flops=1e3, bytes=1e6, fixed_bytes=8e6))         # bound by bytes


def test_floor_by_hand():
    ceilings = Ceilings(1e12, 1e11)
    assert floor_seconds(Inspection(layers=LAYERS), ceilings, 4) == pytest.approx(2 * 4e-3 + 12e6 / 1e11)
    assert floor_seconds(None, ceilings, 4) == floor_seconds(Inspection(layers=LAYERS), None, 4) == 0
    assert floor_seconds(Inspection(), ceilings, 4) == floor_seconds(Inspection(layers=LAYERS), Ceilings(), 4) == 0


def test_efficiency_above_one_fails_loudly_and_once():
    run = Run("r", inspection=Inspection(layers=LAYERS), ceilings=Ceilings(1e14, 1e13), batches=(measured(rungs()),),
              warnings=(Warned("throttled", "kept"),))
    good = derive(run)
    assert good.batches[0].derived.efficiency == pytest.approx(
        good.batches[0].derived.floor_s / good.batches[0].derived.step.point)
    assert [w.code for w in good.warnings] == ["throttled"]
    bad = derive(derive(replace(run, ceilings=Ceilings(1e12, 1e11))))
    assert [w.code for w in bad.warnings] == ["throttled", "efficiency-above-100"]
    assert bad.warnings[1].batch_size == 32 and "floor" in bad.warnings[1].text


def test_few_clean_rounds_are_said():
    batch = measured(rungs(), 20, 0.001)
    wild = tuple(replace(r, step_s={**r.step_s, v: 1.5 * r.step_s[v]}) if i % 5 < 3 else r
                 for i, r in enumerate(batch.rounds) for v in [variant_name(rungs()[i % 4])])
    run = derive(Run("r", batches=(replace(batch, rounds=wild),)))
    assert [w.code for w in run.warnings] == ["few-clean-rounds"]


def test_scaling_says_how_each_part_grows():
    run = derive(Run("r", batches=tuple(measured(rungs(), 20, 0.002, b, b) for b in (16, 32, 64, 128))))
    kinds = {name: fit.kind for name, fit in run.scaling.parts.items()}
    assert kinds == {"base": "per sample", "norm": "per sample", "activation": "per sample", "optimizer": "per step"}
    assert run.scaling.parts["optimizer"].per_step_s == pytest.approx(1.6e-3, rel=0.1)
    assert run.scaling.a_s == pytest.approx(1.6e-3, rel=0.2) and run.scaling.b_s == pytest.approx(8.4e-3 / 32, rel=0.05)
    assert run.scaling.knee == 64                            # 96 % of the throughput at 128
    assert run.scaling.parts["norm"].extra == {"b_min": 16}
    assert derive(Run("r", batches=(BatchResult(8, status="out-of-memory"),))).scaling is None


def test_derived_is_rebuilt_alike_from_a_saved_record(tmp_path):
    run = derive(Run("r", batches=(measured(subsets(), 12, 0.01), measured(rungs(), 2, 0.01, batch_size=64),
                                   BatchResult(128, status="out-of-memory"))))
    run.save(tmp_path)
    loaded = record.load(tmp_path)
    bare = replace(loaded, scaling=None, batches=tuple(replace(b, derived=None) for b in loaded.batches))
    text = [json.dumps(record.to_dict(r), sort_keys=True) for r in (run, derive(bare), derive(loaded))]
    assert text[0] == text[1] == text[2]


def test_two_hundred_rounds_of_sixteen_variants_derive_quickly():
    import time

    parts = (*PARTS, "data")
    COST["data"] = 1e-3
    try:
        batch = replace(measured(subsets(parts), 200, 0.01), reference=variant_name(parts))
    finally:
        del COST["data"]
    started = time.process_time()
    d = derive_batch(batch).derived
    assert time.process_time() - started < 1.5 and d.parts["data"].shapley is not None
