"""The section about full runs says what the record says."""

from dataclasses import replace

import pytest

from perfscope import registry
from perfscope.record import to_dict
from perfscope.records.fix import Record

SECTION = registry.load("reports", "confirmed")
MADE = {"pairs": 12, "recipe": "mnist_ladder:8", "words": "FASTER", "split": "60 000 images",
        "comparison": {"time": {"point": -0.9, "low": -0.92, "high": -0.88}, "accuracy": {"point": 0.00019, "low": -0.0004, "high": 0.0008}, "not_worse": True}}


def test_nothing_without_confirm():
    assert SECTION.text(Record("a")) == []


@pytest.mark.parametrize("holds, words", [(True, "not worse by more"), (False, "is worse"), (None, "not settled")])
def test_the_verdict(holds, words):
    run = Record("a", confirmed={**MADE, "comparison": {**MADE["comparison"], "not_worse": holds}})
    first, second, third = SECTION.text(run)
    assert "FASTER" in first and "12 pairs" in first and "-59" in first and words in second and "60 000" in third
    assert "+0.019 points [-0.040, +0.080]" in second
    assert to_dict(replace(run))["confirmed"]["pairs"] == 12


def test_waived_with_the_reason():
    assert SECTION.text(Record("a", confirmed={"waived": "no cure was kept"})) == ["Full runs were not trained: no cure was kept."]
