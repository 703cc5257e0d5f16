"""The text of a trace, decompressed piece by piece: from a file, gzip, a tar or directory of ranks, or standard input.

Memory stays at a few megabytes whatever the file holds. A stream that breaks off gives what it had and a note;
one that unpacks without end is stopped at a limit.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Iterator

from perfscope.errors import TraceError

try:
    from isal import isal_zlib as _zlib  # three times as fast as the standard library

    _ERRORS: tuple = (zlib.error, _zlib.IsalError)
except ImportError:
    _zlib, _ERRORS = zlib, (zlib.error,)

CHUNK = 3 << 17  # text at a time: less costs more calls per event, more falls out of the second-level cache (3 % each way)
PACKED = 1 << 14  # compressed bytes handed over at a time: what a damaged place can take with it
LIMIT = 64 << 30  # text of one file; ten times the largest trace reported in PyTorch's issues
RATIO = 300  # real traces shrink 8 to 40 times, one repeated a hundred times 60; a bomb of zeros 1000 times
RATIO_FROM = 256 << 20  # the ratio is looked at after this much text: small files may be as repetitive as they like
SUFFIXES = (".json", ".json.gz", ".json.gzip")


@dataclass(frozen=True)
class Source:
    """One rank's text: a file, or a member of a tar. `label` is for people; `name` is what they call a file that is only ours."""

    path: str
    member: str = ""
    name: str = ""

    @property
    def label(self) -> str:
        path = self.name or self.path
        return f"{path}:{self.member}" if self.member else path

    @property
    def lasting(self) -> bool:
        """Whether it is there the next time: not standard input."""
        return self.path != "-" and not self.name


@dataclass
class Break:
    """Where and why the text stopped too early. `at`: byte in the decompressed text."""

    at: int
    why: str


def sources(path) -> list[Source]:
    """The ranks behind a path, in the order of the numbers in their names. Raises TraceError if there are none."""
    if str(path) == "-":
        return _standard_input(sys.stdin.buffer)
    here = Path(path)
    try:
        if here.is_dir():
            return [Source(str(p)) for p in _in_folder(here)]
        with open(here, "rb") as f:
            head = f.read(512)
        if not head:
            raise TraceError(f"{here} is empty (0 bytes)", "The profiler did not finish writing it: record it again.")
        return _in_tar(here) if _is_tar(here, head) else [Source(str(here))]
    except FileNotFoundError:
        raise TraceError(
            f"there is no file or directory {here}", "Give a .json, .json.gz, a tar or a directory of traces."
        ) from None
    except OSError as e:
        raise TraceError(f"cannot open {here}: {e.strerror or e}", "Check the path and its permissions.") from None


@lru_cache(maxsize=1)  # it can be read once, and is asked for more than once
def _standard_input(stream: BinaryIO) -> list[Source]:
    """The text of one trace, or, if it is a tar, its members, from a copy that is deleted at the end: a pipe cannot be read twice."""
    head = stream.peek(512)[:8192] if hasattr(stream, "peek") else b""
    if head[:2] == b"\x1f\x8b":
        with contextlib.suppress(*_ERRORS):
            head = zlib.decompressobj(31).decompress(head, 512)
    if head[257:262] != b"ustar":
        return [Source("-")]
    handle, path = tempfile.mkstemp(prefix="perfscope-", suffix=".tar")
    atexit.register(_remove, path, os.getpid())
    try:
        with os.fdopen(handle, "wb") as f:
            shutil.copyfileobj(stream, f, 1 << 20)
    except OSError as e:
        raise TraceError(
            f"the tar on standard input cannot be kept in {tempfile.gettempdir()}: {e.strerror or e}",
            "Set TMPDIR to a folder with room for it, or give the file itself.",
        ) from None
    return _in_tar(Path(path), "standard input")


def _remove(path: str, process: int) -> None:
    if os.getpid() == process:  # not in a process that was forked from this one
        with contextlib.suppress(OSError):
            os.unlink(path)


def _in_folder(folder: Path) -> list[Path]:
    for found in (folder.iterdir(), folder.rglob("*")):
        files = [p for p in found if p.name.endswith(SUFFIXES) and p.is_file()]
        if files:
            return sorted(files, key=lambda p: _natural(str(p)))
    raise TraceError(f"{folder} has no .json or .json.gz file", "Give the directory that the profiler wrote into.")


def _natural(text: str) -> list:
    return [(0, int(t), "") if t.isdigit() else (1, 0, t) for t in re.findall(r"\d+|\D+", text)]


def _is_tar(path: Path, head: bytes) -> bool:
    if head[257:262] == b"ustar":
        return True
    return head[:2] == b"\x1f\x8b" and re.search(r"\.(tar\.gz|tgz)$", path.name) is not None


def _in_tar(path: Path, name: str = "") -> list[Source]:
    called = name or str(path)
    names: list[str] = []
    try:
        with tarfile.open(path) as tar:
            for m in tar:
                if m.isfile() and m.name.endswith(SUFFIXES):
                    names.append(m.name)
    except (tarfile.TarError, EOFError, *_ERRORS) as e:
        if not names:  # else: the member in which it breaks off says so when it is read
            raise TraceError(
                f"{called} is a damaged tar archive ({str(e).splitlines()[0].rstrip(':')})", "Unpack what is left of it and give the directory."
            ) from None
    if not names:
        raise TraceError(f"{called} holds no .json or .json.gz file", "Give a tar of the ranks' traces.")
    return [Source(str(path), n, name) for n in sorted(names, key=_natural)]


def chunks(source: Source, broken: list[Break], limit: int | None = None) -> Iterator[bytes]:
    """The decompressed text, at most CHUNK bytes at a time. What goes wrong on the way is appended to `broken`."""
    if source.member:
        with tarfile.open(source.path) as tar:
            member = next(m for m in tar if m.name == source.member)  # not by name: that reads the archive to its end
            yield from _unpacked(tar.extractfile(member), source, broken, limit or LIMIT)
    elif source.path == "-":
        yield from _unpacked(sys.stdin.buffer, source, broken, limit or LIMIT)
    else:
        with open(source.path, "rb", buffering=0) as f:
            yield from _unpacked(f, source, broken, limit or LIMIT)


def _unpacked(stream: BinaryIO, source: Source, broken: list[Break], limit: int) -> Iterator[bytes]:
    read = _reader(stream, broken)
    first = read(512)
    if not first and broken:
        raise TraceError(f"{source.label}: {broken[-1].why}", "Copy or record it again.")
    if not first:
        raise TraceError(
            f"{source.label} is empty (0 bytes)", "The profiler did not finish writing it: record it again."
        )
    if first[:2] == b"\x1f\x8b":
        yield from _gunzip(first, read, source, broken, limit)
        return
    if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise TraceError(
            f"{source.label} is UTF-16, not UTF-8",
            "PowerShell's > writes UTF-16: convert it, or copy the file instead.",
        )
    if first[:4] in (b"PK\x03\x04", b"\x28\xb5\x2f\xfd") or first[:3] == b"BZh":
        raise TraceError(
            f"{source.label} is compressed in a way that is not read here", "Unpack it first, or use gzip."
        )
    size = 0
    piece = first
    while piece:
        size += len(piece)
        if size > limit:
            raise _too_long(source, limit)
        yield piece
        piece = read(CHUNK)


def _reader(stream: BinaryIO, broken: list[Break]):
    def read(n: int) -> bytes:
        try:
            return stream.read(n)
        except (OSError, EOFError, tarfile.TarError, *_ERRORS) as e:
            broken.append(Break(-1, f"the file cannot be read to its end ({e})"))
            return b""

    return read


def _gunzip(packed: bytes, read, source: Source, broken: list[Break], limit: int) -> Iterator[bytes]:
    engine = _zlib.decompressobj(31)
    size = 0
    taken = len(packed)
    while True:
        if not packed:
            packed = read(PACKED)
            if not packed:
                if not engine.eof:
                    broken.append(
                        Break(size, "the gzip stream breaks off: the file was cut, or is still being written")
                    )
                break
            taken += len(packed)
        try:
            piece = engine.decompress(packed, CHUNK)
        except _ERRORS as e:
            broken.append(Break(size, f"the gzip stream is damaged near its byte {taken - len(packed)} ({e})"))
            break
        packed = engine.unconsumed_tail
        if engine.eof:
            packed = engine.unused_data.lstrip(b"\0") or read(PACKED)
            if packed[:2] == b"\x1f\x8b":
                engine = _zlib.decompressobj(31)
            elif packed:
                broken.append(Break(size + len(piece), "bytes that are not gzip follow the gzip stream"))
                packed = b""
        size += len(piece)
        if size > limit or (size > RATIO_FROM and size > RATIO * max(taken, PACKED)):
            raise _too_long(source, min(size, limit))
        yield piece
        if engine.eof and not packed:
            break


def _too_long(source: Source, size: int) -> TraceError:
    return TraceError(
        f"{source.label} unpacks to more than {size / 1e9:.1f} GB: stopped, it looks like a decompression bomb",
        "If it is a real trace, raise the limit: read(..., limit_bytes=...) or --limit-gb.",
    )
