"""What a probe finds and what a cure brought: the records of `diagnose` and `fix`. Standard library only.

Shares are fractions of the step, seconds are per step, changes are ln(cured/before): negative is faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from perfscope.measure.stats import Interval
from perfscope.record import Round


@dataclass(frozen=True)
class Place:
    """One place where a disease shows: a module, an operator, a kernel, a line of source, a setting."""

    where: str                                  # "layer1.0.norm", "aten::item at train.py:31", "cudnn.benchmark"
    saw: str                                    # what was seen there: dtypes, strides, backend and the condition that decided it


@dataclass(frozen=True)
class Finding:
    """One slow path with all the places where it shows.

    share     of the step that the suspects take, None if unknown; `basis` says how it was found:
              "ceiling" (their time in a trace: what would be saved if they were free), "alone" (measured on the layer
              alone, with and without the cure) or "" (not known)
    change    of the whole step with the cure, from a quick interleaved look; None if there was none
    evidence  whatever else was seen, JSON-ready: kernel names, shapes, counts, conditions
    """

    probe: str
    text: str                                   # one sentence: what is slow and why
    places: tuple[Place, ...] = ()
    cure: str = ""                              # one sentence: what to do
    code: str = ""                              # the lines that do it
    share: float | None = None
    basis: str = ""
    saves: Interval | None = None               # share of the step, with basis "alone"
    change: Interval | None = None
    verdict: str = ""                           # of the quick look: FASTER SLOWER SAME UNCLEAR
    curable: bool = False                       # `perfscope fix` can apply and prove it
    note: str = ""                              # what limits the advice: "not tried here: compiling takes long"
    known: bool = False                         # in the baseline, or suppressed
    evidence: dict[str, Any] = field(default_factory=dict)
    extra: dict = field(default_factory=dict)

    @property
    def worth(self) -> float:
        """What it is ranked by: the share of the step that the cure saves, as far as that is known."""
        if self.change is not None and math.isfinite(self.change.point):
            return -math.expm1(self.change.point)
        if self.saves is not None and math.isfinite(self.saves.point):
            return self.saves.point
        return self.share or 0.0

    @property
    def key(self) -> str:
        """What a baseline knows it by: the probe and the places, without figures."""
        return f"{self.probe}: " + ", ".join(sorted(p.where for p in self.places))


def ranked(findings) -> tuple[Finding, ...]:
    """The most valuable first; those that would make the step slower last."""
    return tuple(sorted(findings, key=lambda f: (f.known, -f.worth, f.probe)))


@dataclass(frozen=True)
class Numerics:
    """One step of the cured workload against a reference of higher precision, beside the original's.

    Errors are |x - reference| / |reference| (2-norms over a tensor). `worst` is the gradient with the largest error.
    """

    passed: bool
    reference: str                              # "float64"
    loss_error: float
    loss_error_before: float
    gradient_error: float                       # the largest over all parameters
    gradient_error_before: float
    allowed: float
    worst: str = ""                             # its parameter
    rule: str = ""                              # in words: what `allowed` is
    curve: tuple[float, ...] = ()               # losses of the cured workload, step by step
    curve_before: tuple[float, ...] = ()
    curve_passed: bool | None = None            # None: not compared
    text: str = ""
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One cure, measured on top of those that were kept before it: what came of it, with every raw sample."""

    cure: str                                   # "probe" or "probe:candidate"
    on_top_of: tuple[str, ...] = ()
    outcome: str = ""                           # kept rejected not-applicable interrupted
    change: Interval | None = None              # ln(cured/before) of the whole step
    verdict: str = ""
    reason: str = ""
    processes: tuple[tuple[Round, ...], ...] = ()   # rounds of each process, variants "before" and "cured"
    numerics: Numerics | None = None
    memory_before_bytes: int | None = None
    memory_bytes: int | None = None
    batch_size: int = 0
    error: str = ""
    text: str = ""                              # what the cure does, in a sentence
    code: str = ""
    extra: dict = field(default_factory=dict)
