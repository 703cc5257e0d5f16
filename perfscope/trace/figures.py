"""Figures that belong to a block of the page: memory over time, and the operators between memory and arithmetic."""

from __future__ import annotations

from perfscope.sections import COLOURS, Html, amount, escape, figure
from perfscope.trace.blocks import roofline as arithmetic
from perfscope.trace.blocks.memory import label

STEPS = 60  # steps that are marked in the memory's figure
POINTS = 300  # operators drawn
GIB, MIB = 1 << 30, 1 << 20


def memory(view) -> Html:
    """Allocated bytes of each device over time, with the steps; "" where nothing was recorded."""
    found = [m for m in view.rank.memory or () if m.curve]
    if not found:
        return Html("")
    begin = min(m.curve[0][0] for m in found)
    unit, name = (GIB, "GiB") if max(m.peak for m in found) >= GIB else (MIB, "MiB")
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": label(m),
            "x": [(t - begin) / 1e6 for t, _ in m.curve],
            "y": [b / unit for _, b in m.curve],
            "line": {"shape": "hv", "width": 2, "color": tint},
            "hovertemplate": f"<b>{escape(label(m))}</b> %{{x:.4~g}} ms: %{{y:.4~g}} {name}<extra></extra>",
        }
        for m, tint in zip(found, list(COLOURS.values()) * len(found))
    ]
    end = max(m.curve[-1][0] for m in found)
    steps = {(s.start_ns, s.name): s for s in view.rank.steps if begin <= s.start_ns <= end}
    marks = [s for _, s in sorted(steps.items())][:STEPS]
    layout = {
        "height": 300,
        "margin": {"t": 34},
        "xaxis": {"title": {"text": "ms since the first allocation"}},
        "yaxis": {"title": {"text": f"allocated, {name}"}, "rangemode": "tozero"},
        "shapes": [
            {
                "type": "line",
                "x0": (s.start_ns - begin) / 1e6,
                "x1": (s.start_ns - begin) / 1e6,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": "theme:muted", "width": 1, "dash": "dot"},
            }
            for s in marks
        ],
        "annotations": [
            {
                "x": (s.start_ns - begin) / 1e6,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "xanchor": "left",
                "text": escape(s.name.removeprefix("Profiler")),
                "showarrow": False,
                "font": {"size": 10, "color": "theme:muted"},
            }
            for s in marks[:12]
        ],
        "showlegend": len(found) > 1,
        "legend": {"orientation": "h", "y": -0.25, "x": 0},
    }
    return figure(
        {"data": data, "layout": layout},
        "Memory over time",
        f"The largest of each of {len(found[0].curve)} stretches; dotted: where steps begin.",
    )


def roofline(view) -> Html:
    """Log-log: FLOP per byte against FLOP/s of each operator, below the data sheet's roofs; "" without shapes or types."""
    r = view.rank.roofline
    rows = [row for row in (r.rows if r else ()) if row.intensity and row.flop_per_s][:POINTS]
    if not rows:
        return Html("")
    known = arithmetic.sheet(view.rank)
    low, high = min(row.intensity for row in rows) / 2, max(row.intensity for row in rows) * 2
    data = []
    for dtype in sorted({arithmetic.dtype(row) for row in rows}):
        top = known.flop_per_s.get(dtype) if known else None
        if top:
            ridge = top / known.bytes_per_s
            x = sorted({min(low, ridge / 3), ridge, max(high, ridge * 3)})
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": f"data sheet, {dtype.removeprefix('c10::')}",
                    "x": x,
                    "y": [min(v * known.bytes_per_s, top) for v in x],
                    "line": {"color": "theme:muted", "width": 1.5},
                    "hoverinfo": "skip",
                }
            )
    longest = max(max(row.device_ns, row.host_ns if not r.device_ns else 0) for row in rows) or 1
    names = list(dict.fromkeys(row.name for row in rows))
    tints = list(COLOURS.values())
    for i, name in enumerate(names):
        mine = [row for row in rows if row.name == name]
        spent = [row.device_ns if r.device_ns else row.host_ns for row in mine]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": escape(name),
                "x": [row.intensity for row in mine],
                "y": [row.flop_per_s for row in mine],
                "marker": {
                    "color": tints[i % len(tints)],
                    "opacity": 0.75,
                    "size": [7 + 25 * (ns / longest) ** 0.5 for ns in spent],
                    "line": {"color": "theme:ground", "width": 1},
                },
                "customdata": [
                    [escape(row.shapes[:90]), row.count, f"{ns / 1e6:.3f}", amount(row.flop_per_s, "FLOP/s")]
                    for row, ns in zip(mine, spent)
                ],
                "hovertemplate": f"<b>{escape(name)}</b> %{{customdata[0]}}<br>%{{customdata[1]}} calls, %{{customdata[2]}} ms, "
                "%{{customdata[3]}}, %{{x:.3~g}} FLOP/byte<extra></extra>",
            }
        )
    axis = {"type": "log", "exponentformat": "power", "dtick": 1}
    layout = {
        "height": 400,
        "margin": {"t": 20},
        "xaxis": {**axis, "title": {"text": "FLOP per byte"}},
        "yaxis": {**axis, "title": {"text": "FLOP/s"}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    }
    return figure(
        {"data": data, "layout": layout},
        "Operators between memory and arithmetic",
        "The larger the circle, the more time.",
    )


#: Block -> what is drawn above its table.
OF_BLOCK = {"memory": memory, "roofline": roofline}
