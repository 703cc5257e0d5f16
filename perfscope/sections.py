"""What a section of a report may use: numbers with their digits, escaping, colours, tables and figures.

A section imports this module, `perfscope.facts`, the record and nothing else of perfscope; never torch.
Figures are plotly figures, given as plain dictionaries (or as `plotly.graph_objects.Figure`): plotly itself is
only needed to draw them, by the bundle that the page carries.
"""

from __future__ import annotations

import html
import json
import math
import re
import unicodedata
import zlib
from base64 import b85encode
from dataclasses import dataclass

from perfscope.measure import digits
from perfscope.measure.stats import Interval
from perfscope.record import BASE, PARTS

#: One colour per part, the same in every figure. Those that share a chart most often are the colour-blind-safe
#: set of Okabe and Ito (Color Universal Design, 2008); the rarer four keep a distance from them in lightness.
COLOURS = {
    BASE: "#0072B2",
    "norm": "#E69F00",
    "activation": "#009E73",
    "attention": "#CC79A7",
    "optimizer": "#D55E00",
    "data": "#56B4E9",
    "communication": "#F0E442",
    "dropout": "#8C8C8C",
    "pooling": "#7A5C3A",
    "embedding": "#5D4A9C",
    "loss": "#A8BF5A",
}
GREY = "#9AA0A6"
DASH = "–"  # nothing was measured
EVERY = "*"  # in a section's KINDS: for every kind of record

#: Colours that the page fills in, so that a figure follows light and dark mode.
TEXT, MUTED, GRID, GROUND = "theme:text", "theme:muted", "theme:grid", "theme:ground"


class Html(str):
    """Markup that is already safe; every other string is escaped where it is shown."""


@dataclass(frozen=True)
class Rows:
    """A small table in text, for every format: titles, then rows of as many texts. The first column is a name."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Item:
    """One thing of several, for every format: its title, paragraphs under it, and code, kept as it is."""

    title: str
    text: tuple[str, ...] = ()
    code: str = ""


# ---------------------------------------------------------------- text


def plain(text) -> str:
    """Text without control characters, line breaks and lone surrogates: nothing can steer a terminal or a page."""
    text = " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split())
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn") else c for c in text
    )


def code_lines(text) -> list[str]:
    """The lines of some code, each made plain, with its indentation."""
    return [" " * (len(line) - len(line.lstrip())) + plain(line) for line in str(text).rstrip().splitlines()]


def escape(text) -> Html:
    """Text, made safe for HTML content and attributes, and for plotly's labels (which read tags and entities)."""
    return text if isinstance(text, Html) else Html(html.escape(plain(text)))


def slug(text) -> str:
    """A name that is safe as an anchor or a file name: letters, digits, dot, dash, underscore; at most 60."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(text)).strip("-.")[:60] or "run"


# ---------------------------------------------------------------- numbers


def share(interval: Interval | None) -> tuple[str, str]:
    """A share as (per cent, plus-minus) with only the digits that it supports, by the rule of `digits.format_share`."""
    return _pair(digits.format_share(interval, error=interval.half_width > 0)) if interval else (DASH, "")


def scaled(interval: Interval | None, scale: float = 1e3) -> tuple[str, str]:
    """A quantity times `scale` (1e3: seconds to ms) as (point, plus-minus), by the rule of `digits.format_ms`."""
    return (
        _pair(digits.format_ms(interval.scaled(scale / 1e3), error=interval.half_width > 0)) if interval else (DASH, "")
    )


def _pair(text: str) -> tuple[str, str]:
    point, _, half = text.removesuffix(" %").partition(" ±")
    return (DASH if point == "-" else point), half


def words(pair: tuple[str, str], unit: str = "") -> str:
    """What `share` or `scaled` gave, in words: "13.1 ±0.3 %"; a dash if there is nothing."""
    point, half = pair
    return point if point == DASH else " ".join(filter(None, [point, half and f"±{half}", unit]))


def change(fraction: float | None) -> str:
    """The smallest change that a run can see: "0.4 %", rounded up."""
    return DASH if fraction is None or not math.isfinite(fraction) else digits.format_change(fraction)


def figures(value: float, n: int = 3) -> str:
    """A number without an interval, to n significant figures and never in exponent form below 1e15."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(abs(value))) - n + 1)
    return _fixed(round(value / step) * step, max(0, -round(math.log10(step))))


def _fixed(value: float, places: int) -> str:
    text = f"{value:.{places}f}"
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text


def percent(value: float | None, n: int = 2) -> str:
    """A fraction as a percentage: 0.114 -> "11 %"."""
    return DASH if value is None or not math.isfinite(value) else f"{figures(value * 100, n)} %"


def amount(value: float | None, unit: str, base: int = 1000) -> str:
    """A large number with its prefix: 2.27e9, "FLOP" -> "2.27 GFLOP"; base 1024 writes KiB, MiB, GiB."""
    if value is None or not math.isfinite(value):
        return DASH
    prefixes = ("", "k", "M", "G", "T", "P") if base == 1000 else ("", "Ki", "Mi", "Gi", "Ti", "Pi")
    power = min(int(math.log(abs(value), base)), 5) if abs(value) >= base else 0
    return f"{figures(value / base**power)} {prefixes[power]}{unit}"


def lengths(seconds: list[float]) -> tuple[float, str]:
    """(scale, unit) that shows these times without a forest of zeros: microseconds, milliseconds or seconds."""
    top = max((s for s in seconds if math.isfinite(s)), default=0.0)
    return (1e6, "µs") if top < 2e-3 else (1e3, "ms") if top < 20 else (1.0, "s")


# ---------------------------------------------------------------- markup


def cell(value, sort: float | str | None = None, note: str = "") -> Html:
    """One table cell. A pair (point, plus-minus) of `share` or `scaled` is set with a quiet plus-minus."""
    if isinstance(value, tuple):
        value = Html(f"{escape(value[0])}" + (f" <small>±{escape(value[1])}</small>" if value[1] else ""))
    key = "" if sort is None else f' data-v="{escape(sort)}"'
    return Html(f"<td{key}{' title=' + chr(34) + escape(note) + chr(34) if note else ''}>{escape(value)}</td>")


def table(head, rows, caption: str = "", sortable: bool = True, words=()) -> Html:
    """A table; `head` are titles, rows hold text or what `cell` made. It scrolls inside its own frame on a phone.

    `words`: columns (from 0, up to the tenth) that hold text and stand on the left; the first always does.
    """
    kind = " ".join(["sortable" if sortable else "still", *(f"word{i + 1}" for i in words if i)])
    heads = "".join(
        f'<th scope="col">{f"<button type=button>{escape(h)}</button>" if sortable else escape(h)}</th>' for h in head
    )
    body = "".join(
        "<tr>" + "".join(c if isinstance(c, Html) and c.startswith("<td") else cell(c) for c in row) + "</tr>"
        for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return Html(
        f'<div class="frame"><table class="{kind}">{title}'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def code_html(text) -> Html:
    """Code as it is, with a button that copies it; "" if there is none."""
    body = "\n".join(html.escape(line) for line in code_lines(text))
    return Html(f'<div class="command"><pre><code>{body}</code></pre><button type="button" class="copy">copy</button></div>' if body else "")


def blocks_html(blocks) -> Html:
    """Paragraphs (`str`), tables (`Rows`) and items (`Item`) as HTML."""
    def one(b):
        if isinstance(b, Item):
            return f"<h3>{escape(b.title)}</h3>" + "".join(f"<p>{escape(t)}</p>" for t in b.text) + code_html(b.code)
        return table(b.head, b.rows) if isinstance(b, Rows) else f"<p>{escape(b)}</p>"
    return Html("".join(map(one, blocks)))


def pairs(values: dict) -> Html:
    """A definition list of names and values, for constants and versions. Nested values are shown as JSON."""
    rows = ((k, v if isinstance(v, (str, Html)) else json.dumps(v, default=str)) for k, v in values.items())
    return Html(
        '<dl class="pairs">'
        + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in rows)
        + "</dl>"
    )


def details(title: str, body: str) -> Html:
    """Something that is folded away until it is asked for."""
    return Html(f"<details><summary>{escape(title)}</summary>{body}</details>") if body else Html("")


def per_batch(panels: dict[int, str], chosen: int) -> Html:
    """One panel per batch size and a selector; all selectors of a page move together."""
    if not panels:
        return Html("")
    chosen = chosen if chosen in panels else next(iter(panels))
    buttons = "".join(
        f'<button type="button" data-batch="{b}" aria-pressed="{str(b == chosen).lower()}">{b}</button>' for b in panels
    )
    parts = "".join(
        f'<div class="panel" data-batch="{b}"{"" if b == chosen else " hidden"}>{p}</div>' for b, p in panels.items()
    )
    selector = f'<div class="segments batch" role="group" aria-label="batch size"><span>batch</span>{buttons}</div>'
    return Html(f'<div class="batches">{selector}{parts}</div>')


def embed(value) -> Html:
    """JSON that is safe inside a <script> element: no "<", no "&", so no end tag and no comment can appear."""
    text = value if isinstance(value, str) else json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Html(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def pack(text: str) -> Html:
    """Text, deflated, in base 85 (a sixteenth smaller than base 64), for the page's script to unpack.

    The alphabet is RFC 1924's with "," for "<", so that nothing in it can look like markup.
    """
    return Html(b85encode(zlib.compress(text.encode("utf-8", "replace"), 9)).replace(b"<", b",").decode())


def _figure_json(figure) -> str:
    if hasattr(figure, "to_json"):  # a plotly Figure; NumPy columns become typed arrays
        return figure.to_json(engine="json")
    return json.dumps(_drawn(figure), allow_nan=False, separators=(",", ":"))


def _drawn(value):
    """JSON has no NaN: a gap is null. Six digits are more than a screen shows; the record keeps them all."""
    if isinstance(value, dict):
        return {k: _drawn(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_drawn(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def figure(views, title: str, caption: str = "") -> Html:
    """A plotly figure as markup. `views` is one figure, or {name of the view: figure} for a switch above it.

    The page draws it when it comes into sight. `title` is what a screen reader says. The height is the layout's.
    """
    if hasattr(views, "to_json") or "data" in views:
        views = {"": views}
    height = max(
        (f["layout"].get("height", 320) if isinstance(f, dict) else f.layout.height or 320) for f in views.values()
    )
    stored = ",".join(f"{json.dumps(str(name))}:{_figure_json(f)}" for name, f in views.items())
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Html(
        f'<figure class="plot" aria-label="{escape(title)}"><div class="canvas" style="min-height:{int(height)}px">'
        f'</div>{note}<script type="application/json">{embed("{" + stored + "}")}</script></figure>'
    )


def bar_layout(rows: list[str], axis: str, title: str = "batch size", row: int = 40, notes: dict[int, str] | None = None, **more) -> dict:
    """The layout of horizontal bars: one row of `row` pixels per name, the first on top; `notes`: row -> text where there is no bar."""
    annotations = [
        {"y": i, "x": 0, "text": f" {escape(text)}", "showarrow": False, "xanchor": "left", "font": {"color": MUTED}}
        for i, text in (notes or {}).items()
    ]
    return {
        "height": 100 + row * len(rows),
        "annotations": annotations,
        "xaxis": {"title": {"text": axis}, "rangemode": "tozero"},
        "yaxis": {
            "type": "category",
            "title": {"text": title, "standoff": 12},
            "categoryorder": "array",
            "categoryarray": rows,
            "range": [len(rows) - 0.5, -0.5],
            "showgrid": False,
        },
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"t": 20},
        **more,
    }


def contrast(colour: str) -> str:
    """Black or white, whichever is easier to read on the colour (relative luminance of WCAG 2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return "#000000" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.2 else "#FFFFFF"


def colour(part: str) -> str:
    """The colour of a part, the same everywhere; parts that nobody planned are grey."""
    return COLOURS.get(part, GREY)


def ordered(parts) -> list[str]:
    """Parts in ladder order, the base first; unknown ones at the end."""
    known = [BASE, *PARTS]
    return sorted(parts, key=lambda p: (known.index(p) if p in known else len(known), p))
