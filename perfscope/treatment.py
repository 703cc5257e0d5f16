"""What `diagnose` and `fix` have to say, in words: the same in the terminal, in Markdown and on the page.

Standard library only. A change is ln(cured/before): negative is faster; it is shown as the change of the step's time in per cent.
"""

from __future__ import annotations

import math

from perfscope.compare_text import ratio
from perfscope.finding import Finding, Trial
from perfscope.measure import stats
from perfscope.measure.stats import Interval
from perfscope.record import Round
from perfscope.sections import DASH, amount, figures, percent, plain, scaled, share, words

BEFORE = "before"           # the variant that a cure is measured against, in the rounds of every trial
PLACES = 3                  # of one finding that are shown; the others are counted
MARKS = {"kept": "kept", "rejected": "rejected", "not-applicable": "not applicable", "interrupted": "interrupted"}


# ---------------------------------------------------------------- findings

def worth(finding: Finding) -> tuple[str, str]:
    """(what the cure brings or what the disease takes, what that figure stands on): the change of the step in a quick look,
    the share of it that the layer saves alone, or the ceiling that a trace gives; a dash if nothing is known."""
    if finding.change is not None and math.isfinite(finding.change.point):
        return f"step {span(finding.change)}", f"quick look: {finding.verdict or 'UNCLEAR'}"
    if finding.saves is not None and math.isfinite(finding.saves.point):
        return f"saves {words(share(finding.saves), '%')} of the step", "layer alone"
    if finding.share is not None and math.isfinite(finding.share):
        return f"at most {percent(finding.share)} of the step", "ceiling: all the time of the suspects"
    return DASH, "cost unknown"


def span(change: Interval | None) -> str:
    """A change with its interval: "-16 % (-35.4 to +3.2)"."""
    point, ends = ratio(change)
    return f"{point} ({ends})" if ends not in ("", DASH) else point


def places(finding: Finding, most: int = PLACES) -> list[str]:
    """Where it shows and what was seen there, the first ones; the rest is counted."""
    shown = [f"at {p.where}: {p.saw}" if p.saw else f"at {p.where}" for p in finding.places[:most]]
    more = len(finding.places) - most
    return [*shown, *([f"and {more} more"] if more > 0 else [])]


def suspects(finding: Finding) -> str:
    """The share of the step that the suspects take, if the gain is known from something better; "" otherwise."""
    if finding.share is None or not math.isfinite(finding.share) or finding.change is None and finding.saves is None:
        return ""
    return f"the suspects take {percent(finding.share)} of the step" if finding.basis == "ceiling" else ""


def cure_of(finding: Finding) -> str:
    """The cure that the quick look liked best, or the probe's only one, as `perfscope fix --cures` wants it; "" for a hint."""
    return finding.extra.get("cure", "") or finding.probe if finding.curable else ""


def count(n: int, what: str, plural: str = "") -> str:
    """"1 probe", "3 probes"."""
    return f"{n} {what if n == 1 else plural or what + 's'}"


# ---------------------------------------------------------------- trials

def speed_up(change: Interval) -> str:
    """How many times as fast, with its interval: "2.93 (2.85 to 3.01)"; the ends never rounded inwards."""
    if change is None or not math.isfinite(change.point):
        return DASH
    point, low, high = (math.exp(-x) for x in (change.point, change.high, change.low))
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"~{figures(point, 2)}"
    return f"{point:.2f} ({math.floor(low * 100 + 1e-9) / 100:.2f} to {math.ceil(high * 100 - 1e-9) / 100:.2f})"


def numerics_word(trial: Trial) -> str:
    """"passed", "failed", or a dash if they were not looked at."""
    return DASH if trial.numerics is None else "passed" if trial.numerics.passed else "failed"


def memory(trial: Trial) -> str:
    """The change of the peak memory in per cent; a dash where it is not known (on CPUs)."""
    before, after = trial.memory_before_bytes, trial.memory_bytes
    return f"{100 * (after / before - 1):+.0f} %" if before and after else DASH


def memory_words(trial: Trial) -> str:
    """The peak memory before and after, with its change; "" where it is not known."""
    before, after = trial.memory_before_bytes, trial.memory_bytes
    return f"peak memory {amount(before, 'B', 1024)} before, {amount(after, 'B', 1024)} after ({memory(trial)})" if before and after else ""


def said(trial: Trial) -> str:
    """What came of a cure that was not kept, in a sentence; "" if it was kept."""
    cure, (point, ends) = plain(trial.cure), ratio(trial.change)
    size, ends = point.lstrip("+-~"), f" ({ends})" if ends not in ("", DASH) else ""
    top = f" on top of {', '.join(map(plain, trial.on_top_of))}" if trial.on_top_of else ""
    if trial.outcome == "kept":
        return ""
    if trial.outcome == "not-applicable":
        return f"{cure} is not applicable here: {plain(trial.error or trial.reason)}"
    if trial.outcome == "interrupted":
        return f"{cure}: interrupted"
    if not trial.verdict:
        return f"{cure} was not tried: {plain(trial.reason or 'no reason is known')}"
    if trial.verdict == "SLOWER":
        return f"{cure} would cost you {size} here{ends}{top}"
    if trial.verdict == "SAME":
        return f"{cure} changes nothing that matters here: {point}{ends}{top}"
    if trial.verdict == "FASTER":
        return f"{cure} would save {size}{ends}{top}, but is not kept: {plain(trial.reason)}"
    return f"{cure} is UNCLEAR: {point}{ends}{top}; {plain(trial.reason)}"


def final_words(record) -> str:
    """The whole stack against the original, in one sentence; "" if there is none."""
    t = record.final
    if t is None or t.change is None:
        return ""
    text = "" if t.verdict == "FASTER" else f"{t.verdict or 'UNCLEAR'} as a whole: "
    text += f"x {speed_up(t.change)} with {count(len(record.kept), 'cure')}"
    if record.step_before and record.step_after:
        text += f": {words(scaled(record.step_before), 'ms')} per step before, {words(scaled(record.step_after), 'ms')} after"
    return text


def samples(rounds: tuple[Round, ...], version: str) -> tuple[list[float], list[float]]:
    """(seconds before, seconds of the version) of the rounds that have both."""
    both = [r for r in rounds if r.step_s.get(BEFORE, 0) > 0 and r.step_s.get(version, 0) > 0]
    return [r.step_s[BEFORE] for r in both], [r.step_s[version] for r in both]


def by_process(trial: Trial) -> list[Interval]:
    """The change in each process, from its own rounds."""
    versions = {v for rounds in trial.processes for r in rounds for v in r.step_s} - {BEFORE}
    return [stats.log_ratio(*samples(rounds, v)) for v in sorted(versions) for rounds in trial.processes]


def trials(record) -> list[tuple[str, Trial]]:
    """(label, trial) of everything that was measured in a fix: each cure, then the whole stack."""
    last = [("all that was kept", record.final)] if record.final is not None else []
    return [*((plain(t.cure), t) for t in record.trials), *last]


def stopped(record) -> str:
    """Says so if the run did not come to its end."""
    failed = ", ".join(sorted(map(plain, getattr(record, "failed", {}))))
    return {"partial": "This record is partial: the run was still going, or was killed, when it was written.",
            "interrupted": "This run was interrupted: what is here was measured, the rest was not.",
            "incomplete": f"Incomplete: {failed or 'a probe'} failed; the others were asked."}.get(record.status, "")
