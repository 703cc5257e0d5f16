"""Warnings: what happened, why it matters, what to do next."""

from __future__ import annotations

from perfscope.record import Run
from perfscope.sections import EVERY, escape

TITLE = "Warnings"
ORDER = 38
KINDS = (EVERY,)


def text(run: Run) -> list[str]:
    """Every warning with its hint, a paragraph each."""
    told = [(w.text if w.text.startswith(f"{w.code}:") else f"{w.code}: {w.text}", w.hint) for w in run.warnings]
    return [f"{what} -> {hint}" if hint else what for what, hint in told]


def render(run: Run) -> str:
    """Every warning with its hint."""
    items = []
    for w in run.warnings:
        at = f" <small>batch {w.batch_size}</small>" if w.batch_size else ""
        hint = f'<p class="hint">{escape(w.hint)}</p>' if w.hint else ""
        items.append(f"<li><code>{escape(w.code)}</code>{at}<p>{escape(w.text)}</p>{hint}</li>")
    return f'<ul class="warnings">{"".join(items)}</ul>' if items else ""
