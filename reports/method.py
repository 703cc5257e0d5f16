"""How these numbers were made: the method in words, with this run's own numbers, and every constant."""

from __future__ import annotations

from perfscope import facts
from perfscope.record import Run
from perfscope.sections import cell, details, escape, figures, pairs, percent, table

TITLE = "Method"
ORDER = 90
KINDS = ("breakdown",)


def warmup(run: Run) -> str:
    """How every variant was warmed up."""
    body = [
        [
            cell(b.batch_size, b.batch_size),
            cell(v),
            cell(w.steps, w.steps),
            cell(figures(w.seconds), w.seconds),
            cell(figures(w.drift_z, 2), w.drift_z),
            cell("yes" if w.settled else "no"),
        ]
        for b in run.batches
        for v, w in b.warmup.items()
    ]
    return table(["batch", "variant", "steps", "seconds", "drift z", "settled"], body) if body else ""


def cost(run: Run) -> str:
    """What perfscope itself cost."""
    spent = {
        k: sum(b.own_cost.get(k, 0.0) for b in run.batches) for k in ("wall_s", "timed_s", "lead_in_s", "warmup_s")
    }
    used = spent["timed_s"] + spent["lead_in_s"] + spent["warmup_s"]
    if not used or not spent["wall_s"]:
        return ""
    return (
        f"{figures(spent['wall_s'])} s of measuring, {percent(spent['timed_s'] / spent['wall_s'])} of it in timed "
        f"steps, "
        f"{figures(spent['wall_s'] / used)} times the time inside timed, lead-in and warm-up steps."
    )


def render(run: Run) -> str:
    """Words with this run's numbers, then warm-up and constants folded away."""
    have = [b for b in run.batches if b.rounds]
    if facts.published(run) or not have:
        return details("Constants", pairs(run.method)) if run.method else ""
    variants, lead, n = (
        max(len(b.variants) for b in have),
        {b.lead_in_steps for b in have},
        [len(b.rounds) for b in have],
    )
    words = [
        f"Every round ran all {variants} variants of the step once, in a fresh random order, so that slow drift hits "
        f"all of them alike. "
        f"{'–'.join(map(str, sorted({min(n), max(n)})))} rounds per batch size, "
        f"{'/'.join(map(str, sorted(lead)))} unmeasured lead-in steps before each sample.",
        "Within a round the common level is divided out; a round with a residual beyond 6 robust standard deviations "
        "is not clean and stays out of the "
        "shares (never out of the record). Shares come from one linear estimator on one set of rounds, so they sum to "
        "exactly 1.",
        "Milliseconds are share × step and belong to the clock they were measured at; shares are what carries over.",
        f"Attribution: {', '.join(sorted({b.attribution for b in have}))}. "
        f"Stopped by: {', '.join(sorted({b.stop or 'still going' for b in have}))}. {cost(run)}",
    ]
    text = "".join(f"<p>{escape(w)}</p>" for w in words)
    check = details("Self-check of this machine", pairs(run.selfcheck)) if run.selfcheck else ""
    return (
        text + check + details("Warm-up", warmup(run)) + details("Constants", pairs(run.method) if run.method else "")
    )
