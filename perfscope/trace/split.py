"""Every step as a bar: compute, exposed communication and copies, and the idle time by reason."""

from __future__ import annotations

from perfscope.sections import escape, figure
from perfscope.trace.typical import main_device, pieces

TITLE = "Where each step's time goes"
ORDER = 5
KINDS = ("trace",)

MOST = 60  # steps drawn; the table has them all
IDLE = (
    ("idle_host_ns", "idle: waiting for the host", "#C94F4F"),
    ("idle_launch_ns", "idle: launch gaps", "#E8A0A0"),
    ("idle_stream_ns", "idle: waiting for another stream", "#C98FB0"),
    ("idle_unknown_ns", "idle: unexplained", "#D0C4C4"),
)
BUSY = (("compute", "#0072B2"), ("communication exposed", "#F0E442"), ("copies exposed", "#B39DDB"))


def render(view) -> str:
    """The stacked bars of the main device. "" for a trace without a GPU."""
    device = main_device(view.rank)
    steps = [s for s in view.rank.steps if s.device == device][:MOST]
    if device < 0 or not steps:
        return ""
    names = [escape(s.name.removeprefix("Profiler")) for s in steps]
    series = [(n, c, [pieces(s)[n] for s in steps]) for n, c in BUSY] + [
        (n, c, [getattr(s, k) for s in steps]) for k, n, c in IDLE
    ]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": n,
            "y": list(range(len(steps))),
            "x": [v / 1e6 for v in values],
            "marker": {"color": c},
            "text": names,
            "textposition": "none",
            "hovertemplate": f"<b>%{{text}}</b><br>{n}: %{{x:.4~g}} ms<extra></extra>",
        }
        for n, c, values in series
        if any(values)
    ]
    layout = {
        "barmode": "stack",
        "bargap": 0.2,
        "height": 110 + 26 * max(len(steps), 2),
        "xaxis": {"title": {"text": "ms"}, "rangemode": "tozero"},
        "yaxis": {
            "tickvals": list(range(len(steps))),
            "ticktext": names,
            "range": [len(steps) - 0.5, -0.5],
            "showgrid": False,
        },
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "margin": {"t": 20},
    }
    more = f" The first {MOST} steps." if len(view.rank.steps) > MOST else ""
    return figure(
        {"data": data, "layout": layout},
        TITLE,
        f"The pieces add up to the step exactly; loading is part of the waiting for the host.{more}",
    )
