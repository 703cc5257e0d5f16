"""The probes that can work from a trace alone, asked about one that was analysed: somebody else's run, on somebody else's machine.

    for rank in diagnose(analyze_files("trace.json.gz")).ranks:
        print(rank.rank, [f.text for f in rank.findings])

Nothing is measured here: a share is a ceiling, the suspects' time in this trace.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from perfscope import probing
from perfscope.finding import Finding, ranked
from perfscope.probe import Config, Evidence
from perfscope.record import to_dict
from perfscope.sections import percent
from perfscope.trace.analysis import Analysis, RankAnalysis
from perfscope.trace.blocks import Block

CEILING = "A ceiling is the suspects' share of the time in this trace: what would be saved if they were free."
PLACES = 5      # of one finding that are shown; all are in the JSON


@dataclass(frozen=True)
class RankFindings:
    """What the probes say about one rank. `silent`: those that looked and found nothing; `failed`: probe -> its own error."""

    rank: int
    findings: tuple[Finding, ...] = ()
    silent: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """What the probes say about all ranks."""

    ranks: tuple[RankFindings, ...] = ()

    @property
    def failed(self) -> dict[str, str]:
        """Probes that failed on any rank, with their own error."""
        return {name: error for r in self.ranks for name, error in r.failed.items()}

    @property
    def silent(self) -> list[str]:
        """Probes that looked at every rank and found nothing on any."""
        return sorted(set.intersection(*(set(r.silent) for r in self.ranks))) if self.ranks else []

    @property
    def json(self) -> dict[str, Any]:
        """`findings`, each with its `rank`; `probes_silent` and `probes_failed` over all ranks."""
        return {"findings": [{"rank": r.rank, **to_dict(f)} for r in self.ranks for f in r.findings], "probes_silent": self.silent,
                "probes_failed": self.failed}

    @property
    def blocks(self) -> list[Block]:
        """A summary, and a block per probe that fired: of several ranks the one where it takes most, with the others named."""
        by_probe: dict[str, list[tuple[int, Finding]]] = {}
        for r in self.ranks:
            for f in r.findings:
                by_probe.setdefault(f.probe, []).append((r.rank, f))
        worst = sorted((max(found, key=lambda item: item[1].worth) for found in by_probe.values()), key=lambda item: -item[1].worth)
        count = f"{len(worst)} slow path{'s' * (len(worst) != 1)}" if worst else "No slow path"
        summary = [f"{count} found by the probes that can work from a trace; silent: {', '.join(self.silent) or 'none'}.",
                   *([CEILING] if worst else []), *(f"The probe {name} failed: {error}" for name, error in self.failed.items())]
        made = [Block("slow_paths", "Slow paths", tuple(summary))]
        for rank, f in worst:
            where = _where(rank, sorted({r for r, _ in by_probe[f.probe]})) if len(self.ranks) > 1 else ""
            made += [Block(f.probe, f.probe + where, tuple(line for of, g in by_probe[f.probe] if of == rank for line in _lines(g)))]
        return made


def diagnose(analysis: Analysis, rank: int | None = None, probes: dict | None = None) -> Diagnosis:
    """The findings of every rank, or of this one; the most valuable first. `probes`: by name; default: all built-in and installed ones."""
    able = {n: m for n, m in (probing.probes() if probes is None else probes).items() if "trace" in m.USES}
    return Diagnosis(tuple(_of(r, able) for r in analysis.ranks if rank is None or r.rank == rank))


def _of(rank: RankAnalysis, able: dict) -> RankFindings:
    evidence = Evidence(Config(device="cuda" if rank.device_events else "cpu"), trace=rank)
    seen, failed, skipped = probing.detect(able, evidence)
    found = ranked(replace(f, curable=False) for f in seen)     # there is nothing here that a cure could be applied to
    known = {f.probe for f in found} | set(failed) | set(skipped)
    return RankFindings(rank.rank, found, tuple(n for n in able if n not in known), failed)


def _lines(f: Finding):
    share = "" if f.share is None else f" ({f.basis or 'share'} {percent(f.share)})"
    yield f.text + share
    for place in f.places[:PLACES]:
        yield f"seen: {place.where}: {place.saw}"
    if len(f.places) > PLACES:
        yield f"… {len(f.places) - PLACES} more places: --json"
    if f.cure:
        yield f"cure: {f.cure}"
    for line in f.code.splitlines():
        yield f"code: {line}"
    if f.note:
        yield f"note: {f.note}"


def _where(rank: int, ranks: list[int]) -> str:
    """" on rank 3 (found on ranks 0 to 7)"."""
    row = len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1))
    others = f"{ranks[0]} to {ranks[-1]}" if row else ", ".join(map(str, ranks))
    return f" on rank {rank}" + (f" (found on ranks {others})" if len(ranks) > 1 else "")
