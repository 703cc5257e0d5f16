"""Events out of a piece of JSON text: a strict, fast way, and a lenient one for the pieces that the strict one refuses.

Strict: a whole block at once into msgspec structs. A block is cut before a `{` that follows `},`; if that is not between
two events the block does not decode, so a block that decodes is a list of whole events. Lenient: event by event, with
repairs that cannot change a figure (NaN, control characters, bytes that are not UTF-8, lone backslashes), and a count of
what is lost, with the byte where it stood.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Union

import msgspec
from msgspec import Raw, Struct

NO = -1
_NONE = Raw(b"")
REFUSED = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)
BETWEEN = re.compile(rb"\}\s*,\s*(?=\{\s*\")")  # may stand between two events, or inside one's arguments
LIST_END = re.compile(rb"\}\s*\]")
GLUE = 16  # pieces that are put together again when an event's arguments hold a list of objects
ODD_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|-?\b(?:nan|inf|infinity)\b', re.I | re.S)
LONE_BACKSLASH = re.compile(r'\\(?:u(?![0-9a-fA-F]{4})|(?!["\\/bfnrtu]))')
LARGEST_US = 9.2e15  # microseconds whose nanoseconds fit into int64 (2^63 / 1000)
MAX_EVENT = 8 << 20  # one event's text; PyTorch cuts call stacks and shapes far below this


class SummaryArgs(Struct, gc=False, frozen=True):
    """The arguments that the summary needs."""

    correlation: Union[int, None] = NO
    stream: Union[int, str, None] = NO  # ROCm writes "0x0" into the runtime call's
    device: Union[int, str, None] = NO
    bytes: Union[int, float, str, None] = NO  # text in ROCm's copies


class FullArgs(SummaryArgs, gc=False, frozen=True):
    """The arguments that the complete analysis needs; texts stay raw and are interned."""

    external: Union[int, None] = msgspec.field(default=NO, name="External id")
    external_2021: Union[int, None] = msgspec.field(default=NO, name="external id")
    sequence: Union[int, None] = msgspec.field(default=NO, name="Sequence number")
    shapes: Raw = msgspec.field(default=_NONE, name="Input Dims")
    strides: Raw = msgspec.field(default=_NONE, name="Input Strides")
    dtypes: Raw = msgspec.field(default=_NONE, name="Input type")
    stack: Raw = msgspec.field(default=_NONE, name="Call stack")
    collective: Raw = msgspec.field(default=_NONE, name="Collective name")
    group: Raw = msgspec.field(default=_NONE, name="Process Group Name")
    elements: Raw = msgspec.field(default=_NONE, name="In msg nelems")


class NameArgs(Struct, gc=False, frozen=True):
    """Arguments of a metadata event: the name of a process or thread."""

    name: Raw = _NONE
    labels: Raw = _NONE


class MemoryArgs(Struct, gc=False, frozen=True):
    """Arguments of a memory event."""

    addr: Union[int, None] = msgspec.field(default=NO, name="Addr")
    bytes: Union[int, None] = msgspec.field(default=0, name="Bytes")
    device_type: Union[int, None] = msgspec.field(default=NO, name="Device Type")
    device_id: Union[int, None] = msgspec.field(default=NO, name="Device Id")
    allocated: Union[int, None] = msgspec.field(default=NO, name="Total Allocated")
    reserved: Union[int, None] = msgspec.field(default=NO, name="Total Reserved")


class Instant(Struct, gc=False, tag_field="ph", tag="i"):
    """An instant event, as memory is recorded."""

    name: str = ""
    ts: Raw = _NONE
    args: MemoryArgs = MemoryArgs()


class Meta(Struct, gc=False, tag_field="ph", tag="M"):
    """A metadata event."""

    name: str = ""
    pid: Union[int, str, None] = None
    tid: Union[int, str, None] = None
    args: NameArgs = NameArgs()


# the phases of the Trace Event Format that carry no duration: nothing of them is needed (flows repeat the correlation)
_REST = [msgspec.defstruct(f"Phase_{c}", [], gc=False, tag_field="ph", tag=c) for c in "stfnbeCNODPRcvVSTpF"]


def _event(args: type, time: type, name: str) -> type:
    none = Raw(b"") if time is Raw else None
    optional = time if time is Raw else Union[time, None]
    return msgspec.defstruct(
        name,
        [  # in the order in which Kineto writes them
            ("cat", str, ""),
            ("name", str, ""),
            ("pid", Union[int, str, None], None),
            ("tid", Union[int, str, None], None),
            ("ts", optional, none),
            ("dur", optional, none),
            ("args", args, args()),
        ],
        gc=False,
        tag_field="ph",
        tag="X",
    )


FastSummary = _event(SummaryArgs, Union[int, float], "FastSummary")
FastFull = _event(FullArgs, Union[int, float], "FastFull")
ExactSummary = _event(SummaryArgs, Raw, "ExactSummary")
ExactFull = _event(FullArgs, Raw, "ExactFull")
EVENT = {
    ("summary", False): FastSummary,
    ("full", False): FastFull,
    ("summary", True): ExactSummary,
    ("full", True): ExactFull,
}


def _union(event: type):
    kinds = event
    for kind in (Instant, Meta, *_REST):
        kinds = Union[kinds, kind]
    return kinds


LISTS = {key: msgspec.json.Decoder(list[_union(event)]) for key, event in EVENT.items()}
ONES = {detail: msgspec.json.Decoder(_union(EVENT[detail, True])) for detail in ("summary", "full")}


def nanoseconds(text) -> int:
    """Microseconds as decimal text (or a number) in whole nanoseconds, half to even. Raises ValueError if it is no time."""
    try:
        value = Decimal(text.strip().strip('"') if isinstance(text, str) else text)
        if not value.is_finite() or abs(value) > LARGEST_US:
            raise ValueError("no usable time")
        return int((value * 1000).to_integral_value())
    except (InvalidOperation, TypeError):
        raise ValueError("no usable time") from None


@dataclass
class Lenient:
    """What came out of a piece of text: events (structs), where each stood, and what was lost or repaired."""

    events: list = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lost: list[tuple[int, str]] = field(default_factory=list)  # byte offset, why
    repaired: list[tuple[int, str]] = field(default_factory=list)
    tail: int = -1  # where the text after the end of the list starts in the piece, -1: the list did not end


def lenient(piece: bytes, at: int, detail: str, last: bool = False) -> Lenient:
    """Events one by one from a piece that starts at an event. `at`: its byte offset; `last`: the text ends here."""
    out = Lenient()
    starts = [0, *(m.end() for m in BETWEEN.finditer(piece)), len(piece)]
    one, i = ONES[detail], 0
    while i < len(starts) - 1:
        begin = starts[i]
        used = 1
        text = piece[begin : starts[i + 1]].rstrip().removesuffix(b",")
        try:
            out.events.append(one.decode(text))
            out.offsets.append(at + begin)
            i += 1
            continue
        except REFUSED:
            pass
        more = text
        while more.count(b"{") > more.count(b"}") and used < GLUE and i + used < len(starts) - 1:
            used += 1
            more = piece[begin : starts[i + used]].rstrip().removesuffix(b",")
        if used > 1 and _keep(out, more, at + begin, detail):
            i += used
            continue
        end = _list_end(out, piece, begin, starts[i + 1], at, detail)
        if end >= 0:
            out.tail = end
            return out
        if not _keep(out, text, at + begin, detail):
            broken_off = last and i == len(starts) - 2
            if text.strip() and not (broken_off and text.strip() in (b"]", b"]}")):
                why = "the text breaks off" if broken_off else _why(text)
                out.lost += [(at + begin, why)] * max(
                    1, text.count(b'"ph"')
                )  # a broken one may have swallowed the next
        i += 1
    return out


def _list_end(out: Lenient, piece: bytes, begin: int, end: int, at: int, detail: str) -> int:
    """Where the list of events ends, if it ends between begin and end: after an event, with ']'."""
    for n, m in enumerate(LIST_END.finditer(piece, begin, end)):
        if n > 64:
            break
        if _keep(out, piece[begin : m.start() + 1], at + begin, detail):
            return m.end()
    return -1


def _keep(out: Lenient, text: bytes, at: int, detail: str) -> bool:
    try:
        out.events.append(ONES[detail].decode(text))
        out.offsets.append(at)
        return True
    except REFUSED:
        pass
    try:
        event, how = _repaired(text, detail)
    except REFUSED:
        return False
    if event is not None:
        out.events.append(event)
        out.offsets.append(at)
    out.repaired.append((at, how))
    return True


def _repaired(text: bytes, detail: str):
    """The event in a text that is not quite JSON, and what was wrong with it. Raises ValueError."""
    if len(text) > MAX_EVENT:
        raise ValueError("too long")
    how = []
    try:
        words = text.decode()
    except UnicodeDecodeError:
        words = text.decode(errors="replace")
        how.append("bytes that are not UTF-8")
    if re.search(r"[\x00-\x1f]", re.sub(r"[\n\r\t]", "", words)):
        how.append("a control character")
    odd = []

    def constant(value):
        odd.append(value)
        return None

    read = json.JSONDecoder(strict=False, parse_float=Decimal, parse_constant=constant)
    try:
        data = read.decode(words)
    except json.JSONDecodeError:
        mended = ODD_NUMBER.sub(lambda m: m[0] if m[0][0] == '"' else odd.append(m[0]) or "null", words)
        if mended == words:
            mended = LONE_BACKSLASH.sub(lambda m: "\\" + m[0], words)
            how.append("a lone backslash")
        data = read.decode(mended)
    if odd:
        how.append(f"{odd[0]} as a number")
    if not isinstance(data, dict):
        raise ValueError("not an event")
    return _coerced(data, detail, how), ", ".join(how) or "a value of the wrong type"


def _coerced(data: dict, detail: str, how: list):
    """The struct for a dictionary; values of the wrong type are converted where that is certain, and left out otherwise."""
    phase = data.get("ph")
    if phase not in ("X", "i", "M"):
        if isinstance(phase, str):
            return None
        raise ValueError("no phase")
    if phase == "X":
        for key in ("ts", "dur"):
            nanoseconds(data.get(key) if not isinstance(data.get(key), bool) else None)
    args = data.get("args") if isinstance(data.get("args"), dict) else {}
    for key in ("ts", "dur"):
        if key in data:
            data[key] = str(data[key]).strip()
    clean = {"ph": phase, "args": dict(args)}
    for key in ("name", "cat"):
        if data.get(key) is not None:
            clean[key] = str(data[key])
    for key in ("pid", "tid"):
        value = data.get(key)
        clean[key] = value if isinstance(value, (int, str)) and not isinstance(value, bool) else str(value)
    for key in ("ts", "dur"):
        if key in data:
            clean[key] = data[key]
    clean["args"] = {k: v for k, v in clean["args"].items() if _fits(phase, k, v, detail)}
    if len(clean["args"]) < len(args):
        how.append("an argument of the wrong type")
    return ONES[detail].decode(json.dumps(clean, default=str, ensure_ascii=False).encode(errors="replace"))


def _fits(phase: str, key: str, value, detail: str) -> bool:
    try:
        ONES[detail].decode(
            json.dumps({"ph": phase, "args": {key: value}}, default=str, ensure_ascii=False).encode(errors="replace")
        )
        return True
    except REFUSED:
        return False


def _why(text: bytes) -> str:
    try:
        json.loads(text.decode(errors="replace"), strict=False)
        return "a time that cannot be used, or no phase"
    except RecursionError:
        return "nested too deeply"
    except ValueError as e:
        return f"not JSON: {str(e).split(':')[0]}"
