"""From the step before to the step after: what each cure that was kept takes away, and how far the floor is."""

from __future__ import annotations

import math

from perfscope import treatment as t
from perfscope.sections import COLOURS, TEXT, escape, figure, figures, words, scaled

TITLE = "From before to after"
ORDER = 14
KINDS = ("fix",)
LEAST = 0.005  # of the step: what the cures bring together and apart differs by less than the intervals anyway


def steps(run) -> list[tuple[str, str, float, str]]:
    """(name, plotly's measure, milliseconds, what to say about it), from "before" to "after".

    A cure takes what it was measured to take on top of those before it. The whole stack was measured again, so the bars
    need not add up: what is left is a bar of its own.
    """
    before, after = run.step_before.point * 1e3, run.step_after.point * 1e3
    out, level = [("before", "absolute", before, f"{words(scaled(run.step_before), 'ms')} per step")], before
    for x in run.trials:
        if x.outcome == "kept" and x.change is not None and math.isfinite(x.change.point):
            taken = level * math.expm1(x.change.point)
            out.append((x.cure, "relative", taken, f"step {t.span(x.change)} on top of those before"))
            level += taken
    if abs(after - level) > LEAST * before:
        out.append(("together", "relative", after - level, "the whole stack, measured again, differs by this from its cures one by one"))
    return [*out, ("after", "total", after, f"{words(scaled(run.step_after), 'ms')} per step")]


def render(run) -> str:
    """The waterfall, with the floor as a line."""
    if not (run.step_before and run.step_after):
        return ""
    rows = steps(run)
    names = [escape(r[0]) for r in rows]
    data = [{"type": "waterfall", "x": names, "measure": [r[1] for r in rows], "y": [r[2] for r in rows], "name": "",
             "text": [("" if r[1] != "relative" else "+" if r[2] > 0 else "−") + figures(abs(r[2])) for r in rows], "textposition": "outside",
             "textfont": {"color": TEXT}, "customdata": [escape(r[3]) for r in rows], "connector": {"line": {"color": "theme:muted", "width": 1}},
             "decreasing": {"marker": {"color": COLOURS["activation"]}}, "increasing": {"marker": {"color": COLOURS["optimizer"]}},
             "totals": {"marker": {"color": COLOURS["base"]}}, "hovertemplate": "<b>%{x}</b>: %{y:.4~g} ms<br>%{customdata}<extra></extra>",
             "showlegend": False}]
    if run.floor_s:
        floor = run.floor_s * 1e3
        data.append({"type": "scatter", "mode": "lines", "x": names, "y": [floor] * len(names), "name": f"floor, {figures(floor)} ms",
                     "line": {"color": TEXT, "width": 2, "dash": "dot"}, "hovertemplate": f"floor: {figures(floor)} ms<extra></extra>"})
    top = 1.12 * max(run.step_before.point, run.step_after.point) * 1e3
    layout = {"height": 380, "margin": {"t": 30}, "yaxis": {"title": {"text": "ms per step"}, "range": [0, top]}, "xaxis": {"tickangle": "auto"},
              "showlegend": bool(run.floor_s), "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}}
    return figure({"data": data, "layout": layout}, "Waterfall: the step before, each cure, the step after",
                  "Each bar is what the cure took away on top of those to its left; the dotted line is the floor of the original's dtype.")
