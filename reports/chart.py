"""The chart this project comes from: a stacked bar per batch size, the parts in order, the floor drawn in."""

from __future__ import annotations

from perfscope import facts
from perfscope.record import Run, label
from perfscope.sections import TEXT, bar_layout, colour, contrast, escape, figure, scaled, share, words

TITLE = "Where the time goes"
ORDER = 20
BAR = 40  # pixels per batch size


def bars(run: Run, scale, unit: str, axis: str) -> dict:
    """A plotly figure; `scale(batch)` turns seconds per step into what the x axis shows."""
    every = [str(b.batch_size) for b in run.batches]
    have = facts.known(run)
    data = []
    for part in facts.part_names(run):
        mine = [b for b in have if part in b.derived.parts]
        spans = [b.derived.parts[part].seconds.scaled(scale(b)) for b in mine]
        shares = [b.derived.parts[part].share for b in mine]
        name = escape(label(run, part))
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "y": [str(b.batch_size) for b in mine],
                "x": [s.point for s in spans],
                "marker": {"color": colour(part), "line": {"color": "theme:ground", "width": 1}},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [s.high - s.point for s in spans],
                    "color": TEXT,
                    "arrayminus": [s.point - s.low for s in spans],
                    "thickness": 1.2,
                    "width": 4,
                },
                "text": [f"{share(s)[0]} %" for s in shares],
                "textposition": "inside",
                "insidetextanchor": "middle",
                "textangle": 0,
                "insidetextfont": {"color": contrast(colour(part))},
                "customdata": [[words(scaled(s, 1), unit), words(share(h), "%")] for s, h in zip(spans, shares)],
                "hovertemplate": f"<b>{name}</b> at batch %{{y}}<br>%{{customdata[0]}} · %{{customdata[1]}} of the "
                f"step<extra></extra>",
            }
        )
    floored = [b for b in have if b.derived.floor_s]
    if floored:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "floor",
                "y": [str(b.batch_size) for b in floored],
                "x": [b.derived.floor_s * scale(b) for b in floored],
                "marker": {"symbol": "line-ns", "size": BAR * 0.8, "color": TEXT, "line": {"width": 3, "color": TEXT}},
                "hovertemplate": f"floor at batch %{{y}}: %{{x:.3~g}} {unit}<br>what this machine's ceilings "
                f"allow<extra></extra>",
            }
        )
    lost = {i: facts.note(b) for i, b in enumerate(run.batches) if b not in have}
    layout = bar_layout(every, axis, row=BAR, notes=lost, barmode="stack", bargap=0.22, uniformtext={"minsize": 10, "mode": "hide"})
    layout["legend"]["traceorder"] = "normal"
    return {"data": data, "layout": layout}


def render(run: Run) -> str:
    """The chart per sample (the article's view), per step, and as shares."""
    if not facts.known(run):
        return ""
    scale, unit = facts.per_sample(run)
    views = {
        f"{unit} per sample": bars(run, lambda b: scale / b.batch_size, unit, f"time per sample, {unit}"),
        "ms per step": bars(run, lambda b: 1e3, "ms", "time per step, ms"),
        "share": bars(run, lambda b: 100 / b.derived.step.point, "%", "share of the step, %"),
    }
    return figure(
        views,
        "Stacked bars: time per batch size by part",
        "Each part is what it adds to the step, in this order; whiskers: 95 % intervals, upright mark: the floor.",
    )
