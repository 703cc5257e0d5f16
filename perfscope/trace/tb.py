"""Repairs a trace for torch-tb-profiler 0.4.3: reads any Chrome trace as a stream and writes a copy that it understands.

The TensorBoard plugin of PyTorch was last changed in 2023 and gets today's traces wrong. What it expects was read off its
source (`profiler/trace.py`, `event_parser.py`, `node.py`, `communication.py`), and this is what the copy changes:

- launches are of category `cuda_runtime`, `cuda_driver`, ...; it knows only `runtime`, so every operator has 0 us of device
  time. An `External id` that is missing, or only repeats the correlation id, means "no operator": it wants 0 there.
- it drops every `user_annotation` but steps and collectives, so DataLoader and optimizer time are 0: they become operators,
  as they were in PyTorch 1.8; so do perfscope's own parts, and its data part becomes a DataLoader's `__next__`.
- it takes the `gpu_user_annotation` "ProfilerStep#5" for another step: steps count twice. They get a category it ignores.
- it finds a collective's kernels by the id of the annotation "nccl:all_reduce"; they carry that of `record_param_comms`
  around it. And it knows five collectives by name: the newer spellings get the old names.
- one event without a name, a category or a number costs it the whole file: such events are left out, and counted.
- its trace view cuts the text at the last "]": `traceEvents` comes last.

Two passes, an event at a time; memory does not grow with the file, time does (a million events, 214 MB of JSON: 23 MB and 12 s of CPU).
No torch and no TensorBoard is imported.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator

from perfscope.errors import EnvironmentError_, UsageError

VERSION = 1  # of the repair; part of the mark in the copy
MARK = "perfscopeRepaired"  # top-level key of a copy: {"version": 1, "of": name of the original}
CHUNK = 1 << 20  # characters read at a time
LONGEST = 1 << 20  # characters: no event is longer; what cannot be decoded within that is damaged
PREFIX = "perfscope:"  # of the record_function names that perfscope.trace.record writes

STEP = re.compile(r"ProfilerStep#\d+", re.ASCII)
LAUNCH = re.compile(r"(cuda|hip|xpu|mtia|privateuse1)?_?(runtime|driver)", re.ASCII)
LOADER = ("enumerate(DataLoader)#", "enumerate(DataPipe)#")
AS_OPERATOR = (*LOADER, "Optimizer.", "DistributedDataParallel.forward", "DataParallel.forward", PREFIX)
#: Newer names of collectives -> the five that the plugin knows (`NcclOpNameSet`); order matters.
COLLECTIVES = (
    ("reduce_scatter", "reduce_scatter"),
    ("all_gather", "all_gather"),
    ("allgather", "all_gather"),
    ("all_reduce", "all_reduce"),
    ("allreduce", "all_reduce"),
    ("broadcast", "broadcast"),
    ("reduce", "reduce"),
)
BOUNDARY = re.compile(r"\}\s*,\s*(?=\{)")
LONE_BACKSLASH = re.compile(r'\\(?!["\\/bfnrt]|u[0-9a-fA-F]{4})')
DECODER = json.JSONDecoder(strict=False)  # control characters inside strings are let through
SPACE = re.compile(r"[\s,\ufeff]*")


class _Text:
    """A growing window on a text: `ahead(n)` makes sure that n characters from `at` on are there, if the file has them."""

    def __init__(self, stream):
        self.stream, self.buffer, self.at, self.ended, self.broken = stream, "", 0, False, ""

    def ahead(self, n: int) -> None:
        while not self.ended and len(self.buffer) - self.at < n:
            try:
                more = self.stream.read(CHUNK)
            except (OSError, EOFError, zlib.error) as e:  # a truncated or damaged gzip: what came before counts
                more, self.broken = "", f"the compressed data ends in error ({e})"
            self.ended = not more
            self.buffer, self.at = self.buffer[self.at :] + more, 0

    def skip_space(self) -> str:
        """The next character that is neither white space nor a comma, "" at the end; not consumed."""
        while True:
            self.ahead(LONGEST)
            self.at = SPACE.match(self.buffer, self.at).end()
            if self.at < len(self.buffer) or self.ended:
                return self.buffer[self.at : self.at + 1]

    def value(self) -> Any:
        """The JSON value here. ValueError if there is none."""
        self.ahead(LONGEST)
        value, self.at = DECODER.raw_decode(self.buffer, self.at)
        return value


def is_gzip(path: Path) -> bool:
    """Whether a file begins as gzip does, whatever its name."""
    with open(path, "rb") as f:
        return f.read(2) == b"\x1f\x8b"


def open_text(path: Path) -> io.TextIOWrapper:
    """The text of a trace, unpacked. Bytes that are not UTF-8 become U+FFFD. EnvironmentError_ if it cannot be opened."""
    try:
        stream = gzip.open(path, "rb") if is_gzip(path) else open(path, "rb")
    except OSError as e:
        raise EnvironmentError_(f"cannot read {path}: {e.strerror or e}") from None
    return io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")


def looks_like_trace(path: Path) -> bool:
    """Whether the first quarter of a megabyte says that this is a Chrome trace."""
    try:
        with open_text(path) as f:
            head = f.read(CHUNK // 4).lstrip("\ufeff \r\n\t")
    except (OSError, EOFError, zlib.error, EnvironmentError_):
        return False
    return head.startswith(("{", "[")) and bool(re.search(r'"traceEvents"\s*:|"ph"\s*:', head))


def mark_of(path: Path) -> dict | None:
    """The mark of a copy that `repair` wrote, None for any other file."""
    try:
        with open_text(path) as f:
            found = re.match(rf'\{{"{MARK}": (\{{[^{{}}]*\}})', f.read(1000))
        return json.loads(found[1]) if found else None
    except (OSError, EOFError, zlib.error, ValueError, EnvironmentError_):
        return None


@dataclass
class Damage:
    """What could not be read: events left out, and the first reason."""

    events: int = 0
    why: str = ""

    def add(self, why: str, events: int = 1) -> None:
        self.events, self.why = self.events + events, self.why or why


def stream(path: Path, metadata: dict, damage: Damage) -> Iterator[dict]:
    """The events of a trace, one dict at a time; fills `metadata` (top-level keys) and `damage` on the way.

    UsageError if it is no trace at all: neither an array of events nor an object with `traceEvents`.
    """
    with open_text(path) as f:
        text = _Text(f)
        first = text.skip_space()
        if first == "[":
            yield from _array(text, damage)
        elif first == "{":
            text.at += 1
            if not (yield from _object(text, metadata, damage)):
                raise UsageError(
                    f"{path} is not a PyTorch trace: it has no traceEvents",
                    "Give a .pt.trace.json or .json.gz of torch.profiler.",
                )
        else:
            raise UsageError(
                f"{path} is not a PyTorch trace" + (": it is empty" if not first else ""),
                "Give a .pt.trace.json or .json.gz of torch.profiler.",
            )


def _object(text: _Text, metadata: dict, damage: Damage):
    """The members of the outermost object; returns whether one of them was `traceEvents`."""
    found = False
    while text.skip_space() not in ("", "}"):
        try:
            key = text.value()
            if text.skip_space() != ":" or not isinstance(key, str):
                raise ValueError("no key")
            text.at += 1
            text.skip_space()
            if key == "traceEvents" and text.buffer[text.at] == "[":
                found = True
                yield from _array(text, damage)
            else:
                metadata[key] = text.value()
        except (ValueError, IndexError, RecursionError):
            at = text.buffer.find('"traceEvents"', text.at + 1)
            if found or at < 0:
                damage.add("the text outside traceEvents is damaged", 0)
                break
            text.at = at
    return found


def _array(text: _Text, damage: Damage) -> Iterator[dict]:
    text.at += 1
    while True:
        first = text.skip_space()
        if first == "]":
            text.at += 1
            return
        if not first:
            damage.add(text.broken or "the file ends within traceEvents", 0 if not text.broken else 1)
            return
        try:
            event = text.value()
        except (ValueError, RecursionError) as e:
            event = _mended(text, damage, str(e))
            if event is None:
                continue
        if isinstance(event, dict):
            yield event
        else:
            damage.add(f"an event is no object but {str(event)[:40]!r}")


def _mended(text: _Text, damage: Damage, why: str) -> dict | None:
    """Past an event that does not decode: mended if only a backslash is wrong, else left out."""
    end = BOUNDARY.search(text.buffer, text.at)
    stop = end.start() + 1 if end else len(text.buffer)
    piece, text.at = text.buffer[text.at : stop], stop
    try:
        return DECODER.raw_decode(LONE_BACKSLASH.sub(r"\\\\", piece))[0]
    except (ValueError, RecursionError):
        damage.add(text.broken or (why if end else f"the file ends within an event ({why})"))
        return None


@dataclass
class Survey:
    """What a first pass found: what the repair needs, and what a recording is checked for."""

    metadata: dict = field(default_factory=dict)
    damage: Damage = field(default_factory=Damage)
    events: int = 0
    steps: list = field(default_factory=list)  # names of the host's ProfilerSteps
    parts: dict = field(default_factory=dict)  # perfscope part -> number of annotations
    counts: dict = field(
        default_factory=dict
    )  # ops, kernels, copies, launches, shapes, stacks, modules, memory, loaders
    communication: dict = field(default_factory=dict)  # id of record_param_comms -> id of the annotation inside it


def survey(path: Path) -> Survey:
    """One pass over a trace. UsageError if it is none."""
    found = Survey()
    count = dict.fromkeys(
        ("ops", "kernels", "copies", "launches", "shapes", "stacks", "modules", "memory", "loaders"), 0
    )
    collectives: dict[Any, list] = {}
    around: list = []
    for e in stream(Path(path), found.metadata, found.damage):
        found.events += 1
        category, name = str(e.get("cat", "")).lower(), str(e.get("name", ""))
        args = e.get("args") if isinstance(e.get("args"), dict) else {}
        if name == "[memory]":
            count["memory"] += 1
        elif e.get("ph") != "X":
            continue
        elif category in ("cpu_op", "operator", "user_annotation"):
            if STEP.fullmatch(name):
                found.steps.append(name)
            elif name.startswith(PREFIX):
                found.parts[name[len(PREFIX) :]] = found.parts.get(name[len(PREFIX) :], 0) + 1
            elif name.startswith(LOADER):
                count["loaders"] += 1
            elif category != "user_annotation":
                count["ops"] += 1
                count["shapes"] += "Input Dims" in args or "Input dims" in args
                count["stacks"] += "Call stack" in args
            if category == "user_annotation" and name.startswith("nccl:"):
                collectives.setdefault(e.get("tid"), []).append((e.get("ts"), args.get("External id")))
            elif name == "record_param_comms":
                around.append((e.get("tid"), e.get("ts"), e.get("dur"), args.get("External id")))
        elif category == "kernel":
            count["kernels"] += 1
        elif category in ("memcpy", "memset", "gpu_memcpy", "gpu_memset"):
            count["copies"] += 1
        elif category == "python_function":
            count["stacks"] += 1
            count["modules"] += "Python module id" in args
        elif LAUNCH.fullmatch(category):
            count["launches"] += 1
    found.counts = count
    found.communication = _communication(collectives, around)
    return found


def _communication(collectives: dict, around: list) -> dict:
    """id of each record_param_comms -> id of the first collective's annotation that lies in it, on the same thread."""
    found = {}
    ordered = {tid: sorted(c for c in spans if all(_is_number(x) for x in c)) for tid, spans in collectives.items()}
    for tid, ts, dur, own in around:
        spans = ordered.get(tid, [])
        at = bisect_left(spans, (ts, 0)) if _is_number(ts) and _is_number(dur) else len(spans)
        if at < len(spans) and spans[at][0] <= ts + dur:
            found[own] = spans[at][1]
    return found


def _is_number(x) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and x == x and abs(x) != float("inf")


def repaired(event: dict, communication: dict) -> dict | None:
    """One event as the old plugin wants it; None if it cannot be shown to it. Changes the dict that it is given."""
    name, phase = event.get("name"), event.get("ph")
    if not isinstance(name, str) or not isinstance(phase, str):
        return None
    if phase not in ("X", "i"):
        return event
    if not _is_number(event.get("ts")):
        return None
    if not isinstance(event.get("args", {}), dict):
        event["args"] = {}
    if phase == "i":
        return event
    category = event.get("cat")
    if not isinstance(category, str) or not _is_number(event.get("dur")) or event["dur"] < 0:
        return None
    kind = category.lower()
    if kind == "gpu_user_annotation":
        event["cat"] = "gpu_annotation"
    elif kind == "user_annotation":
        _annotation(event, name)
    elif LAUNCH.fullmatch(kind):
        args = event.setdefault("args", {})
        outside = args.get("External id", args.get("external id"))
        event["cat"] = "runtime"
        if not _is_number(outside) or (outside == args.get("correlation") and kind != "runtime"):
            args["External id"] = 0
    elif kind == "kernel":
        args = event.setdefault("args", {})
        args.setdefault("device", event["pid"] if isinstance(event.get("pid"), int) else 0)
        if args.get("External id") in communication:
            args["External id"] = communication[args["External id"]]
    if event["cat"].lower() in ("cpu_op", "operator", "runtime", "python_function", "user_annotation", "python"):
        tid = event.get("tid")
        if not isinstance(tid, int) and not (isinstance(tid, str) and tid.isascii() and tid.isdigit()):
            event["tid"] = zlib.crc32(str(tid).encode())  # it calls int() on every host thread
    return event


def _annotation(event: dict, name: str) -> None:
    if name.startswith("ProfilerStep#"):
        if not STEP.fullmatch(name):
            event["cat"] = "annotation"
    elif name == f"{PREFIX}data":
        event.update(cat="cpu_op", name=f"{LOADER[0]}{name}.__next__")
    elif name.startswith(AS_OPERATOR):
        event["cat"] = "cpu_op"
    elif name.startswith(("nccl:", "gloo:")):
        library, operation = name.split(":", 1)
        old = next((o for new, o in COLLECTIVES if new in operation), None)
        if old:
            event["name"] = f"{library}:{old}"


def repair(source: Path, target: Path, found: Survey | None = None) -> Survey:
    """Writes the copy of `source` for the old plugin to `target` (gzip); returns the survey, damage counted.

    The copy appears under its name when it is complete. UsageError if `source` is no trace, EnvironmentError_ if the copy
    cannot be written.
    """
    found = found or survey(source)
    damage = Damage()
    head = {
        MARK: {"version": VERSION, "of": Path(source).name},
        **{k: v for k, v in found.metadata.items() if k != MARK},
    }
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(partial, "wt", compresslevel=1, encoding="utf-8") as out:
            out.write(dumps(head)[:-1] + ', "traceEvents": [\n')
            between = ""
            for event in stream(Path(source), {}, damage):
                fixed = repaired(event, found.communication)
                if fixed is None:
                    damage.add("an event lacks its name, category, time or duration")
                    continue
                out.write(between + dumps(fixed))
                between = ",\n"
            out.write("\n]}")
        os.replace(partial, target)
    except OSError as e:
        raise EnvironmentError_(
            f"cannot write {target}: {e.strerror or e}", "Make room on the disk, or set TMPDIR to another folder."
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    found.damage = damage
    return found


def dumps(value) -> str:
    """JSON that every reader takes: NaN and infinities, which JSON has no word for, become null."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value):
    if isinstance(value, float):
        return value if _is_number(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
