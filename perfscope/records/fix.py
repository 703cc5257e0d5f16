"""The record of `perfscope fix`: every cure that was tried, with its raw samples, and the final stack against the original."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from perfscope.finding import Finding, Trial
from perfscope.measure.stats import Interval
from perfscope.record import SCHEMA, Environment, Provenance, Warned, WorkloadInfo
from perfscope.records import workload_headline


@dataclass(frozen=True)
class Record:
    """One treatment of one workload at one batch size."""

    id: str
    kind: str = "fix"
    status: str = "partial"                     # partial interrupted incomplete complete
    schema: str = SCHEMA
    provenance: Provenance = field(default_factory=Provenance)
    environment: Environment = field(default_factory=Environment)
    method: dict[str, Any] = field(default_factory=dict)
    workload: WorkloadInfo = field(default_factory=WorkloadInfo)
    batch_size: int = 0
    findings: tuple[Finding, ...] = ()          # of the diagnosis that it started from
    trials: tuple[Trial, ...] = ()              # in order
    kept: tuple[str, ...] = ()                  # cures, in the order in which they stack
    final: Trial | None = None                  # the whole stack against the original, measured again
    step_before: Interval | None = None         # seconds
    step_after: Interval | None = None
    floor_s: float | None = None                # of the original's dtype (METHOD 12); None if not counted
    code: str = ""                              # the lines to add
    patch: str = ""                             # a unified diff for `git apply`, or ""
    confirmed: dict[str, Any] = field(default_factory=dict)     # of --confirm
    warnings: tuple[Warned, ...] = ()
    own_cost: dict[str, float] = field(default_factory=dict)
    extra: dict = field(default_factory=dict)

    def headline(self) -> list[str]:
        """The pieces of the first line."""
        return workload_headline(self)
