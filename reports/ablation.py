"""What each trick is worth: paired runs with and without it, accuracy and time with their intervals."""

from __future__ import annotations

import math

from perfscope.speedruns import words as said
from perfscope.sections import COLOURS, Rows, blocks_html, escape, figure

TITLE = "With and without"
ORDER = 22
KINDS = ("speedrun",)


def text(record) -> list[str | Rows]:
    """The table, the greatest loss of accuracy first."""
    if not record.comparisons:
        return []
    base = record.arms[record.comparisons[0].a].name
    return [said.ablation_rows(record), f"Changes against {base}, over rounds of equal seeds in random order, with 95 % intervals, "
            "not adjusted for their number. 'To tell': how many pairs would tell the difference in accuracy from 0 if it and its spread are as seen."]


def plot(record) -> dict:
    """Accuracy and time changes side by side, a line per arm."""
    found = [c for c in said.worth(record) if math.isfinite(c.accuracy.half_width)]
    names = [escape(record.arms[c.b].name) for c in found]

    def side(values, axis, colour):
        return {"type": "scatter", "mode": "markers", "x": [v[0] for v in values], "y": names, "xaxis": axis, "showlegend": False,
                "marker": {"color": colour, "size": 9}, "hovertemplate": "%{y}: %{x:.3~g}<extra></extra>",
                "error_x": {"type": "data", "symmetric": False, "array": [v[2] - v[0] for v in values],
                            "arrayminus": [v[0] - v[1] for v in values], "color": colour}}

    accuracy = [tuple(100 * x for x in (c.accuracy.point, c.accuracy.low, c.accuracy.high)) for c in found]
    time = [tuple(100 * math.expm1(x) for x in (c.time.point, c.time.low, c.time.high)) for c in found]
    return {"data": [side(accuracy, "x", COLOURS["base"]), side(time, "x2", COLOURS["optimizer"])],
            "layout": {"height": 110 + 30 * len(found), "margin": {"l": 190, "t": 20},
                       "xaxis": {"domain": [0, 0.46], "title": {"text": "accuracy, points"}, "zeroline": True},
                       "xaxis2": {"domain": [0.54, 1], "title": {"text": "time, %"}, "anchor": "y", "zeroline": True},
                       "yaxis": {"autorange": "reversed", "type": "category"}}}


def render(record) -> str:
    """The plot above the table."""
    blocks = text(record)
    if not blocks:
        return ""
    drawn = any(math.isfinite(c.accuracy.half_width) and math.isfinite(c.time.half_width) for c in record.comparisons)
    return (figure(plot(record), "What each change costs and brings") if drawn else "") + blocks_html(blocks)
