"""The time line of one step: GPU streams, idle time and its reasons, loading and annotations, operators. Zoomable."""

from __future__ import annotations

import json

import numpy as np

from perfscope.sections import GREY, escape, figure
from perfscope.trace.typical import main_device, middle, steady
from perfscope.trace.columns import ANNOTATION, CPU_OP, KERNEL, MEMCPY, MEMSET, RUNTIME, DRIVER, STEP
from perfscope.trace.host import link, threads
from perfscope.trace.names import kind
from perfscope.trace.nesting import nest
from perfscope.trace.steps import device, idle

TITLE = "Time line of one step"
ORDER = 10
KINDS = ("trace",)

LONGEST, MERGED = (
    3200,
    800,
)  # bars drawn as they are, and at most so many made of the rest: 4000 is what a browser zooms smoothly
LANE = 34  # pixels
MOST_LANES = 24  # the busiest streams and threads
COLOURS = {
    "convolution": "#0072B2",
    "matmul": "#56B4E9",
    "attention": "#CC79A7",
    "norm": "#E69F00",
    "layout": "#D55E00",
    "communication": "#F0E442",
    "optimizer": "#7A5C3A",
    "pooling": "#5D4A9C",
    "loss": "#A8BF5A",
    "reduction": "#8FB8A8",
    "elementwise": "#009E73",
    "other kernel": "#8C8C8C",
    "copy": "#B39DDB",
    "memset": "#90A4AE",
    "idle: host": "#C94F4F",
    "idle: launch": "#E8A0A0",
    "idle: stream": "#C98FB0",
    "idle: unexplained": "#D0C4C4",
    "loading": "#00838F",
    "annotation": "#9FB6CD",
    "operator": "#B7C4A1",
    "waiting call": "#A1574F",
    "merged": GREY,
}
REASONS = {
    "host": "waiting for the host",
    "launch": "launch gap",
    "stream": "waiting for another stream",
    "unknown": "its launch is not in the trace",
}


class _Exact(dict):
    """A figure whose times keep their nanoseconds: `sections.figure` rounds floats to six digits."""

    def to_json(self, engine=None) -> str:
        return json.dumps(self, allow_nan=False, separators=(",", ":"))


def bars(view, low: int, high: int) -> list[tuple[str, str, str, np.ndarray, np.ndarray, np.ndarray, list[str]]]:
    """Everything that touches [low, high): (lane, start, end, colour's name, text) as columns, clipped to it, one tuple per
    lane and colour: (lane, colour, order, start, end, index into names, names)."""
    rank, e = view.columns, view.columns.events
    end = e.ts_ns + e.dur_ns
    inside = (e.ts_ns < high) & (end > low) & (e.dur_ns > 0)
    out = []

    def put(lane, colour, order, rows):
        if len(rows):
            out.append(
                (
                    lane,
                    colour,
                    order,
                    np.maximum(e.ts_ns[rows], low),
                    np.minimum(end[rows], high),
                    e.name[rows].astype(np.int64),
                    rank.names,
                )
            )

    kinds = [kind(n).category for n in rank.names]
    category = np.array([c if c in COLOURS else "other kernel" for c in kinds] or [""], object)
    gpu = np.flatnonzero(inside & ((e.cat == KERNEL) | (e.cat == MEMCPY) | (e.cat == MEMSET)))
    for number in sorted(set(e.device[gpu].tolist())):
        on = gpu[e.device[gpu] == number]
        for stream in sorted(set(e.stream[on].tolist())):
            rows = on[e.stream[on] == stream]
            colour = np.where(
                e.cat[rows] == KERNEL, category[e.name[rows]], np.where(e.cat[rows] == MEMCPY, "copy", "memset")
            )
            for c in sorted(set(colour.tolist())):
                put(f"GPU {number} stream {stream}", c, (0, number, stream), rows[colour == c])
        out += _idle(view, int(number), low, high)
    out += _host(view, inside, low, high)
    return out


def _idle(view, number: int, low: int, high: int) -> list:
    """The idle lane of one device, by reason."""
    rank, e = view.columns, view.columns.events
    links = link(rank)
    mine = np.flatnonzero(e.device[links.gpu] == number)
    called = np.where(links.call[mine] >= 0, e.ts_ns[np.maximum(links.call[mine], 0)], -1)
    d = device(rank, number, links.gpu[mine], np.array([kind(n).communication for n in rank.names], bool))
    why = idle(rank, d, called, low, high)
    return [
        (
            f"GPU {number} idle",
            f"idle: {'unexplained' if k == 'unknown' else k}",
            (1, number, 0),
            u.start,
            u.end,
            np.zeros(len(u.start), np.int64),
            [REASONS[k]],
        )
        for k, u in why.items()
        if len(u.start)
    ]


def _host(view, inside, low: int, high: int) -> list:
    """Loading, annotations, outermost operators and calls that wait, by thread."""
    from perfscope.trace.analysis import LOADERS
    from perfscope.trace.tables import SYNCS

    rank, e = view.columns, view.columns.events
    names = rank.names
    load, step, waits = (
        np.array([bool(f(n)) for n in names], bool)
        for f in (LOADERS.search, lambda n: n.startswith(STEP), SYNCS.search)
    )
    groups = [
        ("loading", "loading", 2, inside & load[e.name] & ((e.cat == ANNOTATION) | (e.cat == CPU_OP))),
        ("annotations", "annotation", 3, inside & (e.cat == ANNOTATION) & ~load[e.name] & ~step[e.name]),
        ("operators", "operator", 4, inside & (e.cat == CPU_OP) & ~load[e.name] & ~step[e.name]),
        ("waiting calls", "waiting call", 5, inside & waits[e.name] & ((e.cat == RUNTIME) | (e.cat == DRIVER))),
    ]
    out = []
    for lane, colour, order, mask in groups:
        rows = np.flatnonzero(mask)
        if not len(rows):
            continue
        made = nest(rows, threads(rank, rows), e.ts_ns[rows], e.ts_ns[rows] + e.dur_ns[rows])
        top = made.rows[made.parent < 0]  # what is inside another one would lie over it
        who = threads(rank, top)
        for i, thread in enumerate(sorted(set(who.tolist()))):
            mine = top[who == thread]
            out.append(
                (
                    f"{lane}{f' {i + 1}' if i else ''}",
                    colour,
                    (order, i, 0),
                    np.maximum(e.ts_ns[mine], low),
                    np.minimum(e.ts_ns[mine] + e.dur_ns[mine], high),
                    e.name[mine].astype(np.int64),
                    names,
                )
            )
    return out


def draw(view, step) -> tuple[_Exact, str]:
    """(the figure of one step, what its caption says about merged bars)."""
    low, high = step.start_ns, step.start_ns + step.duration_ns
    found = bars(view, low, high)
    busy: dict[str, int] = {}
    for lane, _, _, start, end, *_ in found:
        busy[lane] = busy.get(lane, 0) + int((end - start).sum())
    order = {lane: o for lane, _, o, *_ in found}
    kept = set(sorted(busy, key=lambda k: -busy[k])[:MOST_LANES])
    left_out = len(busy) - len(kept)
    found = [g for g in found if g[0] in kept]
    lengths = np.concatenate([g[4] - g[3] for g in found]) if found else np.zeros(0, np.int64)
    limit = int(np.sort(lengths)[-LONGEST]) if len(lengths) > LONGEST else 0
    spare = LONGEST - int((lengths > limit).sum())  # of those exactly as long as the limit, the first ones
    traces: dict[str, dict] = {}

    def add(colour, lane, start, end, text):
        t = traces.setdefault(
            colour,
            {
                "type": "bar",
                "orientation": "h",
                "name": colour,
                "x": [],
                "base": [],
                "y": [],
                "customdata": [],
                "width": 0.8,
                "marker": {"color": COLOURS[colour], "line": {"width": 0}},
                "hovertemplate": "%{customdata}<br>from %{base:.6~f} ms, %{x:.6~f} ms<extra></extra>",
            },
        )
        (
            t["base"].append((start - low) / 1e6),
            t["x"].append((end - start) / 1e6),
            t["y"].append(lane),
            t["customdata"].append(text),
        )

    rest: dict[str, list] = {}
    for lane, colour, _, start, end, name, names in found:
        for a, b, n in zip(start.tolist(), end.tolist(), name.tolist()):
            if b - a > limit or (b - a == limit and spare > 0):
                spare -= b - a == limit
                add(colour, lane, a, b, str(escape(names[n][:90])))
            else:
                rest.setdefault(lane, []).append((a, b))
    merged = sum(len(v) for v in rest.values())
    bins = max(MERGED // max(len(rest), 1), 1)
    drawn = 0
    for lane, short in rest.items():
        groups: dict[int, list] = {}
        for a, b in short:
            groups.setdefault((a - low) * bins // max(high - low, 1), []).append((a, b))
        for group in groups.values():
            a, b = min(g[0] for g in group), max(g[1] for g in group)
            add(
                "merged",
                lane,
                a,
                b,
                f"{len(group)} short ones, {sum(g[1] - g[0] for g in group) / 1e6:.6f} ms together",
            )
            drawn += 1
    if "merged" in traces:
        traces["merged"]["marker"]["opacity"] = 0.35
    lanes = sorted(kept, key=lambda k: order[k])
    data = sorted(
        traces.values(), key=lambda t: (t["name"] != "merged", list(COLOURS).index(t["name"]))
    )  # merged ones lie behind
    said = f"{sum(len(t['x']) for t in data)} bars."
    if merged:
        said += f" The {LONGEST} longest are drawn; {merged} of at most {limit / 1e3:.3f} µs are merged into {drawn} pale ones."
    if left_out:
        said += f" {left_out} lanes with the least in them are left out."
    layout = {
        "barmode": "overlay",
        "bargap": 0.1,
        "height": 150 + LANE * max(len(lanes), 2),
        "hovermode": "closest",
        "xaxis": {
            "title": {"text": f"ms since the start of {escape(step.name)}"},
            "range": [0, step.duration_ns / 1e6],
            "minallowed": 0,
            "maxallowed": step.duration_ns / 1e6,
            "fixedrange": False,
        },
        "yaxis": {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": lanes,
            "range": [len(lanes) - 0.5, -0.5],
            "fixedrange": True,
            "showgrid": False,
        },
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"t": 20},
    }
    return _Exact(data=data, layout=layout), said


def render(view) -> str:
    """The median step, and the longest where it is another one. "" for a trace without steps."""
    steps, _ = steady(view.rank)
    if not steps or not max(s.duration_ns for s in steps):
        return ""
    every = [s for s in view.rank.steps if s.device == main_device(view.rank)]
    wanted = {"median step": middle(steps)[0], "longest step": max(every, key=lambda s: s.duration_ns)}
    if wanted["longest step"] == wanted["median step"] or len(every) < 3:
        del wanted["longest step"]
    made = {f"{k}, {s.name}": draw(view, s) for k, s in wanted.items()}
    views = {k: f for k, (f, _) in made.items()}
    said = " ".join(f"{k}: {t}" for k, (_, t) in made.items())
    return figure(
        views if len(views) > 1 else next(iter(views.values())),
        "Time line of one step",
        f"Drag to zoom, double-click to see all; a click in the legend hides a kind. {said}",
    )
