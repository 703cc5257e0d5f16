"""The article's chart beside the run's own: Myrtle, "How to train your ResNet 3", before and after its fix."""

from __future__ import annotations

from pathlib import Path

from perfscope import facts
from perfscope.record import Run, label, load
from perfscope.sections import GRID, colour, escape, figure, ordered, scaled, words

TITLE = "Beside the article"
ORDER = 35
IMAGES = 50_000  # of one CIFAR-10 epoch, the unit of the article's chart
MODELS = ("resnet9", "resnet18_cifar")
EXAMPLES = Path(facts.__file__).parent / "examples"


def epochs(run: Run, longest: float) -> dict:
    """The run as the article draws it: x = seconds per 50 000 images, y = batch size."""
    have, data = facts.known(run), []
    for part in facts.part_names(run):
        spans = [b.derived.parts[part].seconds.scaled(IMAGES / b.batch_size) for b in have if part in b.derived.parts]
        name = escape(label(run, part))
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "y": [str(b.batch_size) for b in have if part in b.derived.parts],
                "x": [s.point for s in spans],
                "marker": {"color": colour(part)},
                "customdata": [words(scaled(s, 1), "s") for s in spans],
                "hovertemplate": f"<b>{name}</b>, batch %{{y}}: %{{customdata}} per epoch<extra></extra>",
            }
        )
    floors = [b for b in have if b.derived.floor_s]
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "floor",
            "y": [str(b.batch_size) for b in floors],
            "x": [b.derived.floor_s * IMAGES / b.batch_size for b in floors],
            "hovertemplate": "floor: %{x:.3~g} s<extra></extra>",
            "marker": {
                "symbol": "line-ns",
                "size": 26,
                "color": "theme:text",
                "line": {"width": 2, "color": "theme:text"},
            },
        }
    )
    return {
        "data": data,
        "layout": {
            "barmode": "stack",
            "bargap": 0.25,
            "height": 70 + 36 * len(have),
            "showlegend": False,
            "hovermode": "closest",
            "xaxis": {"title": {"text": "epoch time, s"}, "range": [0, longest * 1.03], "gridcolor": GRID},
            "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False},
            "margin": {"t": 8, "b": 40},
        },
    }


def render(run: Run, article: bool | None = None) -> str:
    """Three charts with the same parts and colours; by default only for the models that the article is about."""
    wanted = run.workload.name in MODELS if article is None else article
    if not wanted or facts.published(run) or not facts.known(run):
        return ""
    before, after = (load(EXAMPLES / f"myrtle3_2018_{when}.json") for when in ("before", "after"))
    longest = {
        r.id: max(b.derived.step.point * IMAGES / b.batch_size for b in facts.known(r)) for r in (before, after, run)
    }
    both = max(longest[before.id], longest[after.id])
    drawn = [
        (
            "This run",
            run,
            longest[run.id],
            f"{run.workload.dtype}, {run.environment.device_name or run.environment.device}",
        ),
        ("The article, before the fix", before, both, "V100, PyTorch 0.4: half precision, batch norm weights too"),
        ("The article, after the fix", after, both, "batch norm weights back in float32"),
    ]
    panels = "".join(
        f"<div><h3>{escape(title)}</h3><p class=quiet>{escape(words)}</p>{figure(epochs(r, most), title)}</div>"
        for title, r, most, words in drawn
    )
    names = {p: label(r, p) for r in (before, run) for p in facts.part_names(r)}
    legend = " ".join(
        f'<span><i class="swatch" style="background:{colour(p)}"></i>{escape(names[p])}</span>' for p in ordered(names)
    )
    source = before.extra.get("published", "")
    return (
        f"<p>Seconds per 50 000 images, as in the article. Its model is the 64-128-256-256 pre-activation ResNet-18 "
        f"variant "
        f'(here: <code>resnet18_cifar</code>). {escape(source)}.</p><p class="legend">{legend} <span><b>|</b> '
        f'floor</span></p><div class="trio">{panels}</div>'
    )
