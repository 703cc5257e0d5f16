"""The page about a trace: the report's own shell, the figures, the blocks, and the sections of `reports/` for traces. No torch, no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perfscope import registry
from perfscope.errors import EnvironmentError_
from perfscope.sections import Html, cell, escape, slug, table
from perfscope.trace import figures, reader, split, timeline
from perfscope.trace.analysis import Analysis, RankAnalysis
from perfscope.trace.blocks import Block, blocks
from perfscope.trace.columns import Rank
from perfscope.trace.text import sources
from perfscope.trace.typical import chosen

CUT = 56  # characters of a cell: the numbers stay in sight; all of it when the mouse rests there


@dataclass(frozen=True)
class View:
    """What a section for traces gets: the analysis, the rank shown in detail, and that rank's columns."""

    analysis: Analysis
    rank: RankAnalysis
    columns: Rank


def build(name: str, view: View) -> str:
    """The whole page. Raises EnvironmentError_ without plotly."""
    found = blocks(view.analysis, view.rank)
    head, rest = found[0], sorted(found[1:], key=lambda b: not _alarming(b))  # what is wrong is said first
    parts = [
        (
            b.name,
            b.title,
            Html(_drawn(b.name, figures.OF_BLOCK[b.name], view) + block(b)) if b.name in figures.OF_BLOCK else block(b),
        )
        for b in rest
    ]
    at = next((i for i, (n, *_) in enumerate(parts) if n == "steps"), 0)
    parts[at:at] = [p for p in sections(view) if p[2]]
    top = f'<header><h1>{escape(name)}</h1><p class="facts">{escape(head.lines[0])}</p></header>' + "".join(
        f"<p>{escape(t)}</p>" for t in head.lines[1:]
    )
    return shell(name, top, parts)


def shell(name: str, top: str, parts: list[tuple[str, str, Html]]) -> str:
    """A page in the report's own shell: what stands at the top, then the parts (name, title, HTML). Raises EnvironmentError_ without plotly."""
    body = top + "".join(f'<section id="{n}"><h2>{escape(t)}</h2>{h}</section>' for n, t, h in parts)
    page = registry.load("reports", "html").page
    return page(name, f'<article class="run" id="run">{body}</article>', [(n, t) for n, t, _ in parts])


def sections(view: View) -> list[tuple[str, str, Html]]:
    """(name, title, HTML) of split.py, timeline.py, and the plug-ins of reports/ whose KINDS name "trace". One that fails says so; the page
    still stands. The first two need NumPy, which nothing in reports/ may."""
    modules = [
        ("split", split),
        ("timeline", timeline),
        *((n, registry.load("reports", n)) for n in registry.names("reports")),
    ]
    wanted = sorted(((m.ORDER, n, m) for n, m in modules if "trace" in getattr(m, "KINDS", ())), key=lambda m: m[:2])
    out = []
    for _, name, module in wanted:
        out.append((slug(name), module.TITLE, _drawn(name, module.render, view)))
    return out


def _drawn(name: str, render, view: View) -> Html:
    """What `render` makes of the view, or a line that says why there is nothing: one figure must not cost the page."""
    try:
        return Html(render(view))
    except Exception as e:
        return Html(f'<p class="alarm">{escape(f"The section {name} could not be drawn: {type(e).__name__}: {e}")}</p>')


def _alarming(b: Block) -> bool:
    return b.name == "warnings" and any(line.startswith("warning") for line in b.lines)


def block(b: Block) -> Html:
    """Sentences, then the table; warnings as alarms, notes as plain text."""
    text = "".join(
        f"<p{' class=alarm' if b.name == 'warnings' and line.startswith('warning') else ''}>{escape(line)}</p>"
        for line in b.lines
    )
    rows = [
        [
            cell(
                c.text if len(c.text) <= CUT else c.text[:CUT] + "…", c.sort, c.text[:1000] if len(c.text) > CUT else ""
            )
            for c in row
        ]
        for row in b.rows
    ]
    more = max(b.total, len(b.rows)) - len(b.rows)
    rest = f"<p>{more} more rows: perfscope trace analyze --json</p>" if more > 0 and rows else ""
    words = [i for i in range(len(b.head)) if all(r[i].sort is None or isinstance(r[i].sort, str) for r in b.rows)]
    return Html(text + (table(b.head, rows, words=words) if rows else "") + rest)


def write(trace, out, analysis: Analysis, rank: RankAnalysis, limit_bytes: int | None = None) -> Path:
    """Writes the page of an analysed trace and returns its path; a folder gets a `trace.html`. Raises EnvironmentError_."""
    name = "standard input" if str(trace) == "-" else Path(trace).resolve().name
    return put(build(name, View(analysis, rank, columns(trace, rank, analysis.detail, limit_bytes))), out, "trace.html")


def put(text: str, out, name: str) -> Path:
    """Writes a page to the file `out`, or to `name` if that is a folder; returns the path. Raises EnvironmentError_."""
    out = Path(out)
    if out.is_dir():
        out = out / name
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as e:
        raise EnvironmentError_(
            f"cannot write {out}: {e.strerror or e}", "Give a path in a folder that exists."
        ) from None
    return out


def columns(
    trace, rank: RankAnalysis, detail: str = "full", limit_bytes: int | None = None, cache: bool = True
) -> Rank:
    """The columns of one rank of an analysed trace, read again or from what was kept."""
    source = next(s for s in sources(trace) if s.label == rank.source)
    return reader.read_rank(source, detail, limit_bytes, cache)


def of_trace(trace: str | Path, cache: bool = True) -> str:
    """The page of a file, tar or folder. Raises TraceError for what is no trace."""
    from perfscope.trace.analysis import analyze

    read = reader.read(trace, cache=cache)
    found = analyze(read)
    one = chosen(found)
    return build(Path(trace).resolve().name, View(found, one, next(r for r in read.ranks if r.source == one.source)))
