"""How each part scales with the batch: a cost per step, a cost per sample, or one that grows."""

from __future__ import annotations

import math

from perfscope import facts
from perfscope.record import Run, label
from perfscope.sections import DASH, Html, cell, colour, escape, figure, figures, ordered, scaled, table, words

TITLE = "Scaling with the batch"
ORDER = 40
KINDS = ("breakdown",)


def curve(fit, batches: list[int]) -> tuple[list[float], list[float]]:
    """The fit of seconds per sample between the smallest and the largest batch, 40 points."""
    least = fit.extra.get("b_min") or min(batches)  # where the growth is counted from
    low, high = math.log2(min(batches)), math.log2(max(batches))
    xs = [2 ** (low + (high - low) * i / 39) for i in range(40)]
    return xs, [fit.per_step_s / x + fit.per_sample_s + fit.growth_s * math.log2(x / least) for x in xs]


def lines(run: Run, kind: str) -> dict:
    """Points with whiskers and the fit behind them; `kind` is the y axis: "log" or "linear"."""
    scale, unit = facts.per_sample(run)
    have, data = facts.known(run), []
    for part in facts.part_names(run):
        mine = [b for b in have if part in b.derived.parts]
        spans = [facts.over(b.derived.parts[part].seconds, b.batch_size).scaled(scale) for b in mine]
        name, fit = escape(label(run, part)), run.scaling.parts.get(part) if run.scaling else None
        if fit and len(mine) > 1 and math.isfinite(fit.per_step_s):
            xs, ys = curve(fit, [b.batch_size for b in mine])
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": xs,
                    "y": [y * scale if kind == "linear" or y > 0 else None for y in ys],
                    "line": {"color": colour(part), "width": 1.5, "dash": "dot"},
                    "legendgroup": part,
                    "showlegend": False,
                    "hoverinfo": "skip",
                }
            )
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "legendgroup": part,
                "x": [b.batch_size for b in mine],
                "y": [s.point if kind == "linear" or s.point > 0 else None for s in spans],
                "marker": {"color": colour(part), "size": 9},
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [s.high - s.point for s in spans],
                    "arrayminus": [s.point - s.low for s in spans],
                    "color": colour(part),
                    "thickness": 1.5,
                    "width": 4,
                },
                "customdata": [words(scaled(s, 1), unit) for s in spans],
                "hovertemplate": f"<b>{name}</b>, batch %{{x}}: %{{customdata}} per sample<extra></extra>",
            }
        )
    sizes = [b.batch_size for b in have]
    y = {
        "title": {"text": f"{unit} per sample"},
        "type": kind,
        **({"rangemode": "tozero"} if kind == "linear" else {"dtick": 1, "tickformat": "~g"}),
    }
    return {
        "data": data,
        "layout": {
            "height": 400,
            "xaxis": {
                "type": "log",
                "title": {"text": "batch size"},
                "tickvals": sizes,
                "ticktext": [str(s) for s in sizes],
            },
            "yaxis": y,
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"t": 20},
        },
    }


def fits(run: Run) -> str:
    """The fit of every part in words, with its three coefficients."""
    scale, unit = facts.per_sample(run)
    body = []
    parts, words = ordered(run.scaling.parts), [said for _, said in facts.scaling_words(run)]
    for part, said in zip(parts, words if len(words) == len(parts) else words * len(parts)):
        fit = run.scaling.parts[part]
        swatch = Html(f'<i class="swatch" style="background:{colour(part)}"></i>{escape(label(run, part))}')
        known = math.isfinite(fit.per_step_s)
        numbers = [(fit.per_step_s, 1e3), (fit.per_sample_s, scale), (fit.growth_s, scale)]
        body.append(
            [
                cell(swatch, label(run, part)),
                cell(fit.kind),
                cell(said),
                *[cell(figures(v * k) if known else DASH, v if known else "") for v, k in numbers],
            ]
        )
    return table(["part", "kind", "in words", "ms per step", f"{unit} per sample", f"{unit} per doubling"], body)


def render(run: Run) -> str:
    """The figure, the words, and what the sweep says of the whole step."""
    if len(facts.known(run)) < 2:
        return ""
    drawn = figure(
        {"log": lines(run, "log"), "linear": lines(run, "linear")},
        "Time per sample against batch size, by part",
        "Flat is a cost per sample, falling is a cost per step (launches, or parameters), rising grows with the batch. Dotted: "
        "the fit.",
    )
    sweep = "; ".join(facts.sweep_words(run))
    return (
        drawn
        + (fits(run) if run.scaling and run.scaling.parts else "")
        + (f'<p class="quiet">The whole step: {escape(sweep)}.</p>' if sweep else "")
    )
