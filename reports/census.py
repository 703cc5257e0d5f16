"""What was taken away: the operations removed with each part, any residue, and the guards of every variant."""

from __future__ import annotations

from perfscope import facts
from perfscope.record import BatchResult, Run, label
from perfscope.sections import Html, cell, details, escape, figures, ordered, pairs, per_batch, percent, table

TITLE = "What was taken away"
ORDER = 70
KINDS = ("breakdown",)
STD_RANGE = (0.1, 10.0)  # METHOD section 9: activation std of each layer


def removed(run: Run) -> str:
    """Part, operation, calls: what the census says is gone."""
    found = run.inspection.removed
    body = [
        [cell(label(run, p)), Html(f"<td><code>{escape(op)}</code></td>"), cell(n, n)]
        for p in ordered(found)
        for op, n in found[p].items()
    ]
    return table(["part", "operation", "calls per step"], body) if body else ""


def residue(run: Run) -> str:
    """Loud if something that should be gone still ran; one quiet line if nothing did."""
    left = facts.residues(run)
    if left:
        rows = [[cell(v), Html(f"<td><code>{escape(op)}</code></td>"), cell(n, n)] for v, op, n in left]
        return (
            '<div class="alarm"><p><b>Residue.</b> These operations ran in variants that should not have them. '
            f"Their shares are too small by what still ran.</p>{table(['variant', 'operation', 'calls'], rows)}</div>"
        )
    return (
        '<p class="good">No residue: every operation that should be gone was gone, by the census of what really '
        "ran.</p>"
        if run.inspection.census
        else ""
    )


def gradients(run: Run) -> str:
    """Parameters that lost their gradient in some variant."""
    rows = [[cell(v), cell(", ".join(names))] for v, names in run.inspection.without_gradient.items() if names]
    return table(["variant", "parameters without a gradient"], rows) if rows else ""


def guards(batch: BatchResult) -> str:
    """What was checked about each variant, so that its time means what it says."""
    body = []
    for name, g in batch.guards.items():
        odd = not g.finite or g.activation_std_low < STD_RANGE[0] or g.activation_std_high > STD_RANGE[1]
        body.append(
            [
                cell(name),
                cell(figures(g.loss) if g.finite else "not finite", g.loss),
                cell(
                    f"{figures(g.activation_std_low)} – {figures(g.activation_std_high)}{' !' if odd else ''}",
                    g.activation_std_high,
                ),
                cell(percent(g.zero_share), g.zero_share),
                cell(g.conv_calls, g.conv_calls),
                cell(", ".join(g.conv_dtypes)),
                cell(", ".join(g.conv_layouts)),
                cell(g.rescaled, g.rescaled),
                cell(g.filled_gradients, g.filled_gradients),
                cell(percent(g.overhead_share), g.overhead_share),
            ]
        )
    head = [
        "variant",
        "loss",
        "activation std",
        "zeros",
        "conv, matmul calls",
        "dtypes",
        "layouts",
        "rescaled",
        "filled gradients",
        "own cost",
    ]
    return table(head, body) if body else ""


def render(run: Run) -> str:
    """The residue first, then what was removed, then the guards at one batch size."""
    guarded = {b.batch_size: guards(b) for b in run.batches if b.guards}
    best = facts.focus(run)
    tables = f"<h3>Guards</h3>{per_batch(guarded, best.batch_size if best else 0)}" if guarded else ""
    if not run.inspection:
        return tables
    census = {v: ", ".join(f"{op} ×{n}" for op, n in ops.items()) for v, ops in run.inspection.census.items()}
    return (
        residue(run)
        + removed(run)
        + gradients(run)
        + tables
        + (details("Census: every operation of every variant", pairs(census)) if census else "")
    )
