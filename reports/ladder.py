"""The ladder of a speedrun: every rung's time and accuracy here, beside the published ones."""

from __future__ import annotations

import math

from perfscope.speedruns import words as said
from perfscope.sections import COLOURS, GREY, Rows, blocks_html, escape, figure

TITLE = "The ladder"
ORDER = 20
KINDS = ("speedrun",)
HERE = COLOURS["base"]


def text(record) -> list[str | Rows]:
    """The table of the rungs, and what a fixed length changes."""
    if record.mode != "ladder":
        return []
    notes = ["Published rungs 1 to 4 stopped once the test set was at 99 %: the length of each run was fitted to the answer. Here every length was fixed "
             "before the first run, so a rung may end above or below 99 %, and its accuracy is an honest one."]
    if any(a.shortened < 1 for a in record.arms):
        notes.append("A factor behind the epochs says how far a rung was shortened to fit --budget; 's, whole' is the time that all its epochs would "
                     "take (training divided by the factor, and evaluation); its accuracy is that of the shortened run.")
    return [said.ladder_rows(record), *notes]


def plot(record) -> dict:
    """Time on a log axis and accuracy with its interval, a line per rung."""
    done = [(a, r) for a, r in zip(record.arms, record.results) if r]
    names = [escape(a.name) for a, _ in done]
    half = [100 * r.accuracy.half_width if math.isfinite(r.accuracy.half_width) else 0 for _, r in done]
    there = [(n, a.published) for n, (a, _) in zip(names, done) if a.published]
    known = [(n, p) for n, p in there if p.get("accuracy")]
    mark = lambda x, y, name, colour, axis, symbol="circle", **more: {  # noqa: E731
        "type": "scatter", "mode": "markers", "x": x, "y": y, "name": name, "xaxis": axis, "legendgroup": name, "showlegend": axis == "x",
        "marker": {"color": colour, "size": 9, "symbol": symbol}, "hovertemplate": "%{y}: %{x:.4~g}<extra></extra>", **more}
    return {"data": [
        mark([said.all_epochs(record, record.arms.index(a)) for a, _ in done], names, "here, all epochs", HERE, "x"),
        mark([p["time_s"] for _, p in there], [n for n, _ in there], "published", GREY, "x", "diamond-open"),
        mark([100 * r.accuracy.point for _, r in done], names, "here, all epochs", HERE, "x2", error_x={"type": "data", "array": half, "color": HERE}),
        mark([100 * p["accuracy"] for _, p in known], [n for n, _ in known], "published", GREY, "x2", "diamond-open")],
        "layout": {"height": 120 + 34 * len(done), "margin": {"l": 130, "t": 30},
                   "xaxis": {"type": "log", "domain": [0, 0.58], "title": {"text": "seconds"}, "dtick": 1, "tickformat": "~g"},
                   "xaxis2": {"domain": [0.64, 1], "title": {"text": "accuracy, %"}, "anchor": "y"},
                   "yaxis": {"autorange": "reversed", "type": "category"}, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}}}


def render(record) -> str:
    """The plot above the table."""
    blocks = text(record)
    return figure(plot(record), "Time and accuracy of every rung") + blocks_html(blocks) if blocks and any(record.results) else ""
