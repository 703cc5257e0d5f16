"""The outcome of `diagnose` and `fix`: one sentence and the numbers behind it."""

from __future__ import annotations

from perfscope import treatment as t
from perfscope.sections import escape, percent, plain, scaled, words

TITLE = ""  # the headline of the page stands above it
ORDER = 10
KINDS = ("diagnose", "fix")


def sentences(run) -> list[str]:
    """What came out, and whether the run came to its end."""
    said = found(run) if run.kind == "diagnose" else proven(run)
    return [*said, *filter(None, [t.stopped(run)])]


def found(run) -> list[str]:
    """How many slow paths, and what the first is worth."""
    new = [f for f in run.findings if not f.known]
    known = len(run.findings) - len(new)
    more = f", and {known} known before" if known else ""
    if not new:
        asked = len(run.silent) + len(run.failed)
        return [f"No {'new ' if known else ''}slow path was found{more}: {t.count(asked, 'probe')} looked."]
    gain, basis = t.worth(new[0])
    first = f" First {plain(new[0].probe)}: {gain}, {basis}." if gain != t.DASH else ""
    return [f"{t.count(len(new), 'slow path')} found{more}.{first}"]


def proven(run) -> list[str]:
    """What the cures brought together."""
    tried = f"{t.count(len(run.trials), 'cure')} tried, {len(run.kept)} kept."
    if t.final_words(run):
        return [f"{t.final_words(run)}. {tried}"]
    return [tried if run.trials else "No cure was tried: nothing was found that has one." if run.status == "complete" else "No cure was tried."]


def tiles(run) -> list[tuple[str, str, str]]:
    """(what, number, explanation)."""
    out = []
    if run.kind == "diagnose":
        out.append(("slow paths", str(len(run.findings)), "with evidence; the quick look ranks them, `perfscope fix` proves their cures"))
        out.append(("step", words(scaled(run.step), "ms"), "before any cure, in the quick look")) if run.step else None
        out.append(("probes asked", str(len(run.silent) + len(run.failed) + len({f.probe for f in run.findings})), "others do not apply to this device"))
        return out
    if run.final is not None and run.final.change is not None:
        out.append(("times as fast", t.speed_up(run.final.change), "the whole stack against the original, measured again"))
    for what, step in (("step before", run.step_before), ("step after", run.step_after)):
        out.append((what, words(scaled(step), "ms"), "median over all rounds of all processes")) if step else None
    out.append(("cures kept", f"{len(run.kept)} of {len(run.trials)}", "each FASTER by the whole interval, with its numerics passed"))
    if run.floor_s and run.step_after:
        out.append(("efficiency", percent(run.floor_s / run.step_after.point), "floor / step after: what this machine's ceilings allow"))
    return out


def text(run) -> list[str]:
    """The sentences."""
    return sentences(run)


def render(run) -> str:
    """The sentences and the tiles."""
    boxes = "".join(f'<div class="tile" title="{escape(why)}"><b>{escape(n)}</b><span>{escape(what)}</span></div>' for what, n, why in tiles(run))
    first, *rest = sentences(run)
    alarms = "".join(f'<p class="alarm">{escape(s)}</p>' for s in rest)
    return f'<p class="verdict">{escape(first)}</p>{alarms}<div class="tiles">{boxes}</div>'
