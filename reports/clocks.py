"""Clocks, power and temperature during the run, and the three clocks of the step."""

from __future__ import annotations

import math

from perfscope import facts
from perfscope.record import BatchResult, Run
from perfscope.sections import COLOURS, DASH, cell, escape, figure, per_batch, percent, scaled, table

TITLE = "Clocks and power during the run"
ORDER = 75
KINDS = ("breakdown",)
#: (title of an axis, which columns of the record it takes): units are in the names; a CPU's shares have none.
PANES = (
    ("MHz", lambda c: c.endswith("_mhz")),
    ("W", lambda c: c.endswith("_w")),
    ("°C", lambda c: c.endswith("_c")),
    ("share of cores", lambda c: c in ("own", "others", "steal")),
    ("load", lambda c: c == "load"),
)
#: Bits of nvmlClocksThrottleReasons (nvml.h) that mean a slowdown by hardware, heat or the power brake.
SLOWDOWN = 0x08 | 0x20 | 0x40 | 0x80


def groups(batch: BatchResult) -> list[tuple[str, list[str]]]:
    """(axis title, columns) of the telemetry that can be drawn, one entry per unit."""
    found = [(title, [c for c in batch.telemetry if takes(c)]) for title, takes in PANES]
    return [(title, names) for title, names in found if names]


def slowdowns(batch: BatchResult) -> list[dict]:
    """Shades of the times at which the GPU reported a slowdown, neighbours joined."""
    time, out = batch.telemetry["time_s"], []
    for i, bits in enumerate(batch.telemetry.get("reasons", [])[: len(time)]):
        if not math.isnan(bits) and int(bits) & SLOWDOWN:
            end = time[i + 1] if i + 1 < len(time) else time[i]
            if out and out[-1]["x1"] == time[i]:
                out[-1]["x1"] = end
            else:
                out.append(
                    {
                        "type": "rect",
                        "xref": "x",
                        "yref": "paper",
                        "x0": time[i],
                        "x1": end,
                        "y0": 0,
                        "y1": 1,
                        "line": {"width": 0},
                        "fillcolor": COLOURS["optimizer"],
                        "opacity": 0.15,
                        "layer": "below",
                    }
                )
    return out


def strips(batch: BatchResult) -> dict:
    """One strip per unit over the same time axis."""
    time, panes = batch.telemetry["time_s"], groups(batch)
    tints = [COLOURS[p] for p in ("base", "norm", "optimizer", "activation", "attention", "data")]
    data, layout, n, used = [], {}, len(panes), 0
    for i, (title, names) in enumerate(panes):
        key = "" if i == 0 else str(i + 1)
        top, height = 1 - i / n, 1 / n
        layout[f"yaxis{key}"] = {"title": {"text": title}, "domain": [top - height * 0.86, top], "anchor": "x"}
        for name in names:
            values = batch.telemetry[name]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": escape(name),
                    "x": time[: len(values)],
                    "y": values,
                    "yaxis": f"y{key}",
                    "line": {"color": tints[used % len(tints)], "width": 1.5},
                    "hovertemplate": f"{escape(name)}: %{{y:.4~g}} at %{{x:.1f}} s<extra></extra>",
                }
            )
            used += 1
    last = "y" + ("" if n == 1 else str(n))
    layout["xaxis"] = {"title": {"text": "seconds into this batch size"}, "anchor": last}
    return {
        "data": data,
        "layout": {
            **layout,
            "shapes": slowdowns(batch),
            "height": 90 + 120 * n,
            "margin": {"t": 20},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        },
    }


def three(run: Run) -> str:
    """The step, device and busy clocks beside each other, and what they mean together."""
    body = []
    for b in facts.results(run):
        d = b.derived
        if d.device or d.busy:
            times = [cell(scaled(i), i.point) if i else cell(DASH, "") for i in (d.step, d.device, d.busy)]
            body.append(
                [
                    cell(b.batch_size, b.batch_size),
                    *times,
                    cell(percent(d.launch_bound), d.launch_bound if d.launch_bound is not None else ""),
                ]
            )
    return table(["batch", "step ms", "device ms", "busy ms", "launch-bound"], body) if body else ""


def render(run: Run) -> str:
    """Telemetry where there was any; on a machine without it, a line that says so."""
    panels = {
        b.batch_size: figure(strips(b), "Clocks, power and temperature over time")
        for b in run.batches
        if b.telemetry.get("time_s") and groups(b)
    }
    clocks = three(run)
    if not panels:
        quiet = '<p class="quiet">No telemetry on this machine. The canary (raw samples) shows if it changed.</p>'
        return (clocks + quiet) if facts.results(run) and not facts.published(run) else ""
    shade = (
        '<p class="quiet">Shaded: the GPU reported a slowdown.</p>'
        if any(slowdowns(b) for b in run.batches if b.telemetry)
        else ""
    )
    throttled = [w for w in run.warnings if w.code == "throttled"]
    loud = "".join(f'<p class="alarm">{escape(w.text)} {escape(w.hint)}</p>' for w in throttled)
    return loud + clocks + per_batch(panels, facts.focus(run).batch_size if facts.focus(run) else 0) + shade
