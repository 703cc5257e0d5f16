"""The columns of a trace beside it, so that it opens at once the next time. One file, memory-mapped; never a pickle.

Layout: MAGIC, the length of a JSON header (8 bytes, little endian), the header (names, texts, what the file was), then
the arrays, each at a multiple of 64 bytes. It is used only if path, size, modification time and version all fit; it is
written to another name and moved into place; a folder that cannot be written to (then ~/.cache/perfscope) is no error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

import msgspec
import numpy as np

from perfscope.trace.columns import COLLECTIVE, COLUMNS, MEMORY, Events, Rank
from perfscope.trace.text import Source
from perfscope.warned import Warned

MAGIC = b"perfscope-columns"
VERSION = 6  # raise it whenever reading or analysing gives something else
ALIGN = 64  # bytes; a cache line
FROM_BYTES = 4 << 20  # text below this is read anew faster than a cache is worth the clutter


def key(source: Source, detail: str) -> dict:
    """What must be the same for a cache to be used."""
    stat = os.stat(source.path)
    return {
        "version": VERSION,
        "detail": detail,
        "path": os.path.abspath(source.path),
        "member": source.member,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
    }


def places(source: Source, detail: str, suffix: str = "columns") -> list[Path]:
    """Where the cache of a file may be: beside it, then in the user's cache."""
    full = os.path.abspath(source.path)
    name = hashlib.sha256(f"{full}\0{source.member}\0{detail}".encode()).hexdigest()[:24]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perfscope"
    return [Path(full).parent / ".perfscope" / f"{name}.{suffix}", home / f"{name}.{suffix}"]


def save(rank: Rank, source: Source) -> Path | None:
    """Writes the cache; gives where, or None where nothing can be written or it is not worth it."""
    if rank.counts["bytes"] < FROM_BYTES:
        return None
    arrays = {
        **{f"events.{c}": getattr(rank.events, c) for c in COLUMNS},
        **{f"memory.{c}": rank.memory[c] for c in MEMORY},
        **{f"collectives.{c}": rank.collectives[c] for c in COLLECTIVE},
        "blocks": rank.blocks,
    }
    try:
        header = {
            "key": key(source, rank.detail),
            "arrays": {},
            "rank": {k: getattr(rank, k) for k in _PLAIN},
            "warnings": [[w.code, w.text, w.hint] for w in rank.warnings],
        }
        at = 0
        for name, a in arrays.items():
            header["arrays"][name] = [a.dtype.str, list(a.shape), at]
            at += -(-a.nbytes // ALIGN) * ALIGN
        text = json.dumps(header).encode()
    except (OSError, ValueError, TypeError):
        return None
    start = MAGIC + len(text).to_bytes(8, "little") + text
    start += b"\0" * (-len(start) % ALIGN)

    def write(f):
        f.write(start)
        for a in arrays.values():
            f.write(memoryview(np.ascontiguousarray(a)).cast("B") if a.size else b"")
            f.write(b"\0" * (-a.nbytes % ALIGN))

    return _placed(places(source, rank.detail), write)


_PLAIN = ("source", "path", "member", "detail", "rank", "world", "meta", "names", "ids", "texts", "counts")


def _placed(where: list[Path], write) -> Path | None:
    for path in where:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as f:
                    write(f)
                os.replace(name, path)
                return path
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(name)
        except OSError:
            continue
    return None


def load(source: Source, detail: str) -> Rank | None:
    """The rank from its cache, or None. Anything that does not fit is no cache."""
    for path in places(source, detail):
        try:
            with open(path, "rb") as f:
                if f.read(len(MAGIC)) != MAGIC:
                    continue
                length = int.from_bytes(f.read(8), "little")
                if length > os.path.getsize(path):
                    continue
                header = json.loads(f.read(length))
            if header["key"] != key(source, detail):
                continue
            start = -(-(len(MAGIC) + 8 + length) // ALIGN) * ALIGN
            data = np.memmap(path, np.uint8, "r")
            arrays = {}
            for name, (dtype, shape, at) in header["arrays"].items():
                kind = np.dtype(dtype)
                n = kind.itemsize * int(np.prod(shape))
                if start + at + n > len(data):
                    raise ValueError("short")
                arrays[name] = data[start + at : start + at + n].view(kind).reshape(shape)

            def group(prefix, columns):
                return {c: arrays[f"{prefix}.{c}"] for c in columns}

            return Rank(
                **header["rank"],
                events=Events(**group("events", COLUMNS)),
                memory=group("memory", MEMORY),
                collectives=group("collectives", COLLECTIVE),
                blocks=arrays["blocks"],
                warnings=tuple(Warned(*w) for w in header["warnings"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def save_analysis(source: Source, detail: str, kept) -> Path | None:
    """Keeps an analysis (a dataclass with a `key`) as JSON beside the columns."""
    return _placed(places(source, detail, "analysis"), lambda f: f.write(msgspec.json.encode(kept)))


def load_analysis(source: Source, detail: str, kind: type):
    """The analysis that was kept, as `kind`, or None."""
    for path in places(source, detail, "analysis"):
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=kind)
            if kept.key == key(source, detail):
                return kept
        except (OSError, ValueError, msgspec.MsgspecError):
            continue
    return None
