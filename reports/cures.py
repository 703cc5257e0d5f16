"""The cures that were tried: kept or rejected, by how much, with which numerics and memory."""

from __future__ import annotations

from perfscope import treatment as t
from perfscope.compare_text import ratio
from perfscope.finding import Trial
from perfscope.sections import DASH, Html, Rows, cell, escape, table

TITLE = "Cures"
ORDER = 12
KINDS = ("fix",)
CLASSES = {"kept": "good", "not-applicable": "quiet", "rejected": "quiet"}


def row(name: str, trial: Trial) -> tuple[str, ...]:
    """cure, verdict, change in per cent with its interval, numerics, memory."""
    return (name, trial.verdict or DASH, t.span(trial.change), t.numerics_word(trial), t.memory(trial))


def text(run) -> list:
    """The table, then in words what was rejected, and the whole stack."""
    if not run.trials:
        return []
    last = run.final
    named = [row(x.cure, x) for x in run.trials] + ([row("all that was kept", last)] if last is not None else [])
    lines = [t.said(x) for x in run.trials]
    end = [t.memory_words(last)] if last is not None else []
    floor = [f"floor of the original's dtype: {1e3 * run.floor_s:.3g} ms"] if run.floor_s else []
    return [Rows(("cure", "verdict", "step (95 %)", "numerics", "memory"), tuple(named)), *filter(None, [*lines, *end, *floor])]


def render(run) -> str:
    """The table with what each cure does; rejected ones are results too, so they are told in words."""
    body = []
    for name, x in t.trials(run):
        point, ends = ratio(x.change)
        quiet = Html(f'<span class="{CLASSES.get(x.outcome, "")}">{escape(t.MARKS.get(x.outcome, x.outcome))}</span>')
        sort = x.change.point if x.change is not None else ""
        body.append([cell(Html(f"<b>{escape(name)}</b>") if x.outcome == "kept" else name, name, x.text), cell(quiet, x.outcome), cell(x.verdict or DASH),
                     cell(point, sort), cell(ends or DASH), cell(t.numerics_word(x), note=x.numerics.text if x.numerics else ""), cell(t.memory(x)),
                     cell(str(sum(map(len, x.processes))))])
    head = ["cure", "outcome", "verdict", "step", "interval %", "numerics", "memory", "rounds"]
    told = "".join(f"<li>{escape(s)}</li>" for s in (t.said(x) for x in run.trials) if s)
    what = "".join(f"<li><b>{escape(x.cure)}</b>: {escape(x.text)}</li>" for x in run.trials if x.outcome == "kept" and x.text)
    note = "Each on top of those that were kept above it; the last row is the whole stack against the original."
    lists = [f"<h3>{title}</h3><ul>{items}</ul>" for title, items in (("Kept", what), ("Not kept, and why", told)) if items]
    return "".join([table(head, body, note) if body else "", *lists])
