"""The table: every batch size with its shares, every part with its costs, only the digits that are known."""

from __future__ import annotations

from perfscope import facts
from perfscope.record import BatchResult, Run, label
from perfscope.sections import DASH, Html, cell, change, colour, details, escape, per_batch, scaled, share, table

TITLE = "The numbers"
ORDER = 30


def overview(run: Run) -> str:
    """One row per batch size, those that ran out of memory too."""
    names = facts.part_names(run)
    head = [
        "batch",
        "step ms",
        *(f"{label(run, p)} %" for p in names),
        "floor ms",
        "efficiency",
        "samples/s",
        "can see",
    ]
    body = []
    for r in facts.rows(run):
        d = r.batch.derived
        size = Html(f"{r.batch.batch_size} <small>{escape(r.note)}</small>") if r.note else str(r.batch.batch_size)
        if not r.shares:
            body.append([cell(size, r.batch.batch_size, r.batch.error), *[cell(DASH, "")] * (len(head) - 1)])
            continue
        shares = [cell(r.shares[p], d.parts[p].share.point) if p in r.shares else cell(DASH, "") for p in names]
        body.append(
            [
                cell(size, r.batch.batch_size),
                cell(r.step_ms, d.step.point),
                *shares,
                cell(r.floor_ms, d.floor_s),
                cell(r.efficiency, d.efficiency),
                cell(r.samples_per_s, d.samples_per_s),
                cell(change(d.resolution) if d.resolution else DASH, d.resolution),
            ]
        )
    return table(head, body)


def parts(run: Run, batch: BatchResult) -> str:
    """One row per part: ladder, first in, last in, interaction and Shapley value where they were measured."""
    have = batch.derived.parts
    scale, unit = facts.per_sample(run)
    optional = [
        ("first in, ms", "first", scaled),
        ("last in, ms", "last", scaled),
        ("interaction, ms", "interaction", scaled),
        ("Shapley %", "shapley", share),
    ]
    optional = [o for o in optional if any(getattr(p, o[1]) for p in have.values())]
    body = []
    for name, p in have.items():
        swatch = Html(
            f'<i class="swatch" style="background:{colour(name)}"></i>{escape(label(run, name))}'
            + (" <small>depends on order</small>" if p.depends_on_order else "")
        )
        row = [
            cell(swatch, label(run, name)),
            cell(share(p.share), p.share.point),
            cell(scaled(p.seconds), p.seconds.point),
            cell(scaled(p.seconds, scale / batch.batch_size), p.seconds.point),
        ]
        for _, key, shown in optional:
            value = getattr(p, key)
            row.append(cell(shown(value), value.point) if value else cell(DASH, ""))
        body.append(row)
    head = ["part", "share %", "ms per step", f"{unit} per sample", *(o[0] for o in optional)]
    return table(head, body)


def render(run: Run) -> str:
    """The overview, then the parts at one batch size."""
    if not run.batches:
        return ""
    have, best = facts.results(run), facts.focus(run)
    panels = per_batch({b.batch_size: parts(run, b) for b in have}, best.batch_size) if best else ""
    words = (
        "<p>A share is what the part adds to the step, added in the order of the table. <em>First in</em> is what "
        "a part adds to the base alone, <em>last in</em> what the full step saves without it, the difference is the "
        "interaction. Where it is larger than the intervals, no single number is right: the row is marked “depends on "
        "order”. The Shapley value averages over all orders.</p>"
    )
    return overview(run) + (f"<h3>By part</h3>{panels}{details('How to read this', words)}" if panels else "")
