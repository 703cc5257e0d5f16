"""The proof of each cure: the change of the step with its interval, and beside it every process on its own."""

from __future__ import annotations

import math

from perfscope import treatment as t
from perfscope.measure.stats import MATTERS, Interval
from perfscope.sections import COLOURS, GREY, TEXT, Html, escape, figure, slug

TITLE = "Proof"
ORDER = 20
KINDS = ("fix",)
VERDICTS = {"FASTER": COLOURS["activation"], "SLOWER": COLOURS["optimizer"], "UNCLEAR": COLOURS["norm"]}
ROW = 46  # pixels per trial


def points(name: str, intervals: list[Interval], at: list[float], colour: str, size: int, hover: str) -> dict:
    """A plotly trace of intervals, in per cent of the step."""
    pct = lambda x: 100 * math.expm1(x)  # noqa: E731
    return {"type": "scatter", "mode": "markers", "name": escape(name), "x": [pct(i.point) for i in intervals], "y": at,
            "marker": {"color": colour, "size": size}, "hovertemplate": hover,
            "error_x": {"type": "data", "symmetric": False, "color": colour, "thickness": 3 if size > 8 else 1, "width": 0,
                        "array": [pct(i.high) - pct(i.point) for i in intervals], "arrayminus": [pct(i.point) - pct(i.low) for i in intervals]}}


def bounded(interval: Interval | None) -> bool:
    """Whether an interval can be drawn."""
    return interval is not None and all(map(math.isfinite, (interval.point, interval.low, interval.high)))


def render(run) -> str:
    """One row per trial: the interval over processes, and below it each process's own."""
    rows = [(name, x) for name, x in t.trials(run) if bounded(x.change)]
    if not rows:
        return ""
    data = []
    for i, (name, x) in enumerate(rows):
        colour = VERDICTS.get(x.verdict, GREY)
        data.append(points(name, [x.change], [i], colour, 11, f"<b>{escape(name)}</b>: {escape(t.span(x.change))}<br>{escape(x.verdict)}<extra></extra>"))
        own = [(n, c) for n, c in enumerate(t.by_process(x)) if bounded(c)]
        hover = f"{escape(name)}, one process: %{{x:.2f}} %<extra></extra>"
        data.append(points(name, [c for _, c in own], [i + 0.16 * (1 + n) for n, _ in own], GREY, 5, hover))
    edge = 100 * MATTERS
    layout = {"height": 90 + ROW * len(rows), "showlegend": False, "margin": {"t": 10, "l": 10},
              "xaxis": {"title": {"text": "change of the step's time, %"}, "zeroline": True, "zerolinecolor": TEXT},
              "yaxis": {"tickvals": list(range(len(rows))), "ticktext": [escape(n if len(n) < 34 else n[:33] + "…") for n, _ in rows],
                        "range": [len(rows) - 0.25, -0.5], "automargin": True, "showgrid": False, "zeroline": False},
              "shapes": [{"type": "rect", "xref": "x", "yref": "paper", "x0": -edge, "x1": edge, "y0": 0, "y1": 1, "fillcolor": GREY, "opacity": 0.15,
                          "line": {"width": 0}, "layer": "below"}]}
    what = (f"Thick: 95 % interval over processes. Thin, below it: each process from its own rounds. Grey band: changes under {edge:g} % do not matter. "
            "Green is FASTER, red SLOWER, orange UNCLEAR, grey SAME.")
    return Html(figure({"data": data, "layout": layout}, f"Intervals of {len(rows)} trials of {slug(run.id)}", what))
