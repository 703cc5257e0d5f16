"""The end of reading one file: the rank with its metadata, and warnings about what was lost, repaired or cut off."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import numpy as np

from perfscope.trace.columns import COLLECTIVE, MEMORY, Rank
from perfscope.trace.decode import REFUSED
from perfscope.warned import Warned


def rank_of(reader) -> Rank:
    """What a reader (reader.py) has read, once its text is over: `builder`, `head`, `carry`, `lost`, `repaired`, `broken`, `blocks`."""
    b, meta = reader.builder, _meta(reader)
    events = b.columns()  # first: the last rows bring their names with them
    info = meta.get("distributedInfo")
    info = info if isinstance(info, dict) else {}
    number = info.get("rank")
    if not isinstance(number, int):
        m = re.search(r"rank[-_]?(\d{1,6})", Path(reader.source.member or reader.source.path).name)
        number = int(m[1]) if m else 0
    world = info.get("world_size")
    memory = {
        c: np.concatenate(v).astype(d) if v else np.zeros(0, d)
        for (c, d), v in zip(MEMORY.items(), b.memory.values())
    }
    collectives = {c: np.array(b.collectives[c], d) for c, d in COLLECTIVE.items()}
    meta["labels"] = [[n, p, t, x.decode(errors="replace")] for n, p, t, x in b.labels]
    counts = {
        "events": b.events,
        "rows": b.rows,
        "lost": len(reader.lost),
        "repaired": len(reader.repaired),
        "bytes": reader.at + len(reader.carry),
    }
    ids = [None] * (max(b.ids.values(), default=-1) + 1)
    for key, value in b.ids.items():
        ids[value] = key if ids[value] is None or isinstance(key, int) else ids[value]
    return Rank(
        source=reader.source.label,
        path=reader.source.path,
        member=reader.source.member,
        detail=reader.detail,
        rank=number,
        world=world if isinstance(world, int) else 1,
        meta=meta,
        names=list(b.names),
        ids=ids,
        texts=[t.decode(errors="replace") for t in b.texts],
        events=events,
        memory=memory,
        collectives=collectives,
        blocks=np.array(reader.blocks, np.int64).reshape(-1, 3),
        counts=counts,
        warnings=tuple(_warnings(reader)),
    )


def _meta(reader) -> dict:
    def pairs(text: bytes) -> dict:
        text = (
            text.strip()
            .removeprefix(b"\xef\xbb\xbf")
            .strip()
            .removeprefix(b"{")
            .removesuffix(b"}")
            .strip()
            .strip(b",")
        )
        try:
            value = msgspec.json.decode(b"{" + text + b"}")
        except REFUSED:
            try:
                value = json.loads("{" + text.decode(errors="replace") + "}", strict=False)
            except REFUSED:
                return {}
        return value

    tail = reader.carry.strip() if reader.state == "tail" else b""
    return {**pairs(reader.head), **(pairs(tail) if tail[:1] == b"," else {})}


def _warnings(reader):
    name = reader.source.label
    for gap in reader.broken:
        place = f"at byte {gap.at} of the text" if gap.at >= 0 else "on the way"
        yield Warned(
            "truncated",
            f"{name}: {gap.why} ({place}); the {reader.builder.events} events before it were read",
            "Totals are those of the part that was read.",
        )
    for code, found, what in (
        ("events_lost", reader.lost, "could not be read and are missing from every figure"),
        ("events_repaired", reader.repaired, "were read after a repair that changes no figure"),
    ):
        if found:
            kinds: dict[str, list[int]] = {}
            for offset, why in found:
                kinds.setdefault(why, []).append(offset)
            detail = "; ".join(f"{len(at)} x {why}, first at byte {at[0]}" for why, at in list(kinds.items())[:8])
            yield Warned(
                code,
                f"{name}: {len(found)} events {what}: {detail}",
                "Record the trace again if the missing part matters." if code == "events_lost" else "",
            )
    if reader.state == "tail" and reader.carry.strip()[:1] not in (b"", b",", b"}"):
        yield Warned(
            "text_after_the_end",
            f"{name}: {len(reader.carry) + reader.left_out} bytes after the list of events (byte {reader.at}) are no part of it",
        )
    if not reader.builder.events:
        yield Warned(
            "no_events",
            f"{name}: the list of events is empty",
            "Was the profiler started, and stopped before the export?",
        )
