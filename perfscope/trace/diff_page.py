"""The page about two traces: the same shell as the trace page, the pieces of both steps, and where in the step they part."""

from __future__ import annotations

from pathlib import Path

from perfscope.sections import Html, escape, figure
from perfscope.trace.diff import Diff
from perfscope.trace.diff_blocks import blocks, pieces
from perfscope.trace.page import block, put, shell

COLOURS = {
    "compute": "#0072B2",
    "communication exposed": "#F0E442",
    "copies exposed": "#B39DDB",
    "loading exposed": "#00838F",
    "loading": "#00838F",
    "other idle": "#C94F4F",
    "the rest": "#8C8C8C",
}
MORE, LESS = "#C94F4F", "#2E8B57"
HEIGHT = 270  # pixels: both views of the figure have the same, so that nothing below it moves


def build(d: Diff, name: str = "A and B") -> str:
    """The whole page. Raises EnvironmentError_ without plotly."""
    head, *rest = blocks(d)
    first, *others = head.lines
    drawn = {"step": _steps(d), "ops": _course(d)}
    top = f'<header><h1>{escape(name)}</h1></header><p class="verdict">{escape(first)}</p>'
    top += "".join(f'<p class="quiet">{escape(t)}</p>' for t in others)
    return shell(name, top, [(b.name, b.title, Html(drawn.get(b.name, "") + block(b))) for b in rest])


def write(d: Diff, out) -> Path:
    """Writes the page and returns its path; a folder gets a `diff.html`. Raises EnvironmentError_."""
    return put(build(d, f"{Path(d.a.source).name} → {Path(d.b.source).name}"), out, "diff.html")


def _steps(d: Diff) -> Html:
    """The median steps side by side, and the way from one to the other."""
    found = pieces(d)
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": n,
            "y": ["A", "B"],
            "x": [a / 1e6, b / 1e6],
            "marker": {"color": COLOURS[n]},
            "hovertemplate": f"<b>%{{y}}</b> {n}: %{{x:.4~f}} ms<extra></extra>",
        }
        for n, a, b, _ in found
        if a or b
    ]
    beside = {
        "data": bars,
        "layout": {
            "barmode": "stack",
            "bargap": 0.25,
            "height": HEIGHT,
            "xaxis": {"title": {"text": "ms of the median step"}, "rangemode": "tozero"},
            "yaxis": {"type": "category", "range": [1.5, -0.5], "showgrid": False},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
            "margin": {"t": 20},
        },
    }
    moved = [(n, z) for n, _, _, z in found if z]
    way = {
        "data": [
            {
                "type": "waterfall",
                "x": ["A", *(n for n, _ in moved), "B"],
                "y": [d.a.step_ns / 1e6, *(z / 1e6 for _, z in moved), 0],
                "measure": ["absolute", *("relative" for _ in moved), "total"],
                "text": [
                    f"{d.a.step_ns / 1e6:.2f}",
                    *(f"{z / 1e6:+.2f}" for _, z in moved),
                    f"{d.b.step_ns / 1e6:.2f}",
                ],
                "textposition": "outside",
                "cliponaxis": False,
                "increasing": {"marker": {"color": MORE}},
                "decreasing": {"marker": {"color": LESS}},
                "totals": {"marker": {"color": "theme:muted"}},
                "connector": {"line": {"color": "theme:line", "width": 1}},
                "hovertemplate": "<b>%{x}</b>: %{text} ms<extra></extra>",
            }
        ],
        "layout": {
            "height": HEIGHT,
            "xaxis": {"type": "category", "showgrid": False},
            "yaxis": {"title": {"text": "ms of the median step"}, "rangemode": "tozero"},
            "margin": {"t": 30},
            "showlegend": False,
        },
    }
    return figure({"side by side": beside, "from A to B": way}, "The median steps of A and B by piece")


def _course(d: Diff) -> Html:
    """The difference as it grows along the step, operator by operator."""
    if not d.aligned or len(d.ops) < 2:
        return Html("")
    own, idle, y, z = 0.0, 0.0, [], []
    for c in d.ops:
        own, idle = own + c.difference_ns, idle + c.idle_difference_ns
        y.append(own / 1e6)
        z.append(idle / 1e6)
    names = [escape(f"{c.name[:60]}{f', {c.nth} of {c.of}' if c.of > 1 else ''}") for c in d.ops]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": list(range(1, len(names) + 1)),
            "y": values,
            "text": names,
            "line": {"shape": "hv", "width": 2, "color": colour},
            "hovertemplate": "<b>%{text}</b><br>so far %{y:+.4~f} ms<extra></extra>",
        }
        for name, values, colour in (("own time", y, "#0072B2"), ("idle in front", z, MORE))
        if any(values)
    ]
    layout = {
        "height": 300,
        "xaxis": {"title": {"text": "operators in the order of the step, thread by thread"}},
        "yaxis": {"title": {"text": "B - A so far, ms"}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"t": 20},
    }
    return figure(
        {"data": data, "layout": layout},
        "The difference along the step",
        "Rises where B takes longer, falls where A does.",
    )
