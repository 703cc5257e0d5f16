"""Time against accuracy of a speedrun's arms, among the published anchors of its data set."""

from __future__ import annotations

import math

from perfscope.speedruns import words as said
from perfscope.sections import COLOURS, GREY, escape, figure

TITLE = "Time against accuracy"
ORDER = 40
KINDS = ("speedrun",)
TINTS = list(COLOURS.values())


def render(record) -> str:
    """Each arm's median time and mean accuracy with intervals; anchors are other machines' and other runs' figures."""
    done = [(i, a, r) for i, (a, r) in enumerate(zip(record.arms, record.results)) if r]
    if not done:
        return ""
    width = lambda span, k: k * span.half_width if math.isfinite(span.half_width) else 0  # noqa: E731
    data = [{"type": "scatter", "mode": "markers", "name": escape(a.name), "x": [r.time.point], "y": [100 * r.accuracy.point],
             "marker": {"color": TINTS[i % len(TINTS)], "size": 11}, "error_x": {"type": "data", "array": [width(r.time, 1)], "color": TINTS[i % len(TINTS)]},
             "error_y": {"type": "data", "array": [width(r.accuracy, 100)], "color": TINTS[i % len(TINTS)]},
             "hovertemplate": f"<b>{escape(a.name)}</b>: %{{x:.3~g}} s, %{{y:.3f}} %<extra></extra>"} for i, a, r in done]
    anchors = [x for x in said.ANCHORS.get(record.data.name.partition(":")[0], ()) if x[2]]
    if anchors:
        data.append({"type": "scatter", "mode": "markers+text", "name": "published, other machines", "x": [x[1] for x in anchors],
                     "y": [100 * x[2] for x in anchors], "text": [escape(x[0]) for x in anchors], "textposition": "top center", "textfont": {"size": 10},
                     "marker": {"color": GREY, "size": 9, "symbol": "diamond-open"}, "customdata": [escape(x[3]) for x in anchors],
                     "hovertemplate": "<b>%{text}</b>, %{customdata}: %{x:.3~g} s, %{y:.2f} %<extra></extra>"})
    layout = {"height": 420, "xaxis": {"type": "log", "title": {"text": f"seconds of a run ({said.clock(record)} here)"}, "dtick": 1, "tickformat": "~g"},
              "yaxis": {"title": {"text": "accuracy, %"}}, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, "margin": {"t": 20, "l": 80},
              "shapes": [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 100 * record.target, "y1": 100 * record.target,
                          "line": {"color": GREY, "dash": "dot", "width": 1}}]}
    note = "The dotted line is the target. Published figures are of other hardware, and of the official test set."
    return figure({"data": data, "layout": layout}, "Time against accuracy", note)
