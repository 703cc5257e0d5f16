"""Statistics of N runs against tables, by hand, and by simulation with the truth known."""

import math
import random
from statistics import fmean

import pytest

from perfscope.measure import runs, stats


def test_t_tail_against_tables():
    """Student's t: P(T > 2.015) with 5 degrees of freedom is 0.05, and so on (Abramowitz & Stegun, table 26.10)."""
    for df, t, p in ((5, 2.015, 0.05), (10, 2.764, 0.01), (39, 2.426, 0.01), (1, 6.314, 0.05), (120, 2.358, 0.01)):
        assert stats.t_above(t, df) == pytest.approx(p, rel=2e-3)
        assert stats.t_above(-t, df) == pytest.approx(1 - p, rel=2e-3)
    assert stats.t_above(0.0, 7) == 0.5 and stats.t_above(math.inf, 3) == 0.0 and stats.t_above(-math.inf, 3) == 1.0
    assert math.isnan(stats.t_above(math.nan, 3))
    for df in (2, 9, 1999, 5000):
        assert stats.t_above(stats.t_quantile(0.99, df), df) == pytest.approx(0.01, rel=1e-3)


def test_one_sided_p_by_hand():
    values = [0.991, 0.990, 0.992, 0.991]           # mean 0.991, s = 0.000816, t = 0.001 / (s / 2) = 2.449
    assert runs.p_above(values, 0.990) == pytest.approx(stats.t_above(2.4495, 3), rel=1e-3)
    assert runs.p_above([0.99] * 5, 0.98) == 0.0 and runs.p_above([0.99] * 5, 0.99) == 1.0
    assert math.isnan(runs.p_above([0.99], 0.98))


def test_a_true_mean_at_the_target_is_certified_as_often_as_alpha_says():
    rng = random.Random(0)
    found = sum(runs.p_above([rng.gauss(0.99, 0.001) for _ in range(20)], 0.99) < 0.01 for _ in range(4000))
    assert 20 <= found <= 62                        # 40 expected, +- 3.5 standard deviations


@pytest.mark.parametrize("margin, published", [(0.02, 229), (0.05, 37), (0.1, 10)])
def test_how_many_runs_agrees_with_the_published_numbers(margin, published):
    """REFERENCES section 3, at its sd of 0.13 points: with the t quantile in place of the normal one a few more."""
    assert published <= runs.runs_for(margin, 0.13, 0.99) <= published + 6
    assert runs.runs_for(0.0, 0.13, 0.99) is None and runs.runs_for(-1, 0.1, 0.99) is None and runs.runs_for(1e-9, 1.0, 0.99) is None


def test_runs_for_is_the_least_that_is_enough():
    for margin, spread in ((0.05, 0.13), (0.3, 0.1), (1.0, 0.01)):
        n = runs.runs_for(margin, spread, 0.99)
        enough = lambda n: margin * math.sqrt(n) > spread * stats.t_quantile(0.99, n - 1)  # noqa: E731
        assert enough(n) and (n == 2 or not enough(n - 1))


def test_more_runs_are_promised_only_where_they_help():
    assert runs.runs_to_certify([0.989, 0.9895], 0.99) is None and runs.runs_to_certify([0.99], 0.98) is None
    assert runs.runs_to_certify([0.9905, 0.9915, 0.991, 0.9902], 0.99) > 4


def test_median_interval_by_hand():
    found = runs.median_interval([5, 1, 4, 2, 3, 6])            # n = 6: 2 (1/2)^6 = 3.1 % outside the extremes
    assert (found.point, found.low, found.high) == (3.5, 1, 6)
    assert math.isinf(runs.median_interval([1, 2, 3, 4, 5]).high) and math.isnan(runs.median_interval([]).point)
    ten = runs.median_interval(range(1, 11))                    # the textbook's 2nd and 9th of 10: coverage 97.9 %
    assert (ten.low, ten.high) == (2, 9)


def test_median_interval_covers():
    rng = random.Random(1)
    hit = 0
    for _ in range(1500):
        found = runs.median_interval([rng.expovariate(1.0) for _ in range(25)])
        hit += found.low <= math.log(2) <= found.high
    assert 0.94 <= hit / 1500 <= 0.98                           # conservative: 95.7 % by its own count


def test_time_for_a_pass_rate():
    assert runs.time_for_pass_rate(2.0, 0.95) == 2.0 and runs.time_for_pass_rate(2.0, 1.0) == 2.0
    assert runs.time_for_pass_rate(2.0, 0.5) == pytest.approx(2 * math.log(0.05) / math.log(0.5))     # 4.3 runs
    assert runs.time_for_pass_rate(2.0, 0.0) == math.inf


def test_non_inferiority_by_hand():
    before = [0.990, 0.991, 0.989, 0.990, 0.990]
    same, held, _ = runs.non_inferior(before, [b + 0.0001 for b in before], 0.001)
    assert held and same.point == pytest.approx(0.0001)
    assert runs.non_inferior(before, [b - 0.005 for b in before], 0.001)[1] is False
    unclear, held, settle = runs.non_inferior(before, [0.991, 0.989, 0.990, 0.988, 0.992], 0.001)
    assert held is None and settle > 5 and unclear.low < -0.001 < unclear.high
    with pytest.raises(ValueError, match="not paired"):
        runs.non_inferior([0.9], [0.9, 0.9], 0.001)


def test_a_worse_network_is_not_let_through_more_often_than_it_says():
    rng, passed = random.Random(2), 0
    for _ in range(800):
        before = [rng.gauss(0.99, 0.0005) for _ in range(6)]
        after = [b + rng.gauss(-0.001, 0.0007) for b in before]       # exactly as bad as the margin
        passed += runs.non_inferior(before, after, 0.001)[1] is True
    assert passed / 800 <= 0.04                                      # one-sided 2.5 %


def test_time_change_uses_ranks_where_they_exist():
    rng = random.Random(3)
    before = [4 * rng.uniform(0.98, 1.02) for _ in range(8)]
    after = [t / 2 for t in before]
    found = runs.time_change(before, after)
    assert found.point == pytest.approx(-math.log(2)) and found.extra["by"] == "signed ranks"
    few = runs.time_change(before[:5], [t / 2 * rng.uniform(0.99, 1.01) for t in before[:5]])
    assert few.extra["by"] == "t" and few.low < -math.log(2) < few.high and math.isfinite(few.half_width)
    assert runs.runs_to_settle([0.0, 0.0], [0.0, 0.0]) is None and fmean(before) > 0
