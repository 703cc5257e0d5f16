"""How to get these numbers again: the command, and the record itself."""

from __future__ import annotations

from perfscope.record import Run, to_dict
from perfscope.sections import EVERY, amount, embed, escape, pack, slug

TITLE = "Run it again, take the data"
ORDER = 99
KINDS = (EVERY,)
LARGEST = 430_000  # bytes of a packed record in a page of at most 2.5 MB: plotly takes 1.84, figures and text about 0.2


def render(run: Run) -> str:
    """The command with a copy button, and run.json as a download (unpacked by the page)."""
    command = run.provenance.command
    text = (
        f'<div class="command"><pre><code>{escape(command)}</code></pre>'
        '<button type="button" class="copy">copy</button></div>'
        if command
        else ""
    )
    plain = embed_text(run)
    packed = pack(plain)
    if len(packed) > LARGEST:
        return text + (
            f"<p>The record ({amount(len(plain), 'B')}) is too large for this page: take <code>run.json</code> from "
            f"beside it, "
            f"id <code>{escape(run.id)}</code>.</p>"
        )
    return text + (
        f'<p><a class="download" download="{escape(slug(run.id))}.run.json" data-record>run.json</a> '
        f"<small>{amount(len(plain), 'B')}: every raw "
        f"sample, nothing rounded. <code>perfscope report</code> draws this page from it"
        + (", <code>perfscope compare</code> holds it against another" if run.kind == "breakdown" else "")
        + f'.</small></p><script type="application/octet-stream">{packed}</script>'
    )


def embed_text(run: Run) -> str:
    """The record as JSON, NaN as null, one line."""
    return str(embed(to_dict(run)))
