"""The roofline: where each layer stands between memory and arithmetic, and where the measured step is."""

from __future__ import annotations

from perfscope import facts
from perfscope.record import BatchResult, Run
from perfscope.sections import COLOURS, Html, amount, cell, details, escape, figure, figures, per_batch, table

TITLE = "Roofline of the layers"
ORDER = 55
KINDS = ("breakdown",)


def layers(run: Run, size: int) -> list[tuple]:
    """(layer, FLOP/byte, least seconds per step, "memory" or "arithmetic") at a batch size, the costliest first."""
    c, out = run.ceilings, []
    for layer in run.inspection.layers:
        flops, moved = layer.flops * layer.count * size, (layer.bytes * size + layer.fixed_bytes) * layer.count
        if flops > 0 and moved > 0:
            by_math, by_memory = flops / c.flops_per_s, moved / c.copy_bytes_per_s
            out.append(
                (layer, flops / moved, max(by_math, by_memory), "memory" if by_memory > by_math else "arithmetic")
            )
    return sorted(out, key=lambda row: -row[2])


def roof(run: Run, batch: BatchResult) -> dict:
    """Log-log: FLOP per byte against FLOP/s. Layers lie on the roof (they were only counted)."""
    c, found = run.ceilings, layers(run, batch.batch_size)
    total = sum(row[2] for row in found)
    ridge = c.flops_per_s / c.copy_bytes_per_s
    low, high = min([ridge / 10, *(row[1] for row in found)]) / 1.5, max([ridge * 10, *(row[1] for row in found)]) * 1.5
    at = lambda x: min(x * c.copy_bytes_per_s, c.flops_per_s)  # noqa: E731
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "roof",
            "x": [low, ridge, high],
            "y": [at(low), at(ridge), at(high)],
            "line": {"color": "theme:muted", "width": 2},
            "hoverinfo": "skip",
        }
    ]
    for direction, tint in (("forward", COLOURS["base"]), ("backward", COLOURS["norm"])):
        mine = [row for row in found if row[0].direction == direction]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": direction,
                "x": [r[1] for r in mine],
                "y": [at(r[1]) for r in mine],
                "marker": {
                    "color": tint,
                    "opacity": 0.75,
                    "size": [8 + 26 * (r[2] / total) ** 0.5 for r in mine],
                    "line": {"color": "theme:ground", "width": 1},
                },
                "customdata": [
                    [escape(f"{r[0].op} {r[0].shape}"), figures(r[2] * 1e3), r[3], escape(r[0].module)] for r in mine
                ],
                "hovertemplate": "<b>%{customdata[0]}</b> %{customdata[3]}<br>%{x:.3~g} FLOP/byte, limited by "
                "%{customdata[2]}<br>"
                "at least %{customdata[1]} ms per step<extra></extra>",
            }
        )
    flops = sum(r[0].flops * r[0].count for r in found) * batch.batch_size
    moved = sum((r[0].bytes * batch.batch_size + r[0].fixed_bytes) * r[0].count for r in found)
    reached = flops / batch.derived.step.point
    data.append(
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": "the measured step",
            "x": [flops / moved],
            "y": [reached],
            "text": [" step"],
            "textposition": "middle right",
            "marker": {"symbol": "star", "size": 15, "color": COLOURS["optimizer"]},
            "hovertemplate": f"the measured step: {amount(reached, 'FLOP/s')}<extra></extra>",
        }
    )
    axis = {"type": "log", "exponentformat": "power", "dtick": 1}
    return {
        "data": data,
        "layout": {
            "height": 400,
            "xaxis": {**axis, "title": {"text": "arithmetic intensity, FLOP per byte"}},
            "yaxis": {**axis, "title": {"text": "FLOP/s"}},
            "margin": {"t": 20},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        },
    }


def listing(run: Run, size: int) -> str:
    """The layers as a table."""
    found = layers(run, size)
    total = sum(row[2] for row in found)
    rows = [
        [
            cell(la.op),
            cell(la.direction),
            cell(la.shape),
            cell(la.count, la.count),
            cell(la.module),
            cell(figures(x), x),
            cell(figures(t * 1e3), t),
            cell(figures(100 * t / total), t),
            cell(by),
        ]
        for la, x, t, by in found
    ]
    return table(
        ["op", "direction", "shape", "count", "module", "FLOP/byte", "floor ms", "% of floor", "limited by"], rows
    )


def render(run: Run) -> str:
    """One figure and one table per batch size; nothing without ceilings or layers."""
    c = run.ceilings
    have, best = facts.results(run), facts.focus(run)
    if (
        not best
        or not c
        or not run.inspection
        or c.flops_per_s <= 0
        or c.copy_bytes_per_s <= 0
        or not layers(run, 1)
    ):
        return ""
    panels = {
        b.batch_size: figure(roof(run, b), "Roofline of the layers") + details("All layers", listing(run, b.batch_size))
        for b in have
    }
    note = Html(
        '<p class="quiet">Layers are drawn on the roof, where they would be at best: they were counted, not timed one '
        "by one. "
        "The larger the circle, the more of the floor. The star is the whole step as measured.</p>"
    )
    return per_batch(panels, best.batch_size) + note
