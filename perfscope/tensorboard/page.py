"""The pages that the plugin shows: the report of a run.json, and a page about a trace. No torch, no network."""

from __future__ import annotations

from pathlib import Path

from perfscope import registry
from perfscope.sections import escape

#: As the report's own: a page loads nothing but itself.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


def of_record(path) -> str:
    """The HTML report of a run.json: the same page that `perfscope report` writes."""
    from perfscope.record import load
    from perfscope.report import render

    return render(load(path), "html")


def of_trace(path) -> str:
    """The page about a trace: the same that `perfscope trace analyze --html` writes. PerfscopeError if it is none."""
    from perfscope.trace.page import of_trace as build

    return build(path, cache=False)  # nothing is written into somebody's log directory


def problem(message: str, hint: str = "") -> str:
    """A page that says what went wrong."""
    return shell("perfscope", f'<p class="alarm">{escape(message)}</p><p>{escape(hint)}</p>')


STYLE = "main{max-width:75rem;margin:0 auto;padding:1rem}"


def shell(title: str, body: str) -> str:
    """A page with the report's styles."""
    css = (registry.folder("reports") / "_page.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{css}{STYLE}</style></head>'
        f"<body><main>{body}</main></body></html>"
    )
