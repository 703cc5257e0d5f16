"""A speedrun's verdict and, of one arm, its certificate: everything it claims, line by line."""

from __future__ import annotations

import re

from perfscope.speedruns import words as said
from perfscope.sections import Rows, blocks_html, escape, pairs

TITLE = ""  # the headline of the page stands above it
ORDER = 10
KINDS = ("speedrun",)


def text(record) -> list[str | Rows]:
    """The verdict, then the certificate's lines."""
    out: list[str | Rows] = [said.verdict(record), f"Trained and evaluated on {record.data.name}: {record.data.split}."]
    if record.mode in ("certify", "runs") and record.results and record.results[0]:
        out.append(said.certificate_rows(record))
    return out


def render(record) -> str:
    """The same with the verdict set large."""
    verdict, *rest = text(record)
    body = "".join(pairs(dict(b.rows)) if isinstance(b, Rows) else blocks_html([b]) for b in rest)
    return f'<p class="verdict">{re.sub(r" (?=±|ms|%|s )", chr(160), escape(verdict))}</p>{body}'
