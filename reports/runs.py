"""Every run of a speedrun: the arms in one table, each run's accuracy and time, each run's curve."""

from __future__ import annotations

from perfscope.speedruns import words as said
from perfscope.sections import COLOURS, Html, Rows, blocks_html, cell, details, escape, figure, table

TITLE = "The runs"
ORDER = 50
KINDS = ("speedrun",)
MOST = 60  # curves of one figure; more lines than that are one grey cloud
TINTS = list(COLOURS.values())


def text(record) -> list[str | Rows]:
    """One row per arm; a certificate and a ladder have said it already."""
    return [said.summary(record)] if record.mode in ("ablation", "confirm") and any(record.results) else []


def curves(record) -> dict:
    """Training loss over epochs, a line per run, spread evenly over the arms."""
    data, each = [], max(1, MOST // max(1, len(record.arms)))
    for i, a in enumerate(record.arms):
        for n, r in enumerate([r for r in record.of(i) if r.curve][:each]):
            data.append({"type": "scatter", "mode": "lines", "name": escape(a.name), "legendgroup": str(i), "showlegend": n == 0,
                         "x": [p[0] for p in r.curve], "y": [p[1] for p in r.curve], "line": {"color": TINTS[i % len(TINTS)], "width": 1}, "opacity": 0.6,
                         "hovertemplate": f"seed {r.seed}, epoch %{{x:.3~g}}: %{{y:.4~g}}<extra></extra>"})
    return {"data": data, "layout": {"height": 380, "xaxis": {"title": {"text": "epoch"}}, "yaxis": {"type": "log", "title": {"text": "training loss"},
            "tickformat": "~g"}, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, "margin": {"t": 20, "l": 80}}}


def dots(record) -> dict:
    """Accuracy against time, a dot per run."""
    data = [{"type": "scatter", "mode": "markers", "name": escape(a.name), "x": [record.seconds(r) for r in record.of(i)],
             "y": [100 * r.accuracy for r in record.of(i)], "text": [f"seed {r.seed}" for r in record.of(i)],
             "marker": {"color": TINTS[i % len(TINTS)], "size": 7, "opacity": 0.75},
             "hovertemplate": "%{text}: %{x:.3~f} s, %{y:.2f} %<extra></extra>"} for i, a in enumerate(record.arms) if record.of(i)]
    return {"data": data, "layout": {"height": 380, "xaxis": {"title": {"text": f"seconds ({said.clock(record)})"}},
            "yaxis": {"title": {"text": "accuracy, %"}}, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, "margin": {"t": 20, "l": 80}}}


def render(record) -> str:
    """Table, the two figures, and every run as it was."""
    if not record.runs:
        return ""
    body = [[cell(record.arms[r.arm].name), cell(r.seed, r.seed), cell(f"{100 * r.accuracy:.2f}", r.accuracy), cell(f"{r.wall_s:.3f}", r.wall_s),
             cell(f"{r.cpu_s:.3f}", r.cpu_s), cell(f"{r.epochs:g}", r.epochs)] for r in record.runs]
    views = {"accuracy and time": dots(record), **({"curves": curves(record)} if any(r.curve for r in record.runs) else {})}
    every = details(f"All {len(record.runs)} runs", table(["arm", "seed", "accuracy %", "wall s", "CPU s", "epochs"], body))
    return Html(figure(views, "Every run") + blocks_html([said.summary(record)]) + every)
