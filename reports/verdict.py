"""The verdict: one sentence and the numbers behind it."""

from __future__ import annotations

import re

from perfscope import facts
from perfscope.record import Run, label
from perfscope.sections import change, escape, figures, percent, scaled, share, words

TITLE = ""  # the headline of the page stands above it
ORDER = 10


def tiles(run: Run) -> list[tuple[str, str, str]]:
    """(what, number, explanation) of the batch size with the best throughput."""
    best = facts.focus(run)
    if best is None:
        return []
    d = best.derived
    out = [
        (
            "step",
            words(scaled(d.step), "ms"),
            f"the full training step at batch {best.batch_size}: what the user waits for",
        )
    ]
    if d.samples_per_s:
        out.append(("throughput", f"{figures(d.samples_per_s)} /s", "samples per second at the best batch size"))
    part = facts.largest_part(best)
    if part:
        out.append(
            (
                f"{label(run, part)}",
                words(share(d.parts[part].share), "%"),
                "share of the step: what it adds, the parts taken in the order of the table",
            )
        )
    if d.efficiency:
        out.append(
            ("efficiency", percent(d.efficiency), "floor / step; the floor is what this machine's own ceilings allow")
        )
    if d.launch_bound is not None:
        out.append(("launch-bound", percent(d.launch_bound), "1 - busy/step: the device waits for the host"))
    if d.resolution:
        out.append(("can see", change(d.resolution), "the smallest change that this run would notice (80 % power)"))
    return out


def render(run: Run) -> str:
    """The sentence, what must be said with it, and the tiles."""
    source = facts.published(run)
    loud = [f"Published figures, not measured by perfscope: {source}"] if source else []
    loud += [facts.incomplete(run)] if facts.incomplete(run) else []
    if facts.residues(run):
        loud.append(
            f"{len(facts.residues(run))} operations ran in variants that should not have them: see “what was taken "
            f"away”."
        )
    alarms = "".join(f'<p class="alarm">{escape(t)}</p>' for t in loud)
    grow = facts.growing(run)
    said = [f"{', '.join(grow)} grow{'s' if len(grow) == 1 else ''} with the batch"] if grow else []
    said += facts.sweep_words(run)
    more = f'<p class="quiet">{escape("; ".join(said)[:1].upper() + "; ".join(said)[1:])}.</p>' if said else ""
    n = len(run.warnings)
    link = f'<a class="warned" href="#warnings">{n} warning{"s" * (n != 1)}</a>' if n else ""
    boxes = "".join(
        f'<div class="tile" title="{escape(why)}"><b>{escape(number)}</b><span>{escape(what)}</span></div>'
        for what, number, why in tiles(run)
    )
    sentence = re.sub(r" (?=±|ms\b|%)", "\u00a0", escape(facts.verdict(run)))
    return f'{alarms}<p class="verdict">{sentence} {link}</p>{more}<div class="tiles">{boxes}</div>'
