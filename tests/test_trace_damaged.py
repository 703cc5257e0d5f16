"""Damaged and odd traces: what can be read is read, what is lost is said, and nothing ever breaks or hangs."""

import gzip
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perfscope.errors import TraceError
from perfscope.trace import read
from perfscope.trace.text import sources, chunks
from tests.trace_fuzz import LAYOUTS, attempt, classic, corpus, events, mutated, one

CORPUS = corpus()
TRACES = Path(os.environ.get("PERFSCOPE_DATA", "/nonexistent")) / "traces"
CODES = {"lost": "events_lost", "cut": "truncated", "broken": "truncated"}


def test_corpus_is_large():
    assert len(CORPUS) >= 40


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_corpus(name, tmp_path):
    begin = time.process_time()
    trace, analysis, error = attempt(CORPUS[name], tmp_path)
    assert time.process_time() - begin < 5
    kind = name.split("_")[0]
    if kind == "none":
        assert trace is None and "trace.json" in error
        return
    if trace is None:
        assert kind in ("cut", "broken") and "byte" in error
        return
    counts, codes = trace.ranks[0].counts, {w.code for w in analysis.warnings}
    if kind == "odd":
        assert counts["lost"] == 0 and not codes & {"events_lost", "truncated"}
    elif name == "cut_in_tail":
        assert counts["events"] == len(events())
    else:
        assert CODES[kind] in codes
        assert any("byte" in w.text for w in analysis.warnings if w.code == CODES[kind])


def test_nothing_is_counted_twice_or_lost_silently(tmp_path):
    for name, data in CORPUS.items():
        if name.startswith("lost_") and name != "lost_zeros_in_the_middle":     # there the number is not to be known
            trace, _, _ = attempt(data, tmp_path)
            assert trace.ranks[0].counts["events"] + trace.ranks[0].counts["lost"] == len(events()), name


def test_repairs_change_no_figure(tmp_path):
    _, whole, _ = attempt(classic(), tmp_path)
    for name in ("nan_argument", "nan_lower", "inf_argument", "minus_infinity", "control_character", "invalid_utf8", "backslash", "surrogate",
                 "text_duration", "exponent", "null_args", "nested_objects", "braces_in_name", "crlf", "bom", "two_gzip_members"):
        _, other, _ = attempt(CORPUS[f"odd_{name}"], tmp_path)
        assert other.ranks[0].kernels_ns == whole.ranks[0].kernels_ns, name
        assert [s.busy_ns for s in other.ranks[0].steps] == [s.busy_ns for s in whole.ranks[0].steps], name


def test_offset_of_a_lost_event_is_where_it_stands(tmp_path):
    data = CORPUS["lost_negative_duration"]
    trace, _, _ = attempt(data, tmp_path)
    text = next(w.text for w in trace.warnings if w.code == "events_lost")
    at = int(text.rsplit("byte ", 1)[1])
    assert data[at:at + 1] == b"{" and b"-50.003" in data[at:data.index(b"\n", at)]


def test_ids_that_repeat_are_said(tmp_path):
    _, analysis, _ = attempt(CORPUS["odd_duplicate_ids"], tmp_path)
    assert "ids_repeat" in {w.code for w in analysis.warnings}


@pytest.mark.parametrize("seed", range(4))
def test_random_damage(seed, tmp_path):
    rng = random.Random(seed)
    bases = [f() for f in LAYOUTS.values()]
    for _ in range(40):
        attempt(mutated(rng.choice(bases), rng), tmp_path)          # no exception but TraceError


def test_every_cut_is_survived(tmp_path):
    data = classic()
    for at in range(1, len(data), 97):
        trace, _, error = attempt(data[:at], tmp_path)
        assert error or trace.ranks[0].counts["events"] <= len(events())


def test_bomb_is_stopped(tmp_path):
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b'{"traceEvents": [' + b" " * (40 << 20)))
    with pytest.raises(TraceError, match="bomb"):
        read(path, limit_bytes=8 << 20, cache=False)
    assert sum(map(len, chunks(sources(path)[0], [], 1 << 30))) == (40 << 20) + 17


def test_bomb_takes_little_memory(tmp_path):
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b'{"traceEvents": [' + one(events()[0]).encode() + b", " + b"1234567 " * (50 << 17)))
    code = ("import sys\nfrom perfscope.errors import TraceError\nfrom perfscope.trace import read\n"
            "try: read(sys.argv[1], cache=False)\nexcept TraceError as e: print(e.message)\n"
            "print(next(int(x.split()[1]) // 1024 for x in open('/proc/self/status') if x.startswith('VmHWM')))")
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    assert int(out.split()[-1]) < 400           # VmHWM: ru_maxrss would count what the parent had when it forked


def variants(text: bytes) -> dict[str, bytes]:
    """The fourteen odd variants of one trace on which other analysers fail."""
    at = text.index(b'"args": {', text.index(b'"cat": "kernel"')) + len(b'"args": {')
    name = text.index(b'"name": "', text.index(b'"cat": "kernel"')) + len(b'"name": "')
    events_at = text.index(b'"traceEvents": [') + len(b'"traceEvents": ')
    lines = text.split(b"},\n")

    def put(where: int, what: bytes) -> bytes:
        return text[:where] + what + text[where:]
    return {
        "intact": text, "NaN": put(at, b'"x": NaN, '), "nan": put(at, b'"x": nan, '), "inf": put(at, b'"x": inf, '), "control character": put(name, b"\x01"), "invalid UTF-8": put(name, b"\xff\xfe"),
        "backslash": put(name, b"C:\\q"), "truncated JSON": text[:len(text) // 2], "truncated gzip": gzip.compress(text)[:-50_000], "array form": text[events_at:text.rindex(b"]") + 1],
        "CPU only": b"},\n".join(line for line in lines if b'"kernel"' not in line and b'"gpu_mem' not in line), "empty": b"", "duplicate key": put(at, b'"stream": 7, "stream": 7, '),
        "no ProfilerStep": text.replace(b"ProfilerStep#", b"NoStep "),
    }


@pytest.mark.skipif(not TRACES.is_dir(), reason="$PERFSCOPE_DATA has no traces")
def test_fourteen_variants_of_a_real_trace(tmp_path):
    text = gzip.decompress((TRACES / "a100-resnet50-ddp-nchw.json.gz").read_bytes())
    found = {}
    for name, data in variants(text).items():
        trace, analysis, error = attempt(data, tmp_path)
        found[name] = error if trace is None else (trace.ranks[0].counts["events"], analysis.ranks[0].kernels_ns, {w.code for w in analysis.warnings})
    assert len(found) == 14 and "empty (0 bytes)" in found.pop("empty")
    assert found.pop("truncated JSON")[2] >= {"truncated"} and found.pop("truncated gzip")[2] >= {"truncated"}
    events_, kernels_, codes = found.pop("CPU only")
    assert events_ > 30_000 and kernels_ == 0 and "no_device_events" in codes
    events_, kernels_, codes = found.pop("no ProfilerStep")
    assert (events_, kernels_) == (40_573, found["intact"][1]) and "no_steps" in codes
    assert {v[:2] for v in found.values()} == {(40_573, 162_532_340)} and len(found) == 9, found       # to the nanosecond, whatever is odd about it
    assert not any(v[2] & {"truncated", "events_lost"} for v in found.values())
