"""Reads a trace into columns."""

from __future__ import annotations

import re
from functools import partial

from perfscope.errors import TraceError
from perfscope.trace import cache as store
from perfscope.trace.builder import Builder
from perfscope.trace.columns import Rank, Trace
from perfscope.trace.decode import EVENT, LISTS, REFUSED, lenient, nanoseconds
from perfscope.trace.ending import rank_of
from perfscope.trace.kinds import decoder
from perfscope.trace.text import CHUNK, Break, Source, chunks, sources
from perfscope.trace.times import exact_ns
from perfscope.warned import Warned

HEAD = re.compile(rb'"traceEvents"\s*:\s*\[')
HEAD_LIMIT = 64 << 20  # metadata before the events; real ones have a few kilobytes
TAIL_LIMIT = 16 << 20  # metadata after them (INFO logs); more is left out and said
CARRY_LIMIT = 32 << 20  # text without a place to cut at: four times the longest event that is repaired
LARGEST_HEAP = (32 << 20) - (1 << 16)  # bytes; glibc's DEFAULT_MMAP_THRESHOLD_MAX, less room for its header
PATIENCE = 32  # so many blocks (12 MB) with unknown categories, and the attempt to decode by category is given up


def read(path, detail: str = "full", limit_bytes: int | None = None, executor=None, cache: bool = True) -> Trace:
    """A trace of any size as columns.

    `path`: .json, .json.gz, a tar or a directory of ranks, or "-". `detail`: "full", or "summary" (no operators, no
    shapes, and no calls that neither launch nor wait: half the time and memory). `limit_bytes`: of text per file (a
    decompression bomb is stopped there). `executor`: any concurrent.futures executor; each rank is one task. `cache`: keep the columns beside the file (or in
    ~/.cache/perfscope) for the next time. Raises TraceError if nothing can be read.
    """
    if detail not in ("full", "summary"):
        raise TraceError(f"there is no detail {detail!r}", 'Known: "full", "summary".')
    found = sources(path)
    task = partial(read_rank, detail=detail, limit_bytes=limit_bytes, cache=cache)
    ranks, warnings = [], []
    for source, rank in zip(
        found, (executor.map if executor and len(found) > 1 else map)(partial(_attempt, task), found)
    ):
        if isinstance(rank, TraceError):
            if len(found) == 1:
                raise rank
            warnings.append(Warned("not_a_trace", f"left out {source.label}: {rank.message}", rank.hint))
        else:
            ranks.append(rank)
    if not ranks:
        raise TraceError(
            f"none of the {len(found)} files in {path} can be read as a trace; the first: {warnings[0].text}",
            warnings[0].hint,
        )
    ranks.sort(key=lambda r: r.rank)
    return Trace(tuple(ranks), (*warnings, *(w for r in ranks for w in r.warnings)))


def _attempt(task, source: Source):
    try:
        return task(source)
    except TraceError as e:
        return e


def read_rank(source: Source, detail: str = "full", limit_bytes: int | None = None, cache: bool = True) -> Rank:
    """One file's events. Raises TraceError if there are none to be had."""
    known = store.load(source, detail) if cache and source.lasting else None
    if known is not None:
        return known
    _keep_pages()
    reader = _Reader(source, detail)
    for chunk in chunks(source, reader.broken, limit_bytes):
        reader.feed(chunk)
    rank = reader.finish()
    if cache and source.lasting:
        store.save(rank, source)
    return rank


def _keep_pages() -> None:
    """Makes glibc keep the pages that one block frees for the next block, instead of giving them back and faulting them in again.

    Its threshold for mapping memory rises to the size of the largest mapped piece that was freed, and that for giving memory
    back to twice that (mallopt(3), M_MMAP_THRESHOLD). No page of the piece is touched. A sixth of the reader's CPU time;
    elsewhere it does nothing.
    """
    bytes(LARGEST_HEAP)


class _Reader:
    """The state of reading one file: text that waits for its end, and what was lost so far."""

    def __init__(self, source: Source, detail: str):
        self.source, self.detail = source, detail
        self.builder = Builder(detail)
        self.broken: list[Break] = []
        self.lost: list[tuple[int, str]] = []
        self.repaired: list[tuple[int, str]] = []
        self.blocks: list[tuple[int, int, int]] = []
        self.carry, self.at = b"", 0  # text not decoded yet, and the byte it starts at
        self.pieces: list[bytes] = []  # text that follows it, until it is worth decoding
        self.state = "head"  # then "events", then "tail"
        self.head = b""
        self.exact = False
        self.unknown = 0  # blocks that could not be decoded by category, less those that could
        self.left_out = 0  # bytes of metadata that were too many to keep

    def feed(self, chunk: bytes) -> None:
        self.pieces.append(chunk)
        if sum(map(len, self.pieces)) >= CHUNK // 2:
            self._take()

    def _take(self) -> None:
        pieces, self.pieces = self.pieces, []
        if self.state == "events" and self.builder.events and (cut := _last_cut(pieces[-1])) >= 0:
            self._quick(pieces, cut)  # the usual way: the text is copied once
            return
        text = b"".join((self.carry, *pieces))
        if self.state == "head":
            text = self._skip_head(text)
        if self.state == "events":
            text = self._events(text)
        if self.state == "tail" and len(text) > TAIL_LIMIT:
            self.left_out += len(text) - TAIL_LIMIT
            text = text[:TAIL_LIMIT]
        self.carry = text

    def _skip_head(self, text: bytes) -> bytes:
        bare = text.removeprefix(b"\xef\xbb\xbf").lstrip()
        if bare[:1] == b"[":
            start, self.head = len(text) - len(bare) + 1, b""
        elif m := HEAD.search(text):
            start, self.head = m.end(), text[: m.start()]
        elif bare and bare[:1] != b"{":
            raise TraceError(
                f"{self.source.label} is not a trace: it starts with {bytes(bare[:20])!r}",
                "Give a Chrome trace (JSON) of torch.profiler.",
            )
        elif len(text) > HEAD_LIMIT:
            raise TraceError(
                f'{self.source.label} has no "traceEvents" in its first {HEAD_LIMIT >> 20} MB',
                "Give a Chrome trace (JSON) of torch.profiler.",
            )
        else:
            return text
        self.state = "events"
        self.at = start
        return text[start:]

    def _events(self, text: bytes) -> bytes:
        if not self.blocks and not self.builder.events:
            start = len(text) - len(text.lstrip())
            if text[start : start + 1] == b"]":
                self.state, self.at = "tail", self.at + start + 1
                return text[start + 1 :]
        cut = _last_cut(text)
        if cut < 0:
            if len(text) > CARRY_LIMIT:
                self.lost.append((self.at, f"{len(text) >> 20} MB without the end of an event"))
                self.at += len(text)
                return b""
            return text
        return self._block(text, cut) if self.state == "events" else text

    def _quick(self, pieces: list[bytes], cut: int) -> None:
        *before, last = pieces
        whole = b"".join((b"[", self.carry, *before, memoryview(last)[: cut + 1], b"]"))
        rest = self._decoded(whole)
        if self.state == "tail":
            self.at += rest
            self.carry = whole[1 + rest : -1] + last[cut + 1 :]
            return
        following = last[cut + 1 :].lstrip().removeprefix(b",").lstrip()
        self.at += len(whole) - 2 + len(last) - cut - 1 - len(following)
        self.carry = following

    def _block(self, text: bytes, cut: int) -> bytes:
        rest = self._decoded(b"".join((b"[", memoryview(text)[: cut + 1], b"]")))
        if self.state == "tail":
            self.at += rest
            return text[rest:]
        following = text[cut + 1 :].lstrip().removeprefix(b",").lstrip()
        self.at += len(text) - len(following)
        return following

    def _decoded(self, whole: bytes, last: bool = False) -> int:
        """Takes the events of a piece in brackets; gives where the tail starts in it if the list ends there (state becomes "tail")."""
        first = self.builder.rows
        taken = self._strictly(whole)
        end = -1 if taken else self._leniently(whole[1:-1], last)
        self.blocks.append((first, self.at, len(whole) - 2))
        if end >= 0:
            self.state = "tail"
        return end

    def _strictly(self, whole: bytes) -> bool:
        """Takes the events of a list that is faultless: by their categories, where these are known, else by their phases.

        Kineto writes the host's operators first, then the device's work and its flows. Phases are the quicker way through the latter: a
        flow's category comes late in its text, so that msgspec reads a flow twice to know what it is.
        """
        device = self.detail == "summary" and not self.builder.operators
        ways = ("phase of the device",) * device + ("category",) * (self.unknown <= PATIENCE) + ("phase",)
        for way in ways:
            for exact in (True,) if self.exact else (False, True):
                try:
                    decode = decoder(self.detail, exact, self.builder.annotated) if way == "category" else LISTS[self.detail, exact]
                    events = decode.decode(whole)
                except REFUSED:
                    break
                if self.builder.add(events, exact, way == "phase of the device"):
                    self.exact = self.exact or exact
                    if way == "category":
                        self.unknown = max(0, self.unknown - 1)
                    elif way == "phase":
                        self.unknown += 1
                    return True
        return False

    def _leniently(self, piece: bytes, last: bool) -> int:
        out = lenient(piece, self.at, self.detail, last)
        wanted, good = tuple(EVENT.values()), []
        for event, offset in zip(out.events, out.offsets):
            if isinstance(event, wanted):
                try:
                    duration, _ = nanoseconds(_text(event.dur)), nanoseconds(_text(event.ts))
                except ValueError:
                    self.lost.append((offset, "a time that cannot be used"))
                    continue
                if duration < 0:
                    self.lost.append((offset, "a negative duration"))
                    continue
            good.append(event)
        if not self.builder.add(good, True):
            good = [e for e in good if _fits(e)]
            if not self.builder.add(good, True):
                raise TraceError(
                    f"{self.source.label}: the events from byte {self.at} cannot be used", "Please report this trace."
                )
        self.lost += out.lost
        self.repaired += out.repaired
        return out.tail

    def finish(self) -> Rank:
        """The rank, once the text is over."""
        if self.pieces:
            self._take()
        if self.state == "head":
            if not self.carry.strip():
                raise self._nothing("it holds no text")
            raise self._nothing('it has no "traceEvents"')
        if self.state == "events":
            text = self.carry
            if text.strip():
                rest = self._decoded(b"[" + text + b"]", last=True) if text.strip() != b"]" else text.rindex(b"]") + 1
                if self.state == "tail" or text.strip() == b"]":
                    self.state, self.carry = "tail", text[rest:]
                    self.at += rest
            if self.state == "events" and not self.broken:
                self.broken.append(
                    Break(
                        self.at + len(text),
                        "the text ends before the list of events does: the file was cut, or is still being written",
                    )
                )
        if not self.builder.events and (self.lost or self.broken):
            raise self._nothing(self.lost[0][1] if self.lost else self.broken[0].why)
        return rank_of(self)

    def _nothing(self, why: str) -> TraceError:
        where = self.lost[0][0] if self.lost else self.broken[0].at if self.broken else self.at
        return TraceError(
            f"{self.source.label}: not one event can be read ({why}, byte {max(where, 0)})",
            "Give a Chrome trace (JSON) of torch.profiler.",
        )


def _text(value) -> str:
    return bytes(value).decode("ascii", "replace")


def _fits(event) -> bool:
    try:
        exact_ns([event.ts])
        return True
    except (ValueError, AttributeError):
        return False


def _last_cut(text: bytes) -> int:
    """Where the last event that has a successor ends: the `}` before a `,` and a `{`; -1 if there is none."""
    end = len(text)
    for _ in range(64):
        end = text.rfind(b"}", 0, end)
        if end < 0:
            return -1
        following = text[end + 1 : end + 65].lstrip()
        if following[:1] == b"," and following[1:].lstrip()[:1] == b"{":
            return end
    last = -1
    for m in re.finditer(rb"\}\s*,\s*\{", text):
        last = m.start()
    return last
