"""Which probes were asked: those that found nothing, those that could not look and why, those that failed."""

from __future__ import annotations

from perfscope import treatment as t
from perfscope.sections import details, escape, pairs

TITLE = "Probes without a finding"
ORDER = 36
KINDS = ("diagnose",)


def by_reason(skipped: dict[str, str]) -> dict[str, list[str]]:
    """Reason -> the probes that it kept from looking."""
    out: dict[str, list[str]] = {}
    for name, why in skipped.items():
        out.setdefault(why, []).append(name)
    return out


def text(run) -> list[str]:
    """A line each: how many, and of what failed the names. The page and the record have all names."""
    lines = [f"silent: {t.count(len(run.silent), 'probe')} looked and found nothing"] if run.silent else []
    lines += [f"skipped: {t.count(len(names), 'probe')}, {why}" for why, names in by_reason(run.skipped).items()]
    lines += [f"suppressed: {', '.join(run.suppressed)}"] if run.suppressed else []
    return [*lines, *(f"FAILED {name}: {error}" for name, error in run.failed.items())]


def render(run) -> str:
    """What failed first, aloud; the others folded away."""
    failed = "".join(f'<p class="alarm"><b>{escape(name)}</b> failed: {escape(error)}</p>' for name, error in run.failed.items())
    silent = details(f"{len(run.silent)} looked and found nothing", f"<p>{escape(', '.join(run.silent))}</p>") if run.silent else ""
    skipped = details(f"{len(run.skipped)} could not look", pairs({", ".join(n): why for why, n in by_reason(run.skipped).items()})) if run.skipped else ""
    left_out = f"<p>Suppressed: {escape(', '.join(run.suppressed))}</p>" if run.suppressed else ""
    return failed + silent + skipped + left_out
