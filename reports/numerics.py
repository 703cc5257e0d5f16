"""Whether the cures leave the numbers alone: loss and gradients against a reference of higher precision, and the loss curve."""

from __future__ import annotations

from perfscope import treatment as t
from perfscope.sections import COLOURS, DASH, GREY, cell, escape, figure, figures, table

TITLE = "Numerics"
ORDER = 24
KINDS = ("fix",)


def rows(run) -> list:
    """(name, Numerics) of every trial that was checked."""
    return [(name, x.numerics) for name, x in t.trials(run) if x.numerics is not None]


def small(value: float) -> str:
    """An error: "3.1e-07"."""
    return DASH if figures(value) == DASH else f"{value:.1e}"


def curve(name: str, n) -> dict:
    """The two loss curves of one trial."""
    lines = [("before", n.curve_before, GREY, "solid"), ("cured", n.curve, COLOURS["optimizer"], "dot")]
    data = [{"type": "scatter", "mode": "lines", "name": label, "x": list(range(len(ys))), "y": list(ys), "line": {"color": colour, "width": 2, "dash": dash},
             "hovertemplate": f"{label}, step %{{x}}: %{{y:.5~g}}<extra></extra>"} for label, ys, colour, dash in lines]
    return {"data": data, "layout": {"height": 320, "margin": {"t": 20}, "xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "loss"}},
                                     "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}}}


def text(run) -> list:
    """Only those that did not pass: the table of cures says which did."""
    return [f"{name}: numerics failed: {n.text}" for name, n in rows(run) if not n.passed]


def render(run) -> str:
    """The table of errors and the loss curves."""
    have = rows(run)
    if not have:
        return ""
    head = ["cure", "passed", "reference", "loss error", "before", "gradient error", "before", "allowed", "worst gradient", "curve"]
    body = [[cell(name), cell("yes" if n.passed else "no"), cell(n.reference or DASH), cell(small(n.loss_error), n.loss_error),
             cell(small(n.loss_error_before), n.loss_error_before), cell(small(n.gradient_error), n.gradient_error),
             cell(small(n.gradient_error_before), n.gradient_error_before), cell(small(n.allowed), n.allowed), cell(n.worst or DASH),
             cell(DASH if n.curve_passed is None else "same" if n.curve_passed else "differs")] for name, n in have]
    rules = "".join(f"<p class=quiet>{escape(r)}</p>" for r in dict.fromkeys(f"Allowed: {n.rule}" for _, n in have if n.rule))
    drawn = {name: curve(name, n) for name, n in have if n.curve}
    plot = figure(drawn if len(drawn) > 1 else next(iter(drawn.values())), "Loss curves, before and cured",
                  "Both train from the same weights on the same batch, with the workload's own optimizer.") if drawn else ""
    failed = "".join(f'<p class="alarm">{escape(line)}</p>' for line in text(run))
    return failed + table(head, body) + rules + plot


