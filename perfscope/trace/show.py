"""Blocks as text: `terminal` (80 columns) and `markdown`. Nothing from a trace can carry an escape sequence or markup."""

from __future__ import annotations

from perfscope import registry
from perfscope.sections import plain
from perfscope.trace.blocks.base import BRIEF, Block

WIDTH = 80
NAME = 18  # the first column keeps at least this much; further columns share the rest


def terminal(blocks: list[Block], command: str = "") -> str:
    """Every line fits into 80 columns whatever a kernel is called. `command`: the last line, as it is; left out if it could steer the terminal."""
    text = registry.load("reports", "terminal")
    out: list[str] = []
    for b in blocks:
        if b.title:
            out += ["", b.title.upper()]
        for line in b.lines:
            out += text.wrap(line, "", "  ")
        if b.rows:
            out += _grid(b, text)
    return "\n".join([*out, *(["", command] if command and plain(command) == command else [])]).lstrip("\n") + "\n"


def _grid(b: Block, text) -> list[str]:
    keep = [i for i in range(len(b.head)) if i not in b.wide]
    rows = [[plain(row[i].text) for i in keep] for row in b.rows[:BRIEF]]
    head = [b.head[i] for i in keep]
    is_word = [
        all(row[i].sort is None or isinstance(row[i].sort, str) for row in b.rows)
        or (i == keep[0] and not all(row[i].text.isdigit() for row in b.rows))
        for i in keep
    ]
    widths = [max(text.width(r[i]) for r in [head, *rows]) for i in range(len(keep))]
    over = sum(widths) + 2 * (len(keep) - 1) - WIDTH
    for i in sorted(
        (i for i in range(len(keep)) if is_word[i]), key=lambda i: -widths[i]
    ):  # words give way, the longest first; numbers never
        less = min(max(over, 0), max(widths[i] - (NAME if i == 0 else 12), 0))
        widths[i], over = widths[i] - less, over - less

    def line(cells):
        made = [text.cut(c, w) for c, w in zip(cells, widths)]
        pads = [" " * (w - text.width(c)) for c, w in zip(made, widths)]
        return text.cut("  ".join(c + p if word else p + c for c, p, word in zip(made, pads, is_word)).rstrip(), WIDTH)

    out = [line(head), *(line(r) for r in rows)]
    more = max(b.total, len(b.rows)) - len(rows)
    return out + ([f"… {more} more: --json"] if more > 0 else [])


def markdown(blocks: list[Block], title: str = "") -> str:
    """The same as GitHub Markdown."""
    made = registry.load("reports", "markdown")
    out = [f"### {made.escape(title)}"] if title else []
    for b in blocks:
        if b.title:
            out.append(f"#### {made.escape(b.title)}")
        if b.lines:
            out.append(
                "\n".join(f"- {made.escape(line)}" for line in b.lines)
                if b.title
                else "  \n".join(made.escape(line) for line in b.lines)
            )
        if b.rows:
            keep = [i for i in range(len(b.head)) if i not in b.wide]
            rows = [[made.escape(row[i].text[:100]) for i in keep] for row in b.rows[:BRIEF]]
            out.append(made.table([made.escape(b.head[i]) or " " for i in keep], rows))
            more = max(b.total, len(b.rows)) - len(rows)
            if more > 0:
                out.append(f"*{more} more*")
    return "\n\n".join(out) + "\n"
