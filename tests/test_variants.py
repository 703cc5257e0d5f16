"""Which variants are timed: the ladder, the brackets around it, all subsets; and which of them the budget allows."""

import pytest

from perfscope import variants
from perfscope.errors import UsageError
from perfscope.record import PARTS

ORDER = ("norm", "activation", "optimizer")


def test_parts_come_in_the_usual_order_unless_asked_otherwise():
    present = ("optimizer", "norm", "activation", "data")
    assert variants.ladder_order(present) == ("norm", "activation", "optimizer", "data")
    assert variants.ladder_order(present, ("data", "norm")) == ("data", "norm", "activation", "optimizer")
    assert variants.ladder_order(()) == () and variants.ladder_order(PARTS) == PARTS


def test_an_order_with_a_part_that_is_not_there():
    with pytest.raises(UsageError, match="no part attention, dropout") as e:
        variants.ladder_order(("norm",), ("attention", "norm", "dropout"))
    assert "norm" in e.value.hint


def test_the_ladder_adds_one_part_after_the_other():
    assert variants.variant_sets(ORDER, "ladder") == [(), ("norm",), ("norm", "activation"), ORDER]
    assert variants.variant_sets((), "ladder") == [()]
    assert variants.variant_sets(("data", "norm"), "ladder") == [(), ("data",), ("data", "norm")]


def test_brackets_add_each_part_to_the_base_and_take_each_from_the_full_step():
    got = variants.variant_sets(ORDER, "brackets")
    assert set(variants.variant_sets(ORDER, "ladder")) <= set(got)
    for p in ORDER:
        assert (p,) in got and tuple(q for q in ORDER if q != p) in got


@pytest.mark.parametrize("n", range(5))
@pytest.mark.parametrize("attribution", ["ladder", "brackets", "shapley"])
def test_no_set_twice_each_in_order_the_full_step_last(n, attribution):
    order = PARTS[:n]
    got = variants.variant_sets(order, attribution)
    assert len(set(got)) == len(got) and got[-1] == order and () in got
    assert all(list(s) == sorted(s, key=order.index) for s in got)
    sizes = {"ladder": (1, 2, 3, 4, 5), "brackets": (1, 2, 4, 8, 11), "shapley": (1, 2, 4, 8, 16)}
    assert len(got) == sizes[attribution][n]


def test_too_many_parts_for_all_subsets():
    with pytest.raises(UsageError, match="5 parts have 32 variants") as e:
        variants.variant_sets(PARTS[:5], "shapley")
    assert "brackets" in e.value.hint


def test_the_richest_attribution_that_the_budget_allows():
    """3 parts: 4 variants for the ladder, 8 for all subsets, which the brackets are too: 20 rounds of 8 x 2 steps of 0.1 s are 32 s."""
    assert variants.affordable(ORDER, [0.1], 2, 32.1) == "shapley"
    assert variants.affordable(ORDER, [0.1], 2, 31.9) == "ladder"
    assert variants.affordable(ORDER, [0.05, 0.05], 2, 32.1) == "shapley"


def test_between_the_two_there_are_brackets():
    order = PARTS[:4]                       # 5 on the ladder, 11 with brackets, 16 subsets
    assert len(variants.variant_sets(order, "brackets")) == 11
    assert variants.affordable(order, [0.1], 1, 20 * 16 * 0.1 + 0.1) == "shapley"
    assert variants.affordable(order, [0.1], 1, 20 * 16 * 0.1 - 0.1) == "brackets"
    assert variants.affordable(order, [0.1], 1, 20 * 11 * 0.1 - 0.1) == "ladder"
    assert variants.affordable(PARTS[:5], [1e-9], 1, 1e9) == "brackets"
