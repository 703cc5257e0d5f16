"""Whether the fix holds over whole training runs: pairs with equal seeds, time ratio and accuracy (METHOD 14.4)."""

from __future__ import annotations

from perfscope.measure.stats import Interval
from perfscope.sections import plain
from perfscope.treatment import span

TITLE = "Confirmed on full runs"
ORDER = 19
KINDS = ("fix",)


def interval(data) -> Interval:
    """An interval as the record's JSON has it."""
    return Interval(*(float("nan") if data.get(k) is None else data[k] for k in ("point", "low", "high")))


def text(run) -> list[str]:
    """The verdict in words; nothing if --confirm was not given."""
    c = run.confirmed
    if not c:
        return []
    if "waived" in c:
        return [f"Full runs were not trained: {plain(c['waived'])}."]
    time, accuracy, holds = interval(c["comparison"]["time"]), interval(c["comparison"]["accuracy"]), c["comparison"]["not_worse"]
    margin = {True: "not worse by more than the margin", False: "worse", None: "not settled by so many pairs"}[holds]
    points = [f"{100 * x:+.3f}" for x in (accuracy.point, accuracy.low, accuracy.high)]
    return [f"{plain(c['words'])}: time of a full run of {plain(c['recipe'])} {span(time)}, {c['pairs']} pairs of equal seeds.",
            f"Accuracy is {margin}: {points[0]} points [{points[1]}, {points[2]}].", f"Data: {plain(c.get('split', ''))}"]
