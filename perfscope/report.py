"""The report of one or more runs: `report(run, path)`. Sections and renderers are the files of `reports/`.

A section is a file with TITLE, ORDER, `render(run) -> str` (an HTML fragment, "" if it has nothing to say) and, if
it is not for breakdowns alone, KINDS: the kinds of record that it is for, `sections.EVERY` for all. It may have
`text(run)`, its paragraphs and tables (`str`, `sections.Rows`) for the terminal and Markdown; without a `render` the
page shows those. (A breakdown's terminal and Markdown reports are laid out by hand.) A renderer is a file with FORMAT
and `render(runs, fragments, **options) -> str`. A section that wants an option names it: `def render(run,
article=None)`. Needs no torch, prints nothing. Kinds: see perfscope.record.load.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Sequence

from perfscope import registry
from perfscope.errors import EnvironmentError_, PerfscopeError, UsageError
from perfscope.record import Run
from perfscope.sections import EVERY, Html, Rows, blocks_html, escape, slug

#: What a file name says about the format.
SUFFIXES = {".html": "html", ".htm": "html", ".md": "markdown", ".markdown": "markdown", ".txt": "terminal"}


@dataclass(frozen=True)
class Fragment:
    """What one section says about one run."""

    name: str
    title: str
    html: Html
    text: tuple[str | Rows, ...] = ()


def _plugins() -> dict[str, ModuleType]:
    return {name: registry.load("reports", name) for name in registry.names("reports")}


def renderers() -> dict[str, ModuleType]:
    """Every renderer by its format: "html", "terminal", "markdown"."""
    return {m.FORMAT: m for m in _plugins().values() if hasattr(m, "FORMAT")}


def sections(kind: str) -> list[tuple[str, ModuleType]]:
    """(name, module) of every section for this kind of run, in the order of the page."""
    found = [(n, m) for n, m in _plugins().items() if hasattr(m, "TITLE") and {kind, EVERY} & set(getattr(m, "KINDS", ("breakdown",)))]
    return sorted(found, key=lambda pair: (pair[1].ORDER, pair[0]))


def fragments(run: Run, options: dict) -> list[Fragment]:
    """What every section says about a run. A section that fails says so on the page; the others still stand."""
    out = []
    for name, module in sections(run.kind):
        draw = getattr(module, "render", None)
        wanted = {k: v for k, v in options.items() if draw and k in inspect.signature(draw).parameters}
        text: tuple = ()
        try:
            text = tuple(module.text(run)) if hasattr(module, "text") else ()
            body = draw(run, **wanted) if draw else blocks_html(text)
        except PerfscopeError:
            raise
        except Exception as e:  # somebody's own section must not cost the report
            why = f"The section {name} could not be drawn: {type(e).__name__}: {e}"
            body, text = f'<p class="alarm">{escape(why)}</p>', (why,)
        if body or text:
            out.append(Fragment(slug(name), module.TITLE, Html(body), text))
    return out


def render(run: Run | Sequence[Run], format: str = "html", **options) -> str:
    """One or more runs as text: "html" (one page that needs nothing else), "terminal" (80 columns) or "markdown".

    Options: article (html: draw the chart of the article beside the run's own; default for the models it used), color
    (terminal: ANSI colours), next_command (terminal: the last line). Raises UsageError for an unknown format and
    EnvironmentError_ if the page needs plotly and it is not installed.
    """
    runs = list(run) if isinstance(run, (list, tuple)) else [run]
    if not runs:
        raise UsageError(
            "there is no run to report on", "Give one or more run.json files, or the folders that hold them."
        )
    known = renderers()
    if format not in known:
        raise UsageError(f"there is no report format {str(format)!r}", f"Known: {', '.join(sorted(known))}")
    return known[format].render(runs, lambda r: fragments(r, options), **options)


def report(runs: Run | Sequence[Run], path, format: str = "", **options) -> Path:
    """Writes the report and returns its path; the suffix says the format (.html, .md, .txt) unless `format` does.

    A folder gets a `report.html`. Raises EnvironmentError_ if it cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "report.html"
    if not format and path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"cannot tell the format of {path.name!r}", f"End it in one of {', '.join(SUFFIXES)}, or give the format."
        )
    text = render(runs, format or SUFFIXES[path.suffix.lower()], **options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as e:
        raise EnvironmentError_(
            f"cannot write {path}: {e.strerror or e}", "Give another path with --out, or make room on the disk."
        ) from e
    return path
