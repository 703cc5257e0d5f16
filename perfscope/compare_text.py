"""A Comparison as text: `to_terminal` (80 columns), `to_markdown` (for a pull request), `to_json`. No torch, nothing printed."""

from __future__ import annotations

import json
import math
import shlex

from perfscope import registry
from perfscope.compare import BatchChange, Changed, Comparison
from perfscope.measure import digits, stats
from perfscope.measure.stats import Interval
from perfscope.record import BASE, Warned, to_dict
from perfscope.sections import DASH, figures, ordered, percent, plain, scaled, share, words

SCHEMA = "perfscope/comparison/1"
COLOURS = {"FASTER": "32", "SLOWER": "31", "UNCLEAR": "33"}
MARKS = {"FASTER": "🟢", "SLOWER": "🔴", "SAME": "⚪", "UNCLEAR": "🟡"}
MEANINGS = {
    "FASTER": "B is faster at one batch size or more, and slower at none",
    "SLOWER": "B is slower at one batch size or more",
    "SAME": "no change that matters",
    "UNCLEAR": "not measured well enough to tell"}
CANARY_WORTH_SAYING = 0.01      # a yardstick that moved by this much is shown


def to_json(c: Comparison) -> str:
    """Everything that is known, with its words; numbers in full, ln-ratios as they are; what is unknown is null."""
    return json.dumps({"schema": SCHEMA, "word": None if c.shares_only else c.word, **to_dict(c)}, indent=1, allow_nan=False)


# ---------------------------------------------------------------- the same texts for both

def ratio(change: Interval | None) -> tuple[str, str]:
    """(change of the step time in per cent, its interval) of an interval of ln(b/a), with the digits that it supports."""
    if change is None or not math.isfinite(change.point):
        return DASH, ""
    if not math.isfinite(change.half_width):
        return f"~{_signed(100 * math.expm1(change.point), 0)} %", DASH
    point, low, high = (100 * math.expm1(x) for x in (change.point, change.low, change.high))
    places = max(0, digits.decimals((high - low) / 2, 2))       # the ends get one digit more: they decide
    return f"{_signed(point, places)} %", f"{_signed(low, places + 1)} to {_signed(high, places + 1)}"


def _signed(value: float, places: int) -> str:
    text = f"{round(value, places) + 0.0:+.{max(0, places)}f}"
    return text if text.strip("+-0.") else text[1:]


def difference(interval: Interval | None, scale: float) -> str:
    """A difference times `scale`, with its sign and half-width: "+1.2 ±0.3"."""
    if interval is None or not math.isfinite(interval.point):
        return DASH
    half = interval.half_width * scale
    if not math.isfinite(half):
        return f"~{_signed(interval.point * scale, 1)}"
    places = max(0, digits.decimals(half, 2)) if scale == 100 else digits.decimals(half, 3)
    up = math.ceil(half * 10 ** places - 1e-9) / 10 ** places
    return f"{_signed(interval.point * scale, places)} ±{up:.{max(0, places)}f}"


def title(c: Comparison) -> str:
    """The workload, and the device if it is the same one."""
    return f"{plain(c.workload)} on {plain(c.a.device_name or c.a.device)}" if not c.shares_only else plain(c.workload)


def legend(c: Comparison) -> list[str]:
    """What A and B are."""
    other = [f", {x.device_name or x.device}" if c.shares_only else "" for x in (c.a, c.b)]
    return [f"{name}: {plain(x.id)}{plain(more)}" + (f" ({plain(x.started_utc)})" if x.started_utc else "")
            for name, x, more in (("A", c.a, other[0]), ("B", c.b, other[1]))]


def setting(x: Changed) -> str:
    """One setting that differs: "dtype: float32 → half"."""
    show = lambda v: DASH if v is None else ("yes" if v else "no") if isinstance(v, bool) else plain(v)  # noqa: E731
    return f"{plain(x.what)}: {show(x.a)} → {show(x.b)}"


def sentence(c: Comparison) -> str:
    """The verdict in one sentence."""
    if c.shares_only:
        return f"No verdict on speed: {plain(c.shares_only)}. Shares, efficiency and times in units of the canary are comparable, milliseconds are not."
    worst = _worst(c)
    if c.word == "UNCLEAR":
        settle = worst.verdict.rounds_to_settle
        more = f"; about {settle} rounds would settle it" if settle else ""
        return f"UNCLEAR at batch {worst.batch_size}: {plain(worst.verdict.reason)}{more}."
    point, span = ratio(worst.change)
    at = f"at batch {worst.batch_size} the step takes {point.lstrip('+-')} {'longer' if worst.change.point > 0 else 'less'} ({span} %)"
    return f"SAME: {MEANINGS['SAME']}, that is {100 * c.smallest:g} % or more." if c.word == "SAME" else f"{c.word}: {at}."


def _worst(c: Comparison) -> BatchChange:
    """The batch size that the sentence is about: of those with its word, the one that changed most."""
    return max(c.batches, key=lambda b: (b.verdict.word == c.word, abs(b.change.point) if math.isfinite(b.change.point) else 0))


def unclear(c: Comparison) -> list[str]:
    """Why each batch size that is UNCLEAR is; the one of the sentence is left out."""
    said = _worst(c) if c.word == "UNCLEAR" and not c.shares_only else None
    return [f"batch {b.batch_size} is unclear: {b.verdict.reason}" for b in c.batches if b.verdict and b.verdict.word == "UNCLEAR" and b is not said]


def focus(c: Comparison) -> BatchChange:
    """The batch size whose parts are shown first: where the step changed most, or the largest one."""
    return max(c.batches, key=lambda b: (abs(b.change.point) if b.change and math.isfinite(b.change.point) else 0, b.batch_size))


def part_rows(c: Comparison, b: BatchChange) -> list[list[str]]:
    """part, share of A, share of B, change in points, change in ms."""
    name = lambda p: plain(c.base_label) if p == BASE else plain(p)  # noqa: E731
    return [[name(p), words(share(x.share_a)), words(share(x.share_b)), difference(x.share, 100), difference(x.seconds, 1e3)]
            for p, x in ((p, b.parts[p]) for p in ordered(b.parts))]


def unit_rows(c: Comparison) -> list[list[str]]:
    """batch, efficiency of A and B, and the step in times of each canary: what two machines may be compared by."""
    pct = lambda x: percent(x) if x and math.isfinite(x) else DASH  # noqa: E731
    count = lambda x: words(scaled(x, 1)) if math.isfinite(x.point) else DASH  # noqa: E731
    return [[str(b.batch_size), pct(b.efficiency_a), pct(b.efficiency_b),
             *(count(x) for n in ("matmul", "copy") for x in b.in_canaries.get(n, (stats.unknown(),) * 2))] for b in c.batches]


def canary_words(c: Comparison) -> list[str]:
    """What the yardstick did between the two runs, where it moved."""
    out = []
    for b in c.batches:
        moved = [f"{plain(n)} {ratio(x)[0]}" for n, x in b.canary.items() if abs(x.point) > CANARY_WORTH_SAYING]
        out += [f"canary at batch {b.batch_size}: {', '.join(moved)} from A to B (the same work in both: the machine, or a setting)"] if moved else []
    return out


def missing(c: Comparison) -> list[str]:
    """The batch sizes that only one of the runs has."""
    return [f"only in {name}: batch {', '.join(map(str, sizes))}" for name, sizes in (("A", c.only_a), ("B", c.only_b)) if sizes]


# ---------------------------------------------------------------- terminal

def to_terminal(c: Comparison, color: bool = False, next_command: str = "") -> str:
    """The comparison in lines of at most 80 columns; ANSI colours only with `color`."""
    t = registry.load("reports", "terminal")
    paint = (lambda code, text: f"\x1b[{code}m{text}\x1b[0m") if color else (lambda code, text: text)
    lines = [*t.wrap(title(c)), *(x for text in legend(c) for x in t.wrap(text, "", "   "))]
    lines += ["", *t.wrap("what changed:")] if c.changed else ["", "what changed: nothing that the records know of"]
    lines += [x for s in c.changed for x in t.wrap(setting(s), "  ", "    ")]
    lines.append("")
    if c.shares_only:
        lines += grid(t, ["batch", "eff. A", "eff. B", "mm A", "mm B", "copy A", "copy B"], unit_rows(c))
        lines += ["eff.: floor/step; mm, copy: the step's time in canary matmuls and copies"]
    else:
        rows = [[str(b.batch_size), words(scaled(b.step_a)), words(scaled(b.step_b)), *ratio(b.change), b.verdict.word] for b in c.batches]
        table = grid(t, ["batch", "A ms", "B ms", "change", "95 % interval", "verdict"], rows)
        lines += [table[0], *(paint(COLOURS.get(b.verdict.word, "0"), line) for b, line in zip(c.batches, table[1:]))]
    b = focus(c)
    more = "" if c.shares_only else "; the change also in ms (± from round to round)"
    lines += ["", *t.wrap(f"parts at batch {b.batch_size}, in % of the step{more}")]
    rows = part_rows(c, b) if not c.shares_only else [row[:4] for row in part_rows(c, b)]
    lines += grid(t, ["part", "A %", "B %", "points", "ms"][:len(rows[0])], rows)
    lines += ["", *(paint("1", x) for x in t.wrap(sentence(c)))]
    lines += [x for text in unclear(c) for x in t.wrap(text, "  ", "    ")]
    for text in [*canary_words(c), *missing(c)]:
        lines += t.wrap(text, "  ", "    ")
    for w in c.notes:
        lines += ["", *t.wrap(f"{w.code}: {w.text}", "", "  "), *(t.wrap(_hint(c, w), "  → ", "    ") if w.hint else [])]
    last = next_command or shlex.join(["perfscope", "report", plain(c.a.path), plain(c.b.path)])
    return "\n".join(x.rstrip() for x in [*lines, "", *t.wrap(f"next: {last}", "", "  ")]) + "\n"


def _hint(c: Comparison, w: Warned) -> str:
    return w.hint.replace("report A", f"report {c.a.path}").replace("report B", f"report {c.b.path}")


def grid(t, head: list[str], rows: list[list[str]]) -> list[str]:
    """A table in at most 80 columns: the first column left, the others right; if it is too wide, the first one is cut."""
    widths = [max(t.width(row[i]) for row in [head, *rows]) for i in range(len(head))]
    widths[0] = max(5, min(widths[0], t.WIDTH - sum(w + 2 for w in widths[1:])))
    line = lambda row: "  ".join([_pad(t, t.cut(row[0], widths[0]), widths[0]),  # noqa: E731
                                  *(" " * (w - t.width(x)) + x for x, w in zip(row[1:], widths[1:]))])
    return [t.cut(line(row), t.WIDTH) for row in [head, *rows]]


def _pad(t, text: str, columns: int) -> str:
    return text + " " * (columns - t.width(text))


# ---------------------------------------------------------------- markdown

def to_markdown(c: Comparison) -> str:
    """The comparison for a pull request: verdict first, tables, and what to mistrust. Text of the records is escaped."""
    m = registry.load("reports", "markdown")
    word = "" if c.shares_only else f"{MARKS[c.word]} "
    blocks = [f"### {word}{m.escape(title(c))}", f"**{m.escape(sentence(c))}**", "\n".join(f"- {m.escape(x)}" for x in legend(c))]
    if c.shares_only:
        head = ["batch", "efficiency A", "efficiency B", "step in matmuls A", "B", "step in copies A", "B"]
        blocks.append(m.table(head, unit_rows(c)))
    else:
        span = lambda b: ratio(b.change)[1].replace(DASH, "")  # noqa: E731
        rows = [[str(b.batch_size), words(scaled(b.step_a)), words(scaled(b.step_b)), ratio(b.change)[0],
                 f"{span(b)} %" if span(b) else DASH, f"{MARKS[b.verdict.word]} **{b.verdict.word}**"] for b in c.batches]
        blocks.append(m.table(["batch", "A, ms", "B, ms", "change", "95 % interval", "verdict"], rows))
        blocks.append("\n".join(f"- {m.escape(x)}" for x in unclear(c)))
    settings = "\n".join(f"- {m.escape(setting(x))}" for x in c.changed) or "- nothing that the records know of"
    blocks += ["What changed:\n\n" + settings]
    for b in c.batches:
        rows = [[m.escape(row[0]), *row[1:4 if c.shares_only else 5]] for row in part_rows(c, b)]
        head = ["part", "A, %", "B, %", "change, points", "change, ms"][:len(rows[0])]
        blocks.append(f"<details><summary>Parts at batch {b.batch_size}</summary>\n\n{m.table(head, rows)}\n\n</details>")
    blocks.append("\n".join(f"- {m.escape(x)}" for x in [*canary_words(c), *missing(c)]))
    blocks.append("\n".join(f"- **{m.escape(w.code)}**: {m.escape(w.text)}" for w in c.notes))
    how = "" if c.shares_only else (f" Changes below {figures(100 * c.smallest, 2)} % do not matter; verdicts are corrected for the number of "
                                    "batch sizes (Holm); the ± of milliseconds holds no drift, the interval of the change does.")
    blocks.append(f"<sub>± and intervals are 95 %.{how}</sub>")
    return "\n\n".join(x for x in blocks if x) + "\n"
