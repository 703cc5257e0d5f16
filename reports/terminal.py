"""The report in the terminal: 80 columns, the same facts as the page.

Every line fits into WIDTH columns whatever a model is called; nothing from a record can carry an escape sequence.
"""

from __future__ import annotations

import unicodedata

from perfscope import facts
from perfscope.record import Run, label
from perfscope.sections import DASH, Item, Rows, code_lines, plain, scaled, words

FORMAT = "terminal"
WIDTH = 80
NAME = 20  # names in the first column of a table are not cut to less
LABEL = 12  # widest name of a column; longer ones are cut
STYLES = {"bold": "1", "dim": "2", "red": "31", "yellow": "33", "green": "32"}


def width(text: str) -> int:
    """Columns that a text takes: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, limit: int) -> str:
    """The text within `limit` columns, an ellipsis at its end if something is missing."""
    if width(text) <= limit:
        return text
    while text and width(text) > limit - 1:
        text = text[:-1]
    return text + "…"


def wrap(text: str, first: str = "", rest: str = "") -> list[str]:
    """Lines of at most WIDTH columns; words that are longer than a line are broken, and so are lead-ins that leave no room."""
    if max(width(first), width(rest)) >= WIDTH:
        return wrap(f"{first} {text}")
    lines, line = [], first
    for word in plain(text).split():
        gap = "" if line in (first, rest) else " "
        while width(line) + len(gap) + width(word) > WIDTH:
            if line not in (first, rest):
                lines.append(line)
                line, gap = rest, ""
                continue
            n = len(word)
            while width(line) + width(word[:n]) > WIDTH:
                n -= 1
            lines.append(line + word[:n])
            word, line = word[n:], rest
        line += gap + word
    return [*lines, line] if line.strip() else lines


def header(run: Run) -> list[str]:
    """The pieces of the first line, broken only between pieces where that is possible."""
    lines, line = [], ""
    for piece in facts.headline(run):
        joined = f"{line} · {piece}" if line else piece
        if width(joined) <= WIDTH:
            line = joined
            continue
        lines += [line] if line else []
        *full, line = wrap(piece) or [""]
        lines += full
    return [*lines, line]


def columns(run: Run, rows: list[facts.Row]) -> list[tuple[str, list[str], list[str]]]:
    """(title, points, plus-minus) of every column but the batch size."""
    out = [("step ms", [r.step_ms[0] for r in rows], [r.step_ms[1] for r in rows])]
    for part in facts.part_names(run):
        shares = [r.shares.get(part, (DASH, "")) for r in rows]
        out.append((cut(facts.short(run, part), LABEL), [s[0] for s in shares], [s[1] for s in shares]))
    empty = [""] * len(rows)
    return [*out, ("floor", [r.floor_ms for r in rows], empty), ("efficiency", [r.efficiency for r in rows], empty)]


def pack(cols: list, first: int) -> list[list[tuple[int, tuple]]]:
    """Columns, each with its width, in as few blocks as fit beside the batch column."""
    blocks, used = [[]], first
    for col in cols:
        w = max(map(width, [col[0], *col[1], *(f"±{h}" for h in col[2])])) + 2
        if used + w > WIDTH and blocks[-1]:
            blocks, used = [*blocks, []], first
        blocks[-1].append((w, col))
        used += w
    return blocks


def table(run: Run, style) -> list[str]:
    """The table: a line per batch size, the half-widths quietly below; more blocks if the parts do not fit."""
    rows = facts.rows(run)
    have = [r for r in rows if r.shares]
    lead = max([7, *(len(str(r.batch.batch_size)) + 2 for r in rows)])
    right = lambda text, w: " " * max(0, w - width(text)) + text  # noqa: E731
    lines = []
    for n, block in enumerate(pack(columns(run, have), lead) if have else []):
        lines += [""] if n else []
        lines.append(style("bold", right("batch", lead) + "".join(right(c[0], w) for w, c in block)))
        for r in rows:
            size = right(str(r.batch.batch_size), lead)
            if not r.shares:
                lines += [cut(f"{size}  {r.note}", WIDTH)] if n == 0 else []
                continue
            i = have.index(r)
            lines.append(size + "".join(right(c[1][i], w) for w, c in block))
            halves = "".join(right(f"±{c[2][i]}" if c[2][i] else "", w) for w, c in block).rstrip()
            lines += [style("dim", " " * lead + halves)] if halves else []
    if not have:
        lines += [cut(f"{right(str(r.batch.batch_size), lead)}  {r.note}", WIDTH) for r in rows]
    else:
        lines.append(style("dim", "shares in % of the step, ± is the 95 % interval, floor in ms"))
    notes = [f"batch {r.batch.batch_size}: {r.note}" for r in have if r.note]
    return lines + [line for text in notes for line in wrap(text, "  ", "  ")]


def brackets(run: Run) -> list[str]:
    """Which parts depend on the order in which they are taken away, with both ends."""
    best, lines = facts.focus(run), []
    for name, part in best.derived.parts.items() if best else ():
        if part.depends_on_order and part.first and part.last:
            lines += wrap(
                f"{label(run, name)} depends on order: {words(scaled(part.first), 'ms')} added first, "
                f"{words(scaled(part.last), 'ms')} taken away last (batch {best.batch_size})",
                "  ",
                "    ",
            )
    return lines


def one(run: Run, style, next_command: str) -> list[str]:
    """The lines of one run."""
    lines = [
        *(style("bold", t) for t in header(run)),
        "",
        *table(run, style),
        "",
        *wrap(facts.verdict(run)),
        *brackets(run),
    ]
    fits = facts.scaling_words(run)
    lead = max((min(width(p), LABEL) for p, _ in fits), default=0)
    if fits or facts.sweep_words(run):
        lines.append("")
        for part, text in fits:
            name = cut(part, LABEL)
            lines += wrap(text, f"  {name}{' ' * (lead - width(name))}  ", " " * (lead + 4))
        lines += wrap("; ".join(facts.sweep_words(run)), "  ", "  ")
    if facts.opinions(run):
        lines += ["", *wrap(facts.opinion_words(run)), *grid(facts.opinion_rows(run))]
    alarms = [f"residue: {n} x {op} still ran in the variant {v}" for v, op, n in facts.residues(run)]
    for text in [facts.incomplete(run), *alarms]:
        lines += [style("red", t) for t in wrap(text)]
    for w in [*run.warnings]:
        at = f" (batch {w.batch_size})" if w.batch_size else ""
        told = w.text if w.text.startswith(f"{w.code}:") else f"{w.code}{at}: {w.text}"
        lines += ["", *(style("yellow", t) for t in wrap(told, "", "  "))]
        lines += wrap(w.hint, "  → ", "    ")
    last = next_command or f"perfscope report runs/{plain(run.id)} --open"
    return [*lines, "", *(style("green", t) for t in wrap(f"next: {last}", "", "  "))]


def grid(rows: Rows) -> list[str]:
    """A small table: the first column to the left, the others to the right. In one that is too wide the names are cut, down to
    NAME columns; if that is not enough it gives a block per row."""
    cells = [[plain(c) for c in row] for row in (rows.head, *rows.rows)]
    wide = [max(width(row[i]) for row in cells) for i in range(len(rows.head))]
    if len(wide) == 2 and wide[0] <= NAME:  # names and values: values may be long
        return [line for name, value in cells for line in wrap(value, f"  {name}{' ' * (wide[0] - width(name))}  ", " " * (wide[0] + 4))]
    wide[0] = max(min(NAME, wide[0]), min(wide[0], WIDTH - sum(wide[1:]) - 2 * len(wide)))
    if sum(wide) + 2 * len(wide) > WIDTH:
        return [line for row in cells[1:] for line in wrap("; ".join(f"{h} {c}" for h, c in zip(cells[0], row) if c), "  ", "    ")]
    pad = lambda text, w, left: text + " " * (w - width(text)) if left else " " * (w - width(text)) + text  # noqa: E731
    return ["  " + "  ".join(pad(cut(c, w), w, i == 0) for i, (c, w) in enumerate(zip(row, wide))) for row in cells]


def item(block: Item, style) -> list[str]:
    """An item: its title, its paragraphs indented, its code as it is (a line that is too long stays whole: it gets copied)."""
    return ["", *(style("bold", t) for t in wrap(block.title, "", "   ")), *(line for t in block.text for line in wrap(t, "   ", "     ")),
            *(f"       {line}" for line in code_lines(block.code))]


def other(run, found, style, next_command: str, page: str = "") -> list[str]:
    """The lines of a record that is no breakdown: its headline, what its sections have to say in text, where its page is."""
    lines = [style("bold", t) for t in header(run)]
    for f in found:
        shout = "yellow" if f.name == "warnings" else ""
        lines += ["", *([style("bold", f.title)] if f.title and not shout and f.text else [])] if f.text else []
        for block in f.text:
            if isinstance(block, Rows):
                head, *rest = grid(block) or [""]
                lines += [style("dim", head), *rest]
            elif isinstance(block, Item):
                lines += item(block, style)
            else:
                lines += [style(shout, t) if shout else t for t in wrap(block, "", "  ")]
    last = next_command or f"perfscope report runs/{plain(run.id)} --open"
    return [*lines, "", *(wrap(f"report: {page}", "", "  ") if page else []), *(style("green", t) for t in wrap(f"next: {last}", "", "  "))]


def render(runs, fragments=None, color: bool = False, next_command: str = "", page: str = "", **_) -> str:
    """The runs, one after the other, in lines of at most 80 columns; ANSI colours only with `color`."""
    style = (lambda kind, t: f"\x1b[{STYLES[kind]}m{t}\x1b[0m") if color else (lambda kind, t: t)
    drawn = [one(r, style, next_command) if r.kind == "breakdown" else other(r, fragments(r), style, next_command, page) for r in runs]
    blocks = ["\n".join(line.rstrip() for line in lines) for lines in drawn]
    return f"\n\n{'─' * WIDTH}\n\n".join(blocks) + "\n"
