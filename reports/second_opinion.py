"""A second opinion: what taking a part away saves, beside its time in a trace of the same step."""

from __future__ import annotations

import math

from perfscope import facts
from perfscope.record import Run, label
from perfscope.sections import DASH, GREY, TEXT, Html, cell, colour, escape, figure, figures, percent, share, table

TITLE = "A second opinion"
ORDER = 65
KINDS = ("breakdown",)


def text(run: Run) -> tuple:
    """A sentence and the table; nothing if there is no second opinion."""
    said = facts.opinion_words(run)
    return (said, facts.opinion_rows(run)) if said else ()


def whiskers(intervals) -> dict:
    """Error bars in per cent; none where nothing is known of an end."""
    ends = lambda x: x if math.isfinite(x) else None  # noqa: E731
    return {
        "type": "data",
        "symmetric": False,
        "array": [ends(100 * (i.high - i.point)) for i in intervals],
        "arrayminus": [ends(100 * (i.point - i.low)) for i in intervals],
        "color": TEXT,
    }


def pairs(run: Run) -> dict:
    """A plotly figure: for each part what the breakdown says, with its interval, and what the trace says."""
    found = facts.opinions(run)
    names = [escape(label(run, o.part)) for o in found]
    taken = {
        "type": "bar",
        "orientation": "h",
        "name": "taken away",
        "y": names,
        "x": [100 * o.cost.point for o in found],
        "error_x": whiskers([o.cost for o in found]),
        "marker": {"color": [colour(o.part) for o in found]},
        "hovertemplate": "<b>%{y}</b> taken away: %{x:.1f} % of the step<extra></extra>",
    }
    traced = {
        "type": "bar",
        "orientation": "h",
        "name": "in the trace",
        "y": names,
        "x": [100 * o.trace.point for o in found],
        "error_x": whiskers([o.trace for o in found]),
        "marker": {
            "color": [colour(o.part) for o in found],
            "opacity": 0.45,
            "line": {"color": TEXT, "width": [0 if o.agrees else 2 for o in found]},
        },
        "hovertemplate": "<b>%{y}</b> in the trace: %{x:.1f} % of the step<extra></extra>",
    }
    waiting = {
        "type": "bar",
        "orientation": "h",
        "name": "no part's",
        "y": ["no part's"],
        "x": [100 * found[0].waiting],
        "marker": {"color": GREY},
        "hovertemplate": f"{escape(facts.WAITING.get(run.second_opinion.clock, ''))}: %{{x:.1f}} % of the step<extra></extra>",
    }
    return {
        "data": [taken, traced, waiting],
        "layout": {
            "height": 110 + 44 * (len(found) + 1),
            "barmode": "group",
            "bargap": 0.25,
            "showlegend": False,
            "margin": {"t": 10, "r": 40},
            "xaxis": {"title": {"text": "% of the step"}, "rangemode": "tozero"},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False},
        },
    }


def render(run: Run) -> str:
    """The sentence, the paired bars and the table."""
    found = facts.opinions(run)
    if not found:
        return ""
    body = []
    for o in found:
        swatch = Html(f'<i class="swatch" style="background:{colour(o.part)}"></i>{escape(label(run, o.part))}')
        body.append(
            [
                cell(swatch, label(run, o.part)),
                cell(share(o.cost), o.cost.point),
                cell(share(o.trace), o.trace.point),
                cell(percent(o.host) if o.host else DASH, o.host),
                cell("agrees" if o.agrees else f"{figures(100 * o.beyond, 2)} % of the step", o.beyond),
            ]
        )
    head = ["part", "taken away %", "in the trace %", "of that between operators", "not explained"]
    on_cpu = run.second_opinion.clock == "operators"
    if not on_cpu:
        head.pop(3)
        body = [[*row[:3], row[4]] for row in body]
    how = (
        "A part's time in the trace is that of its operators, forward and backward"
        + (", and the host's time inside its mark." if on_cpu else ": of the kernels, copies and memsets that they launched.")
        + f" {facts.WAITING.get(run.second_opinion.clock, 'the rest').capitalize()} is no part's: it can be saved with a part or hide one, "
        "so that it explains a difference up to its own size. “Taken away” spans first and last in where they were measured."
    )
    caption = "Full: taken away, with its interval. Pale: in the trace; framed where the two disagree."
    drawn = figure(pairs(run), "Each part taken away, and in a trace", caption)
    return f"<p>{escape(facts.opinion_words(run))}</p>{drawn}{table(head, body)}" + f'<p class="quiet">{escape(how)}</p>'
