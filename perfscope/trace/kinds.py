"""Events by their category: a decoder that knows, before it reads an event, which of its fields anybody wants.

decode.py's decoders tell events apart by their phase ("ph") and read the same fields of all that have a duration. Here the
category ("cat") decides: a kernel has a stream, a call has none, an operator has shapes; nothing is read of a flow, nor, in
the summary, of an operator (but its name, as long as it may be a step's: see Builder.annotated). A block with a category
that is not known here, or with an event that has none (metadata, the Python export), is refused and goes to decode.py's:
what is read is the same, only slower.

Every event of a block becomes a struct, and its type's `code` says what it is: the index of its category, or one of the
codes from ANY on.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, Union

import msgspec
from msgspec import Raw, Struct

from perfscope.trace import columns, decode
from perfscope.trace.columns import CATEGORIES, CPU_OP, KNOWN, OTHER, PYTHON
from perfscope.trace.decode import _NONE, NO, MemoryArgs, SummaryArgs

ANY = 100  # by its phase alone, with its category as text (decode.py)
NAMED = 101  # an operator, of which the summary has only the name
NOTHING = 102  # no duration, or not wanted
INSTANT = 103
META = 104
SKIPPED = 105  # of the host, with a duration, and not wanted

_FLOWS = Literal["s", "t", "f", "b", "n", "e"]
_SPELLED_2021 = ("Operator", "Runtime", "Kernel", "Memcpy", "Memset")  # capitals, in 2021 only


class CallArgs(Struct, gc=False, frozen=True):
    """What is wanted of a call into the device's runtime."""

    external: Union[int, None] = msgspec.field(default=NO, name="External id")
    correlation: Union[int, None] = NO
    bytes: Union[int, float, str, None] = NO  # ROCm's copies
    external_2021: Union[int, None] = msgspec.field(default=NO, name="external id")


class DeviceArgs(SummaryArgs, gc=False, frozen=True):
    """What is wanted of an event on the device."""

    external: Union[int, None] = msgspec.field(default=NO, name="External id")
    external_2021: Union[int, None] = msgspec.field(default=NO, name="external id")
    collective: Raw = msgspec.field(default=_NONE, name="Collective name")
    group: Raw = msgspec.field(default=_NONE, name="Process Group Name")
    elements: Raw = msgspec.field(default=_NONE, name="In msg nelems")


class SummaryCallArgs(Struct, gc=False, frozen=True):
    """What the summary wants of a call."""

    correlation: Union[int, None] = NO
    bytes: Union[int, float, str, None] = NO


class HostArgs(Struct, gc=False, frozen=True):
    """What is wanted of an operator or annotation."""

    external: Union[int, None] = msgspec.field(default=NO, name="External id")
    sequence: Union[int, None] = msgspec.field(default=NO, name="Sequence number")
    external_2021: Union[int, None] = msgspec.field(default=NO, name="external id")
    shapes: Raw = msgspec.field(default=_NONE, name="Input Dims")
    strides: Raw = msgspec.field(default=_NONE, name="Input Strides")
    dtypes: Raw = msgspec.field(default=_NONE, name="Input type")
    stack: Raw = msgspec.field(default=_NONE, name="Call stack")


decode.Instant.code, decode.Meta.code = INSTANT, META
for _kinds, _code in ((decode._REST, NOTHING), (decode.EVENT.values(), ANY)):
    for _kind in _kinds:
        _kind.code = _code


def _fields(category: int, detail: str, time: type, nameless: bool) -> tuple[int, list]:
    """The code of a category's events and their fields, in the order in which Kineto writes them."""
    phase = ("ph", Literal["X"])
    summary = detail == "summary"
    if summary and category in (PYTHON, OTHER, CPU_OP):
        return (NAMED, [("name", str, "")]) if category == CPU_OP and not nameless else (SKIPPED, [])
    who = [(n, Union[int, str, None], None) for n in ("pid", "tid")]
    when = [(n, time if time is Raw else Union[time, None], _NONE if time is Raw else None) for n in ("ts", "dur")]
    fields = [phase, ("name", str, ""), *who, *when]
    if category in columns.ON_DEVICE:
        args = SummaryArgs if summary else DeviceArgs
    elif category in columns.CALLS:
        args = SummaryCallArgs if summary else CallArgs
    elif category in columns.ON_HOST and not summary:
        args = HostArgs
    else:
        return category, fields
    return category, [*fields, ("args", args, args())]


def _struct(tag: str, code: int, fields: list) -> type:
    return msgspec.defstruct(f"Kind_{tag}", fields, gc=False, tag_field="cat", tag=tag, namespace={"code": code})


@cache
def decoder(detail: str, exact: bool, nameless: bool = False) -> msgspec.json.Decoder:
    """Decodes a list of events whose categories are all known; raises one of decode.REFUSED otherwise. `nameless`: the
    summary need not see the names of operators."""
    time = Raw if exact else Union[int, float]
    tags = [n for n in KNOWN if n not in ("", CATEGORIES[OTHER])] + list(_SPELLED_2021)
    kinds = [_struct(t, *_fields(KNOWN[t.lower()], detail, time, nameless)) for t in tags]
    kinds.append(_struct("Trace", *_fields(OTHER, detail, time, nameless)))
    kinds += [_struct(t, NOTHING, [("ph", _FLOWS)]) for t in ("ac2g", "fwdbwd", "async", "async_cpu", "async_gpu")]
    instant = [("ph", Literal["i"]), ("name", str, ""), ("ts", Raw, _NONE), ("args", MemoryArgs, MemoryArgs())]
    kinds.append(_struct("cpu_instant_event", INSTANT, instant if detail == "full" else instant[:1]))
    return msgspec.json.Decoder(list[Union[tuple(kinds)]])
