"""The report in Markdown, for a pull request or an issue: the same facts as the page."""

from __future__ import annotations

import re

from perfscope import facts
from perfscope.record import Run, label
from perfscope.sections import DASH, Item, Rows, code_lines, plain, scaled, share, words

FORMAT = "markdown"


def escape(text) -> str:
    """Text that Markdown leaves alone: no markup, no HTML, no table borders, no mentions, no links."""
    text = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    text = re.sub(r"([\\`*_{}\[\]|~#!$])", r"\\\1", text)
    return text.replace("://", "&#58;//")


def code(text, language: str = "sh") -> str:
    """Code in a code block that it cannot end by itself; a command is one line."""
    text = plain(text) if language == "sh" else "\n".join(code_lines(text))
    fence = "`" * max(3, 1 + max((len(m) for m in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def table(head, rows) -> str:
    """A pipe table; the first column is left, the others are right aligned."""
    lines = ["| " + " | ".join(head) + " |", "|:--|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def overview(run: Run) -> str:
    """The table of batch sizes."""
    names = facts.part_names(run)
    head = ["batch", "step ms", *(f"{escape(label(run, p))} %" for p in names), "floor ms", "efficiency", "samples/s"]
    body = []
    for r in facts.rows(run):
        shares = [words(r.shares[p]) if p in r.shares else DASH for p in names]
        size = f"{r.batch.batch_size} ({escape(r.note)})" if r.note else f"{r.batch.batch_size}"
        body.append([size, words(r.step_ms), *shares, r.floor_ms, r.efficiency, r.samples_per_s])
    return table(head, body) if body else "*no batch size was started*"


def parts(run: Run) -> str:
    """What each part costs at the batch size with the best throughput: ladder, first in, last in, Shapley."""
    best = facts.focus(run)
    if not best or not any(p.first or p.shapley for p in best.derived.parts.values()):
        return ""
    head = ["part", "share", "ms", "first in, ms", "last in, ms", "Shapley", ""]
    body = [
        [
            escape(label(run, name)),
            words(share(p.share), "%"),
            words(scaled(p.seconds)),
            words(scaled(p.first)),
            words(scaled(p.last)),
            words(share(p.shapley), "%") if p.shapley else DASH,
            "depends on order" if p.depends_on_order else "",
        ]
        for name, p in best.derived.parts.items()
    ]
    return f"<details><summary>Parts at batch {best.batch_size}</summary>\n\n{table(head, body)}\n\n</details>"


def one(run: Run) -> str:
    """The blocks of one run."""
    first, *rest = facts.headline(run)
    fits = [f"- {escape(p)}: {escape(t)}" for p, t in facts.scaling_words(run)] + [
        f"- {escape(t)}" for t in facts.sweep_words(run)
    ]
    second = facts.opinion_rows(run) if facts.opinions(run) else None
    loud = [f"> **{escape(facts.incomplete(run))}**"] if facts.incomplete(run) else []
    loud += [
        f"> **residue**: {n} × {escape(op)} still ran in the variant {escape(v)}" for v, op, n in facts.residues(run)
    ]
    warned = [
        f"- **{escape(w.code)}**{f' (batch {w.batch_size})' if w.batch_size else ''}: {escape(w.text)}"
        + (f" *{escape(w.hint)}*" if w.hint else "")
        for w in run.warnings
    ]
    blocks = [
        f"### {escape(first)}",
        " · ".join(escape(p) for p in rest),
        escape(facts.verdict(run)),
        "\n>\n".join(loud),
        overview(run),
        parts(run),
        escape(facts.opinion_words(run)),
        *(block(second) if second else ()),
        "\n".join(fits),
        "\n".join(warned),
        code(run.provenance.command) if run.provenance.command else "",
        f"<sub>perfscope {escape(run.id)}</sub>",
    ]
    return "\n\n".join(b for b in blocks if b)


def block(b) -> list[str]:
    """A paragraph, a table or an item of a section's text."""
    if isinstance(b, Item):
        rest = "\n".join(f"- {escape(t)}" for t in b.text)
        return [t for t in (f"**{escape(b.title)}**" if b.title else "", rest, code(b.code, "python") if b.code else "") if t]
    return [table([escape(h) for h in b.head], [[escape(c) for c in row] for row in b.rows]) if isinstance(b, Rows) else escape(b)]


def other(run, found) -> str:
    """The blocks of a record that is no breakdown: its headline, and what its sections have to say in text."""
    first, *rest = facts.headline(run)
    said = []
    for f in found:
        said += [f"#### {escape(f.title)}"] if f.title and f.text else []
        said += [part for b in f.text for part in block(b)]
    command = code(run.provenance.command) if run.provenance.command else ""
    blocks = [f"### {escape(first)}", " · ".join(escape(p) for p in rest), *said, command, f"<sub>perfscope {escape(run.id)}</sub>"]
    return "\n\n".join(b for b in blocks if b)


def render(runs, fragments=None, **_) -> str:
    """The runs, one after the other, as GitHub Markdown."""
    return "\n\n---\n\n".join(one(r) if r.kind == "breakdown" else other(r, fragments(r)) for r in runs) + "\n"
