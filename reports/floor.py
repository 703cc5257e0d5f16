"""From the floor to the full step: what the machine could do, and what each part adds."""

from __future__ import annotations

from perfscope import facts
from perfscope.record import BASE, BatchResult, Run, label
from perfscope.sections import GREY, amount, colour, escape, figure, figures, per_batch, scaled, words

TITLE = "From the floor to the step"
ORDER = 50
KINDS = ("breakdown",)


def steps(run: Run, batch: BatchResult) -> list[tuple[str, float, float, str, str]]:
    """(name, start ms, length ms, colour, words) of each bar, from the floor up to the full step."""
    d = batch.derived
    floor, at = d.floor_s * 1e3, 0.0
    out = [("floor", 0.0, floor, GREY, f"{figures(floor)} ms, by FLOPs and bytes")] if floor else []
    for name, part in d.parts.items():
        length, shown = part.seconds.point * 1e3, label(run, name)
        if name == BASE and 0 < floor < length:
            out.append(
                (
                    f"{shown} above floor",
                    floor,
                    length - floor,
                    colour(name),
                    f"{figures(length - floor)} ms more than the floor",
                )
            )
        else:
            out.append((shown, at, length, colour(name), words(scaled(part.seconds), "ms")))
        at += length
    return [*out, ("full step", 0.0, d.step.point * 1e3, "theme:muted", words(scaled(d.step), "ms"))]


def waterfall(run: Run, batch: BatchResult) -> dict:
    """Horizontal bars, one per step, each starting where the one above ends."""
    bars = steps(run, batch)
    names = [escape(b[0]) for b in bars]
    bar = {
        "type": "bar",
        "orientation": "h",
        "y": names,
        "base": [b[1] for b in bars],
        "x": [b[2] for b in bars],
        "marker": {"color": [b[3] for b in bars]},
        "text": [figures(b[2]) for b in bars],
        "textposition": "outside",
        "cliponaxis": False,
        "customdata": [escape(b[4]) for b in bars],
        "hovertemplate": "<b>%{y}</b>: %{customdata}<extra></extra>",
    }
    return {
        "data": [bar],
        "layout": {
            "height": 90 + 32 * len(bars),
            "showlegend": False,
            "bargap": 0.25,
            "margin": {"t": 10, "r": 60},
            "xaxis": {"title": {"text": "ms"}, "rangemode": "tozero"},
            "yaxis": {"type": "category", "range": [len(bars) - 0.5, -0.5], "automargin": True, "showgrid": False},
        },
    }


def render(run: Run) -> str:
    """The waterfall at one batch size and the two ceilings that the floor was made with."""
    have, best = facts.known(run), facts.focus(run)
    if not have:
        return ""
    said = ""
    if run.ceilings:
        c = run.ceilings
        said = (
            f"Measured ceilings of this machine: {amount(c.flops_per_s, 'FLOP/s')} in "
            f"{c.dtype or run.workload.dtype} (large matmul), "
            f"{amount(c.copy_bytes_per_s, 'B/s')} (large copy, read and written)."
        )
    if run.inspection and run.inspection.flops_step:
        said += (
            f" One sample takes {amount(run.inspection.flops_forward, 'FLOP')} forward, "
            f"{amount(run.inspection.flops_step, 'FLOP')} forward and backward."
        )
    drawn = per_batch(
        {b.batch_size: figure(waterfall(run, b), "Waterfall from the floor to the full step") for b in have},
        best.batch_size,
    )
    return drawn + (f'<p class="quiet">{escape(said)}</p>' if said else "")
