"""A warning: part of every record and analysis, and in a file of its own so that a trace is read without the record of a run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Warned:
    """Something the reader must know: a stable code, what happened and why it matters, what to do."""

    code: str
    text: str
    hint: str = ""
    batch_size: int | None = None
    extra: dict = field(default_factory=dict)
