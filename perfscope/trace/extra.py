"""What the columns leave out: every argument of chosen events, read again from the file."""

from __future__ import annotations

import json

import numpy as np

from perfscope.trace.columns import Rank
from perfscope.trace.decode import REFUSED, nanoseconds
from perfscope.trace.text import Source, chunks


def arguments(rank: Rank, rows) -> list[dict]:
    """Every argument of these rows, read again from the file. A row whose text is gone gives {}."""
    rows = [int(r) for r in rows]
    e, answers = rank.events, {}
    block_of = np.searchsorted(rank.blocks[:, 0], rows, side="right") - 1
    wanted: dict[int, list[int]] = {}
    for row, block in zip(rows, block_of):
        wanted.setdefault(int(block), []).append(row)
    spans = [(int(rank.blocks[b, 1]), int(rank.blocks[b, 1] + rank.blocks[b, 2]), r) for b, r in sorted(wanted.items())]
    at, text = 0, b""
    for chunk in chunks(Source(rank.path, rank.member), []):
        text += chunk
        while spans and at + len(text) >= spans[0][1]:
            begin, end, some = spans.pop(0)
            answers.update(_arguments(text[begin - at : end - at], rank, some))
        keep = spans[0][0] - at if spans else len(text)
        if keep > 0:
            at, text = at + min(keep, len(text)), text[keep:]
        if not spans:
            break
    return [answers.get(r, {}) for r in rows]


def _arguments(text: bytes, rank: Rank, rows: list[int]) -> dict[int, dict]:
    keys = {(rank.names[rank.events.name[r]], int(rank.events.ts_ns[r]), int(rank.events.dur_ns[r])): r for r in rows}
    try:
        found = json.loads(b"[" + text + b"]", strict=False, parse_float=str)
    except REFUSED:
        return {}
    answers = {}
    for event in found:
        try:
            row = keys.get((event["name"], nanoseconds(str(event["ts"])), nanoseconds(str(event["dur"]))))
        except (KeyError, TypeError, ValueError):
            continue
        if row is not None:
            answers[row] = event.get("args", {})
    return answers
