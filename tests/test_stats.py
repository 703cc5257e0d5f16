"""The statistics against known truth: published tables, exact cases, and METHOD 15's V0 on synthetic arrays."""

import ast
import importlib.util
import math
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfscope.measure import digits, scaling, stats
from perfscope.measure.stats import Interval

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("accuracy_benchmark", ROOT / "benchmarks" / "accuracy.py")
accuracy = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = accuracy
_spec.loader.exec_module(accuracy)

seconds = st.floats(1e-6, 1e3)
#: Myrtle's table (REFERENCES section 1): seconds per epoch of 50 000 images, at batch 128, 256, 512, 1024.
ARTICLE = {"conv": (5.05, 4.37, 4.02, 3.76), "batchnorm": (2.42, 2.46, 2.55, 2.61), "relu": (0.40, 0.38, 0.36, 0.35),
           "optimizer": (0.27, 0.13, 0.07, 0.04), "dataloader": (0.14, 0.13, 0.14, 0.15),
           "fixed": (1.10, 0.89, 0.70, 0.62), "total": (8.28, 7.47, 7.14, 6.91)}
BATCHES = (128, 256, 512, 1024)


def article(row, half_width=0.01):
    """{batch: seconds per step} of a row, with the half-width of reading a chart."""
    return {b: Interval(s, s - half_width, s + half_width).scaled(b / 50_000) for b, s in zip(BATCHES, ARTICLE[row])}


# ---------------------------------------------------------------- V0

@pytest.mark.parametrize("machine", accuracy.MACHINES)
@pytest.mark.parametrize("rounds", accuracy.SIZES)
def test_v0_ratio_coverage_and_false_alarms(rounds, machine):
    trials = 1500                               # a rate of 95 % has a standard error of 0.6 %
    pairs = accuracy.ratio_trials(trials, rounds, 0.02, **accuracy.MACHINES[machine])
    assert 0.93 <= accuracy.covered((i, 0.02) for i in pairs) / trials <= 0.97
    same = accuracy.ratio_trials(trials, rounds, 0.0, **accuracy.MACHINES[machine])
    assert accuracy.alarms(same) / trials <= 0.07


@pytest.mark.parametrize("machine", accuracy.MACHINES)
@pytest.mark.parametrize("rounds", accuracy.SIZES)
def test_v0_share_coverage(rounds, machine):
    pairs = accuracy.share_trials(300, rounds, **accuracy.MACHINES[machine])
    assert 0.93 <= accuracy.covered(pairs) / len(pairs) <= 0.97


@pytest.mark.parametrize("variants", [2, 3, 4, 9])
def test_v0_share_coverage_whatever_the_number_of_variants(variants):
    cost = {f"v{i}": 5e-3 * (1 + i / variants) for i in range(variants)}
    pairs = accuracy.share_trials(1600 // variants, 20, cost)
    assert 0.925 <= accuracy.covered(pairs) / len(pairs) <= 0.975


def test_the_naive_design_raises_false_alarms_where_paired_rounds_do_not():
    naive = accuracy.ratio_trials(300, 20, 0.0, naive=True, spikes=False)
    paired = accuracy.ratio_trials(300, 20, 0.0, spikes=False)
    assert accuracy.alarms(naive) / 300 > 0.4 > 0.1 > accuracy.alarms(paired) / 300


def test_the_benchmark_prints_its_rates_and_fails_on_a_missed_bound(monkeypatch, capsys):
    def level(trials):
        """Two rates."""
        yield accuracy.Rate("good", trials, trials, 0.9, 1.0)
        yield accuracy.Rate("bad", 1, trials, 0.9, 1.0)
    monkeypatch.setattr(accuracy, "LEVELS", {"V9": level})
    assert accuracy.main(["V9", "--trials", "20"]) == 1
    out = capsys.readouterr().out
    assert out.count("MISSED") == 1 and "5.0% [  0.9%, 23.6%]" in out and "1 out of bounds" in out


# ---------------------------------------------------------------- quantiles and intervals

@pytest.mark.parametrize("df, value", [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262),
                                       (10, 2.228), (29, 2.045), (30, 2.042), (120, 1.980), (1000, 1.962)])
def test_t_quantile_against_the_table(df, value):
    assert stats.t_quantile(0.975, df) == pytest.approx(value, abs=6e-4)


def test_t_quantile_other_levels_and_its_normal_limit():
    assert stats.t_quantile(0.95, 7) == pytest.approx(1.8946, abs=1e-4)
    assert stats.t_quantile(0.995, 12) == pytest.approx(3.0545, abs=1e-4)
    assert stats.t_quantile(0.975, 2001) == pytest.approx(stats.t_quantile(0.975, 2000), abs=1e-5)


def test_t_interval_by_hand():
    found = stats.t_interval([1.0, 2.0, 3.0])           # sd 1, t = 4.3027
    assert (found.point, found.half_width) == (2.0, pytest.approx(4.302653 / math.sqrt(3), abs=1e-5))
    assert stats.t_interval([1.0]).high == math.inf and math.isnan(stats.t_interval([]).point)


@pytest.mark.parametrize("k, n, low, high", [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0),
                                             (1, 20, 0.0089, 0.2361), (95, 100, 0.8882, 0.9785)])
def test_wilson_against_published_values(k, n, low, high):
    found = stats.wilson(k, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_wilson_of_nothing():
    assert (stats.wilson(0, 0).low, stats.wilson(0, 0).high) == (0.0, 1.0)


def test_interval_scaled_and_product():
    assert Interval(1, 0, 3, {"n": 2}).scaled(-2) == Interval(-2, -6, 0, {"n": 2})
    found = stats.product(Interval(0.5, 0.4, 0.6), Interval(2.0, 1.9, 2.1))
    assert (found.point, found.half_width) == (1.0, pytest.approx(math.hypot(0.2, 0.05)))
    assert stats.product(Interval(0.5, 0.4, 0.6), stats.unknown(2.0)).high == math.inf


# ---------------------------------------------------------------- signed ranks

#: Two-sided 5 % critical values of the signed-rank sum (Wilcoxon & Wilcox 1964, and most textbooks).
CRITICAL = {6: 0, 7: 2, 8: 3, 9: 5, 10: 8, 11: 10, 12: 13, 13: 17, 14: 21, 15: 25, 16: 29, 17: 34, 18: 40, 19: 46,
            20: 52, 21: 58, 22: 65, 23: 73, 24: 81, 25: 89, 26: 98, 27: 107, 28: 116, 29: 126, 30: 137}


def test_signed_rank_cut_against_the_published_table():
    assert {n: stats.signed_rank_cut(n) - 1 for n in CRITICAL} == CRITICAL
    assert all(stats.signed_rank_cut(n) == 0 for n in range(1, 6))


def test_signed_rank_counts_are_exact():
    assert stats.signed_rank_counts(4) == (1, 1, 1, 2, 2, 2, 2, 2, 1, 1, 1)
    assert sum(stats.signed_rank_counts(30)) == 2 ** 30


def test_normal_approximation_agrees_with_counting(monkeypatch):
    approximate = {n: stats.signed_rank_cut.__wrapped__(n) for n in (31, 40, 50)}
    monkeypatch.setattr(stats, "EXACT_N", 50)
    for n, cut in approximate.items():
        assert abs(cut - stats.signed_rank_cut.__wrapped__(n)) <= 1


def test_signed_rank_interval_by_hand():
    found = stats.signed_rank_interval([1, 2, 3, 4, 5, 6])           # cut 1: the extreme pair means
    assert (found.point, found.low, found.high) == (3.5, 1, 6)
    assert stats.signed_rank_interval([1, 2, 3, 4, 5]) == Interval(3, -math.inf, math.inf)
    assert math.isnan(stats.signed_rank_interval([]).point)


@given(st.lists(st.floats(-10, 10), min_size=6, max_size=40), st.floats(-5, 5))
@settings(max_examples=60, deadline=None)
def test_signed_rank_interval_moves_with_the_data(d, shift):
    one, two = stats.signed_rank_interval(d), stats.signed_rank_interval([x + shift for x in d])
    assert min(d) <= one.low <= one.point <= one.high <= max(d)
    assert (two.point, two.low, two.high) == pytest.approx((one.point + shift, one.low + shift, one.high + shift))


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_log_ratio_changes_sign_when_the_variants_swap(pairs):
    a, b = zip(*pairs)
    one, two = stats.log_ratio(a, b), stats.log_ratio(b, a)
    assert (one.point, one.low, one.high) == pytest.approx((-two.point, -two.high, -two.low), abs=1e-9)


def test_log_ratio_sees_through_any_common_drift():
    a = [1.0, 7.0, 0.2, 3.0, 90.0, 5.0, 2.0]
    assert stats.log_ratio(a, [1.02 * x for x in a]).half_width == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="not paired"):
        stats.log_ratio(a, a[1:])


def test_log_ratio_of_two_runs():
    found = stats.log_ratio_of(Interval(1.0, 0.97, 1.03), Interval(2.0, 1.92, 2.08))
    assert (found.point, found.half_width) == (pytest.approx(math.log(2)), pytest.approx(0.05))
    assert stats.log_ratio_of(Interval(0, 0, 0), Interval(1, 1, 1)).high == math.inf


def test_over_processes_takes_the_process_as_the_unit():
    narrow = [Interval(x, x - 1e-6, x + 1e-6) for x in (0.01, 0.02, 0.03)]
    three = stats.over_processes(narrow)
    assert three.half_width == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-4)
    assert three.extra == {"processes": 3} and stats.over_processes([0.01, 0.02, 0.03]) == three
    assert stats.over_processes(narrow[:1]).half_width == pytest.approx(1e-6)
    assert stats.over_processes(narrow[:2]).half_width == pytest.approx(12.706 * 0.005, rel=1e-3)


# ---------------------------------------------------------------- shares

def ladder_shares(times):
    rungs = list(times)
    found = stats.levels(times)
    return [stats.linear_share(found, {rungs[0]: 1}, rungs[-1]),
            *(stats.linear_share(found, {b: 1, a: -1}, rungs[-1]) for a, b in zip(rungs, rungs[1:]))]


def test_shares_are_exact_without_noise_whatever_the_clock_does():
    clock = [1.0, 1.3, 0.8, 1.1, 2.0, 1.7, 1.01, 0.99]
    shares = ladder_shares({v: [cost * c for c in clock] for v, cost in accuracy.STEP.items()})
    assert [s.point for s in shares] == pytest.approx([0.50, 0.24, 0.10, 0.12, 0.04], abs=1e-12)
    assert max(s.half_width for s in shares) < 1e-12


@given(st.integers(2, 9).flatmap(lambda v: st.lists(st.lists(st.floats(1e-4, 1.0), min_size=v, max_size=v),
                                                    min_size=1, max_size=25)))
@settings(max_examples=80, deadline=None)
def test_shares_sum_to_one_on_any_samples(rows):
    times = {f"v{i}": list(column) for i, column in enumerate(zip(*rows))}
    shares = ladder_shares(times)
    if stats.levels(times).clean:
        assert math.fsum(s.point for s in shares) == pytest.approx(1, abs=1e-9)
        assert all(s.low <= s.point <= s.high for s in shares)
    else:
        assert all(s.high == math.inf for s in shares)


def test_a_spike_makes_its_round_unclean_and_leaves_the_shares_alone():
    clock = accuracy.Clock(accuracy.random.Random(3), 100, drift=True, spikes=False)
    times = accuracy.interleaved(clock, accuracy.STEP, 20)
    before = ladder_shares(times)
    times["+norm"][7] *= 1.5
    found = stats.levels(times)
    assert found.clean == [r for r in range(20) if r != 7]
    after = ladder_shares(times)
    assert all(abs(a.point - b.point) < b.half_width for a, b in zip(after, before))
    assert stats.stall(times["+norm"], found.clean) == pytest.approx(0.5 / 20, abs=0.004)


def test_the_interval_of_a_share_by_hand():
    # A level of 1 throughout: X = T. Shares 0.4 and 0.6 in turn, u = -0.1, 0.1, ..., sd 0.1 sqrt(6/5), t(5) = 2.5706.
    found = stats.Levels([0.0] * 6, {}, {}, list(range(6)), {"a": [0.4, 0.6] * 3, "full": [1.0] * 6})
    share = stats.linear_share(found, {"a": 1}, "full")
    assert (share.point, share.half_width) == (0.5, pytest.approx(2.5706 * 0.1 / math.sqrt(5), rel=1e-4))


def test_a_noisy_variant_does_not_make_every_round_unclean():
    rng = accuracy.random.Random(4)
    times = {v: [c * math.exp(rng.gauss(0, 0.1 if v == "base" else 0.01)) for _ in range(40)]
             for v, c in accuracy.STEP.items()}
    assert len(stats.levels(times).clean) >= 37


def test_two_hundred_rounds_of_sixteen_variants_are_quick():
    clock = accuracy.Clock(accuracy.random.Random(5), 3200)
    times = accuracy.interleaved(clock, {f"v{i}": 1e-2 for i in range(16)}, 200)
    started = time.process_time()
    ladder_shares(times)
    stats.seconds_interval(times["v15"])
    assert time.process_time() - started < 1.0


def test_a_missing_variant_or_no_round_is_unknown():
    assert stats.linear_share({"a": [1.0, 1.0]}, {"b": 1}, "a").high == math.inf
    assert math.isnan(stats.linear_share({"a": []}, {"a": 1}, "a").point)
    one = stats.linear_share({"a": [1.0], "b": [2.0]}, {"a": 1}, "b")
    assert (one.point, one.high) == (0.5, math.inf)
    assert math.isnan(stats.stall([1.0], []))


# ---------------------------------------------------------------- spread, drift, warm-up

def test_tukey_labels():
    values = [10, 11, 12, 13, 14, 15, 16, 17, 18]                  # quartiles 12 and 16: fences 6, 22 and 0, 28
    assert stats.tukey(values) == [""] * 9
    quartiles = [*values, 12, 16]
    assert stats.tukey([*quartiles, 24])[-1] == "mild" and stats.tukey([*quartiles, 60])[-1] == "far"


def test_mann_kendall_by_hand_and_with_ties():
    assert stats.mann_kendall([1, 2, 3, 4, 5]) == pytest.approx(9 / math.sqrt(5 * 4 * 15 / 18))
    assert stats.mann_kendall([5, 4, 3, 2, 1]) == pytest.approx(-9 / math.sqrt(5 * 4 * 15 / 18))
    tied = (5 * 4 * 15 - 2 * 1 * 9 - 3 * 2 * 11) / 18              # a pair and a triple
    assert stats.mann_kendall([1, 1, 2, 2, 2]) == pytest.approx(5 / math.sqrt(tied))
    assert stats.mann_kendall([3, 3, 3]) == 0 and stats.mann_kendall([]) == 0


def test_mann_kendall_stays_within_three_sigma_on_noise():
    rng = accuracy.random.Random(6)
    z = [stats.mann_kendall([rng.gauss(0, 1) for _ in range(30)]) for _ in range(400)]
    assert sum(abs(x) > 3 for x in z) <= 6 and sum(abs(x) > 1.96 for x in z) == pytest.approx(20, abs=14)


def test_settled_drops_exactly_the_slow_start():
    assert stats.settled([1.0] * 20) == 0
    assert stats.settled([1.0] * 19) is None
    assert stats.settled([2.0] * 10 + [1.0] * 20) == 6             # from here the first window's median is 1
    assert stats.settled([1.01 ** i for i in range(60)]) is None


def test_quantile_and_spread():
    assert stats.quantile([4, 1, 3, 2], 0.5) == 2.5 and stats.quantile([7], 0.9) == 7
    assert stats.spread_of([1.0] * 50) == 0 and math.isnan(stats.spread_of([]))
    assert stats.spread_of([float(x) for x in range(101)]) == pytest.approx(90 / 50)


# ---------------------------------------------------------------- the stop rule

def test_stop_rule_as_scripted():
    stop = stats.should_stop
    assert stop([0.004], 20, 1, 60) == "precision"
    assert stop([0.004], 19, 1, 60) is None and stop([0.004], 25, 1, 60) is None           # not a look
    assert stop([0.02], 20, 60, 60) == "budget" and stop([], 3, 61, 60) == "budget"
    assert stop([0.02], 20, 1e9, None) is None
    assert stop([0.02] * 19, 200, 1, None) == "rounds"
    assert stop([0.0100, 0.0099, 0.0098, 0.0096], 50, 1, 60) == "stalled"
    assert stop([0.0100, 0.0099, 0.0098, 0.0094], 50, 1, 60) is None
    assert stop([0.0100, 0.0100, 0.0100], 40, 1, 60) is None                               # not 30 rounds yet
    assert stop([math.inf], 20, 1, 60) is None
    assert stop([0.0009], 20, 1, 60, target=0.001) == "precision"


def test_ideal_noise_never_stalls_before_its_precision():
    history = []
    for rounds in range(20, 200, 10):
        history.append(0.05 / math.sqrt(rounds))
        assert stats.should_stop(history, rounds, 1, None) in (None, "precision")


# ---------------------------------------------------------------- verdicts

@pytest.mark.parametrize("low, high, word", [(-0.03, -0.01, "FASTER"), (0.01, 0.03, "SLOWER"),
                                             (-0.004, 0.006, "SAME"), (0.001, 0.009, "SAME"), (-0.03, 0.005, "UNCLEAR"),
                                             (-0.002, 0.014, "UNCLEAR"), (-0.2, 0.3, "UNCLEAR")])
def test_verdict_words(low, high, word):
    assert stats.verdict(Interval((low + high) / 2, low, high), 20).word == word


def test_an_unclear_verdict_says_how_many_rounds_would_settle_it():
    chance = stats.verdict(Interval(0.02, -0.02, 0.06), 10)
    assert "holds 0" in chance.reason and chance.rounds_to_settle == 40    # half the width: four times the rounds
    small = stats.verdict(Interval(0.0, -0.02, 0.02), 10)
    assert "neither ruled out nor shown" in small.reason and small.rounds_to_settle == 40
    few = stats.verdict(stats.unknown(0.1), 3)
    assert (few.word, few.rounds_to_settle) == ("UNCLEAR", 6) and "3" in few.reason
    assert stats.verdict(Interval(0.0099999, -0.02, 0.04), 10).rounds_to_settle is None


@given(st.floats(-0.2, 0.2), st.floats(0, 0.2), st.floats(0, 0.2), st.integers(6, 200))
@settings(max_examples=200, deadline=None)
def test_verdicts_mirror_and_exclude_each_other(point, below, above, rounds):
    one = stats.verdict(Interval(point, point - below, point + above), rounds)
    two = stats.verdict(Interval(-point, -point - above, -point + below), rounds)
    assert {"FASTER": "SLOWER", "SLOWER": "FASTER"}.get(one.word, one.word) == two.word
    if one.word == "UNCLEAR":
        assert one.rounds_to_settle is None or one.rounds_to_settle > rounds


def test_holm_by_hand_and_in_a_verdict():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == [] and stats.holm([0.6, 0.9]) == [1.0, 1.0]
    change = Interval(-0.02, -0.039, -0.001)
    p = stats.p_value(change)
    assert 0.03 < p < 0.05 and stats.verdict(change, 20).word == "FASTER"
    among = stats.verdict(change, 20, adjusted_p=stats.holm([p] * 10)[0])
    assert among.word == "UNCLEAR" and "comparisons" in among.reason and among.rounds_to_settle > 20


def test_p_value_is_five_per_cent_at_the_edge():
    assert stats.p_value(Interval(1.0, 0.0, 2.0)) == pytest.approx(0.05)
    assert stats.p_value(stats.unknown(1.0)) == 1 and stats.p_value(Interval(0.0, -1, 1)) == 1


def test_mde_finds_eight_in_ten():
    widths = [i.half_width for i in accuracy.ratio_trials(50, 40, 0.0, drift=False, spikes=False)]
    change = stats.mde(sum(widths) / len(widths))
    found = accuracy.alarms(accuracy.ratio_trials(600, 40, change, drift=False, spikes=False)) / 600
    assert 0.72 <= found <= 0.88


# ---------------------------------------------------------------- scaling

@pytest.mark.parametrize("row, kinds", [("optimizer", {"per step"}), ("dataloader", {"per sample"}),
                                        ("batchnorm", {"grows"}), ("fixed", {"mixed", "per step"}),
                                        ("conv", {"mixed"}), ("relu", {"mixed", "per sample"})])
@pytest.mark.parametrize("half_width", [0.0, 0.005, 0.01, 0.02])
def test_fit_part_reads_the_article_as_its_author_did(row, kinds, half_width):
    assert scaling.fit_part(article(row, half_width)).kind in kinds


def test_fit_part_recovers_planted_costs():
    per_step = scaling.fit_part({b: 2e-3 for b in (8, 16, 32)})
    assert (per_step.kind, per_step.per_step_s) == ("per step", pytest.approx(2e-3))
    flat = scaling.fit_part({b: 3e-6 * b for b in (8, 16, 32)})
    assert (flat.kind, flat.per_sample_s) == ("per sample", pytest.approx(3e-6))
    both = scaling.fit_part({b: 1e-3 + 5e-5 * b for b in (8, 16, 32, 64)})
    assert (both.kind, both.per_step_s, both.per_sample_s) == ("mixed", pytest.approx(1e-3), pytest.approx(5e-5))
    grows = scaling.fit_part({b: b * (5e-5 + 5e-6 * math.log2(b / 8)) for b in (8, 16, 32, 64)})
    assert (grows.kind, grows.growth_s) == ("grows", pytest.approx(5e-6))
    assert "9.1 %" in grows.words                                       # 50 to 65 in three doublings


def test_fit_part_with_little_to_go_on():
    assert scaling.fit_part({8: 1e-3, 16: 1e-3}).kind == "too few points"
    assert scaling.fit_part({}).kind == "too few points"
    noise = {b: Interval(1e-5, -1e-3, 1e-3) for b in (8, 16, 32)}       # a part of no cost
    assert scaling.fit_part(noise).kind == "too few points" and "uncertain" in scaling.fit_part(noise).words
    unknown = {b: stats.unknown(1e-3) for b in (8, 16, 32)}
    assert scaling.fit_part(unknown).kind == "too few points"
    assert scaling.fit_part({b: -1e-6 * b for b in (8, 16, 32)}).kind == "too few points"


def test_fit_part_does_not_see_growth_in_noise():
    rng = accuracy.random.Random(8)
    kinds = [scaling.fit_part({b: 1e-5 * b * (1 + rng.gauss(0, 0.01)) for b in (4, 8, 16)}).kind for _ in range(300)]
    assert kinds.count("grows") <= 20 and kinds.count("per sample") >= 240


def test_fit_step_recovers_line_launch_floor_and_knee():
    line = scaling.fit_step({b: 2e-3 + 1e-5 * b for b in BATCHES})
    assert (line.h, line.a, line.b) == (0, pytest.approx(2e-3), pytest.approx(1e-5))
    assert line.b_half == pytest.approx(200) and line.worst < 1e-9
    floor = scaling.fit_step({b: max(1e-2, 1e-3 + 1e-4 * b) for b in (8, 16, 32, 64, 128, 256)})
    assert (floor.h, floor.a, floor.b) == (pytest.approx(1e-2), pytest.approx(1e-3), pytest.approx(1e-4))
    assert scaling.fit_step({b: 1e-4 * b for b in BATCHES}).knee == 128    # throughput is the same everywhere
    one = scaling.fit_step({8: 1e-2})
    assert one.knee is None and math.isnan(one.a) and scaling.fit_step({}).knee is None
    assert scaling.fit_step({8: 1e-2, 16: math.nan, 32: 4e-2}).knee == 8


def test_fit_step_finds_the_launch_floor_through_noise_and_none_where_there_is_none():
    rng = accuracy.random.Random(9)
    true = {b: max(1e-2, 1e-3 + 1e-4 * b) for b in (8, 16, 32, 64, 128, 256, 512)}
    fits = [scaling.fit_step({b: t * (1 + rng.gauss(0, 0.005)) for b, t in true.items()}) for _ in range(50)]
    assert all(f.h == pytest.approx(1e-2, rel=0.02) and f.b == pytest.approx(1e-4, rel=0.05) for f in fits)
    line = {b: 1e-3 + 1e-4 * b for b in (8, 16, 32, 64)}
    assert not any(scaling.fit_step({b: t * (1 + rng.gauss(0, 0.005)) for b, t in line.items()}).h for _ in range(50))


def test_fit_step_of_the_article():
    fit = scaling.fit_step({b: p.point for b, p in article("total").items()})
    assert fit.worst < 0.01 and fit.h == 0 and fit.knee == 512
    assert fit.b * 50_000 == pytest.approx(6.7, abs=0.1)                 # seconds per epoch for a batch without end


# ---------------------------------------------------------------- digits

@pytest.mark.parametrize("interval, bare, full", [
    (Interval(0.24, 0.2398, 0.2402), "24.0 %", "24.0 ±0.1 %"),
    (Interval(0.614, 0.612, 0.616), "61.4 %", "61.4 ±0.2 %"),
    (Interval(0.614, 0.594, 0.634), "61 %", "61 ±2 %"), (Interval(0.24, 0.1, 0.38), "24 ±14 %", "24 ±14 %"),
    (Interval(-0.0003, -0.004, 0.004), "0.0 %", "0.0 ±0.4 %"), (stats.unknown(0.243), "~24 %", "~24 %"),
    (stats.unknown(), "-", "-")])
def test_format_share(interval, bare, full):
    assert (digits.format_share(interval), digits.format_share(interval, error=True)) == (bare, full)


@pytest.mark.parametrize("interval, bare, full", [
    (Interval(3.214e-3, 3.212e-3, 3.216e-3), "3.214", "3.214 ±0.002"),
    (Interval(8.93e-3, 8.91e-3, 8.95e-3), "8.93", "8.93 ±0.02"),
    (Interval(1.6634, 1.6434, 1.6834), "1660", "1660 ±20"), (Interval(0.2334, 0.2323, 0.2345), "233", "233 ±2"),
    (stats.unknown(1.666), "~1700", "~1700"), (stats.unknown(), "-", "-")])
def test_format_ms(interval, bare, full):
    assert (digits.format_ms(interval), digits.format_ms(interval, error=True)) == (bare, full)


@given(st.floats(-0.5, 1.5), st.one_of(st.floats(0, 1), st.just(math.inf)))
@settings(max_examples=300, deadline=None)
def test_formatted_shares_fit_their_column_and_tell_no_lie(point, half):
    interval = Interval(point, point - half, point + half)
    bare, full = digits.format_share(interval), digits.format_share(interval, error=True)
    assert len(bare) <= 12 and len(full) <= 13 and not bare.startswith("-0 ") and not bare.startswith("-0.0 ")
    if math.isfinite(half) and "±" in full:
        shown, error = (float(x) / 100 for x in full.rstrip(" %").split(" ±"))
        assert abs(shown - point) <= max(half, 0.0005) + 1e-9 and error >= half - 1e-9


def test_format_change_and_seconds():
    assert [digits.format_change(x) for x in (0.0004, 0.0043, 0.0123, 0.117, math.nan)] == \
        ["0.04 %", "0.5 %", "1.3 %", "12 %", "-"]
    assert [digits.format_seconds(x) for x in (1.234, 0.0123, 8.4e-4, 1.7e-8, math.nan)] == \
        ["1.23 s", "12.3 ms", "840 us", "17.0 ns", "-"]


def test_only_the_standard_library_is_imported():
    tree = ast.parse((ROOT / "perfscope" / "measure" / "stats.py").read_text())
    names = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert {n.split(".")[0] for n in names} <= sys.stdlib_module_names
