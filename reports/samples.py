"""The raw samples, round by round: drift, spikes and order. Outliers are labelled, none is deleted."""

from __future__ import annotations

import math
from statistics import median

from perfscope import facts
from perfscope.measure import stats
from perfscope.record import BASE, BatchResult, Run
from perfscope.sections import COLOURS, GREY, cell, change, escape, figure, per_batch, percent, table

TITLE = "Raw samples"
ORDER = 80
KINDS = ("breakdown",)
MOST = 2000  # points of one batch size: more take longer to draw than anyone looks at them
TINTS = [
    COLOURS[p]
    for p in (BASE, "norm", "activation", "attention", "optimizer", "data", "embedding", "pooling", "loss", "dropout")
]


def whole(batch: BatchResult) -> tuple[list[str], list[int]]:
    """(variants, indices of the rounds) that can be shown together: a variant that mostly failed is left out.

    Beyond MOST points only the ladder is shown: base, base + norm, ... as far as the full step.
    """
    variants = list(batch.variants)
    if len(variants) * len(batch.rounds) > MOST:
        order = max((v.parts for v in variants), key=len)
        variants = [v for v in variants if v.parts == order[: len(v.parts)]]
    names = [
        v.name
        for v in variants
        if 2 * sum(r.step_s.get(v.name, 0) > 0 for r in batch.rounds) >= max(1, len(batch.rounds))
    ]
    return names, [i for i, r in enumerate(batch.rounds) if names and all(r.step_s.get(v, 0) > 0 for v in names)]


def scatter(batch: BatchResult, mode: str) -> dict:
    """Samples over rounds: "ms", "relative" to the variant's median, or with the round's "level removed" as well."""
    names, at = whole(batch)
    rounds = [batch.rounds[i] for i in at]
    found = stats.levels({v: [r.step_s[v] for r in rounds] for v in names})
    labels = iter(stats.tukey([e for v in names for e in found.residual[v]]))
    data = []
    for j, v in enumerate(names):
        if mode == "ms":
            ys = [r.step_s[v] * 1e3 for r in rounds]
        else:
            ys = [
                100 * math.expm1(e + (level if mode == "relative" else 0))
                for e, level in zip(found.residual[v], found.level)
            ]
        place = [r.order.index(v) + 1 if v in r.order else 0 for r in rounds]
        marks = [next(labels) == "far" for _ in rounds]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": escape(v),
                "x": [i + 1 for i in at],
                "y": [float(f"{y:.4g}") for y in ys],
                "marker": {
                    "color": TINTS[j % len(TINTS)],
                    "size": 6,
                    "symbol": ["x" if m else "circle" for m in marks] if any(marks) else "circle",
                    "opacity": 0.8,
                },
                "customdata": place,
                "hovertemplate": f"<b>{escape(v)}</b>, round %{{x}}: %{{y:.4~g}} {'ms' if mode == 'ms' else '%'}, "
                "ran as number %{customdata}<extra></extra>",
            }
        )
    if mode != "ms":
        data += [canary(batch, name) for name in sorted({k for r in batch.rounds for k in r.canary_s})]
    title = "ms per step" if mode == "ms" else "% from the variant's median"
    return {
        "data": data,
        "layout": {
            "height": 430,
            "xaxis": {"title": {"text": "round", "standoff": 6}},
            "margin": {"t": 20},
            "yaxis": {"title": {"text": title}, "zeroline": mode != "ms"},
            "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        },
    }


def canary(batch: BatchResult, name: str) -> dict:
    """The canary of every round: a fixed piece of work that only changes when the machine does."""
    seen = [(i + 1, r.canary_s[name]) for i, r in enumerate(batch.rounds) if r.canary_s.get(name)]
    middle = median(v for _, v in seen) if seen else 1.0
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"canary: {escape(name)}",
        "x": [i for i, _ in seen],
        "y": [100 * (v / middle - 1) for _, v in seen],
        "line": {"color": GREY, "width": 1, "dash": "solid" if name == "matmul" else "dot"},
        "visible": "legendonly",
        "hovertemplate": f"canary {escape(name)}, round %{{x}}: %{{y:.2f}} %<extra></extra>",
    }


def quality(run: Run) -> str:
    """How well each batch size was measured."""
    body = []
    for b in facts.results(run):
        d = b.derived
        odd = ", ".join(f"{n} {k}" for k, n in d.outliers.items() if n) or "none"
        body.append(
            [
                cell(b.batch_size, b.batch_size),
                cell(f"{d.clean_rounds} of {d.rounds}", d.clean_rounds),
                cell(b.steps_per_sample, b.steps_per_sample),
                cell(change(d.half_width), d.half_width),
                cell(change(d.resolution), d.resolution),
                cell(odd),
                cell(percent(d.stall), d.stall),
                cell(percent(d.canary_spread), d.canary_spread),
                cell(b.stop),
            ]
        )
    head = [
        "batch",
        "clean rounds",
        "steps per sample",
        "widest ±",
        "sees",
        "outliers",
        "stall",
        "canary spread",
        "stopped by",
    ]
    return table(head, body) if body else ""


def render(run: Run) -> str:
    """One figure per batch size with three views, and the quality table."""
    have = [b for b in run.batches if whole(b)[1]]
    if not have:
        return ""
    best = facts.focus(run)
    panels = {
        b.batch_size: figure(
            {m: scatter(b, m) for m in ("relative", "level removed", "ms")},
            "Samples over rounds",
            "One point is one sample; crosses lie beyond Tukey's outer fences. Click a name to hide it.",
        )
        for b in have
    }
    return per_batch(panels, best.batch_size if best else 0) + quality(run)
