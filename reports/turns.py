"""The raw rounds of `diagnose` and `fix`: every sample of every version, process by process, in the order of measuring."""

from __future__ import annotations

from perfscope import treatment as t
from perfscope.sections import COLOURS, GREY, escape, figure

TITLE = "Raw rounds"
ORDER = 80
KINDS = ("diagnose", "fix")
TINTS = [COLOURS[p] for p in ("optimizer", "base", "activation", "norm", "attention", "data", "embedding", "pooling", "loss", "dropout")]
SYMBOLS = ("circle", "square", "diamond", "cross", "x")


def series(run) -> dict[str, tuple]:
    """Name of the view -> processes, each a tuple of rounds."""
    if run.kind == "diagnose":
        return {"quick look": (run.rounds,)} if run.rounds else {}
    return {name: x.processes for name, x in t.trials(run) if any(x.processes)}


def scatter(processes: tuple) -> dict:
    """Seconds of every version over rounds; a marker's shape tells the process."""
    rounds = [(p, r) for p, own in enumerate(processes) for r in own]
    versions = list(dict.fromkeys(v for _, r in rounds for v in r.step_s))
    versions.sort(key=lambda v: v != t.BEFORE)
    data = []
    for i, v in enumerate(versions):
        have = [(n, p, r) for n, (p, r) in enumerate(rounds) if v in r.step_s]
        data.append({"type": "scatter", "mode": "markers", "name": escape(v), "x": [n + 1 for n, _, _ in have], "y": [r.step_s[v] * 1e3 for *_, r in have],
                     "marker": {"color": GREY if v == t.BEFORE else TINTS[(i - 1) % len(TINTS)], "size": 6,
                                "symbol": [SYMBOLS[p % len(SYMBOLS)] for _, p, _ in have]},
                     "customdata": [[p + 1, r.order.index(v) + 1 if v in r.order else 0] for _, p, r in have],
                     "hovertemplate": f"<b>{escape(v)}</b>, round %{{x}}, process %{{customdata[0]}}: %{{y:.4~g}} ms, "
                                      "ran as number %{customdata[1]}<extra></extra>"})
    return {"data": data, "layout": {"height": 360, "margin": {"t": 20}, "xaxis": {"title": {"text": "round", "standoff": 6}},
                                     "yaxis": {"title": {"text": "ms per step"}, "zeroline": False},
                                     "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}}}


def render(run) -> str:
    """One view per trial."""
    views = {name: scatter(processes) for name, processes in series(run).items()}
    if not views:
        return ""
    return figure(views if len(views) > 1 else next(iter(views.values())), "Samples over rounds",
                  "One point is one sample; versions take turns in random order within a round; shapes tell processes apart. None is deleted.")
