"""The record of `perfscope diagnose`: what was found, what was looked at, and what could not be looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from perfscope.finding import Finding
from perfscope.measure.stats import Interval
from perfscope.record import SCHEMA, Environment, Provenance, Round, Warned, WorkloadInfo
from perfscope.records import workload_headline


@dataclass(frozen=True)
class Record:
    """One diagnosis of one workload at one batch size. `findings`: the most valuable first."""

    id: str
    kind: str = "diagnose"
    status: str = "partial"                     # partial interrupted incomplete (a probe failed) complete
    schema: str = SCHEMA
    provenance: Provenance = field(default_factory=Provenance)
    environment: Environment = field(default_factory=Environment)
    method: dict[str, Any] = field(default_factory=dict)
    workload: WorkloadInfo = field(default_factory=WorkloadInfo)
    batch_size: int = 0
    step: Interval | None = None                # seconds, of the quick look
    findings: tuple[Finding, ...] = ()
    silent: tuple[str, ...] = ()                # probes that ran and found nothing
    failed: dict[str, str] = field(default_factory=dict)        # probe, or cure -> its own error
    skipped: dict[str, str] = field(default_factory=dict)       # probe -> why it could not run
    suppressed: tuple[str, ...] = ()
    rounds: tuple[Round, ...] = ()              # of the quick look: "before" and one variant per cure
    own_cost: dict[str, float] = field(default_factory=dict)    # seconds: trace_s, evidence_s, detect_s, look_s
    warnings: tuple[Warned, ...] = ()
    extra: dict = field(default_factory=dict)

    def headline(self) -> list[str]:
        """The pieces of the first line."""
        return workload_headline(self)
