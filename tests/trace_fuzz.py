"""Traces for the tests: small whole ones in every layout that PyTorch has written, a corpus of damaged and odd ones, a fuzzer.

    PYTHONPATH=. python -m tests.trace_fuzz 600        fuzzes for 600 seconds: mutates, reads, analyses, reports what broke
"""

from __future__ import annotations

import gzip
import json
import random
import sys
import tempfile
import time
from pathlib import Path

START = 4458676522690       # microseconds, as a boot clock gives them


def events(steps: int = 2) -> list[dict]:
    """A host thread with operators and launches, one stream of kernels, copies; `steps` steps of 1 ms."""
    out = [{"ph": "M", "name": "process_name", "ts": START, "pid": 10, "tid": 0, "args": {"name": "python"}}]
    for s in range(steps):
        t = START + 1000 * s
        out.append(_x("user_annotation", f"ProfilerStep#{s}", 10, 10, f"{t}.000", "1000.000", {"External id": 900 + s}))
        for i, (op, kernel) in enumerate((("aten::cudnn_convolution", "nchwToNhwcKernel<float>"), ("aten::cudnn_convolution", "cutlass_tensorop_s1688fprop"),
                                          ("aten::batch_norm", "cudnn::bn_fw_tr_1C11_kernel_NCHW"), ("aten::add_", "vectorized_elementwise_kernel"))):
            n, at = 100 * s + i, t + 100 * i
            out.append(_x("cpu_op", op, 10, 10, f"{at + 10}.125", "60.500", {"External id": n, "Input Dims": [[8, 3, 32, 32], []], "Ev Idx": n}))
            out.append(_x("cuda_runtime", "cudaLaunchKernel", 10, 10, f"{at + 20}.001", "5.250", {"External id": n, "cbid": 211, "correlation": 1000 + n}))
            out.append({"ph": "s", "id": 1000 + n, "pid": 10, "tid": 10, "ts": f"{at + 20}.001", "cat": "ac2g", "name": "ac2g"})
            out.append(_x("kernel", kernel, 0, 7, f"{at + 40}.007", "50.003", {"External id": n, "device": 0, "stream": 7, "correlation": 1000 + n, "grid": [1, 1, 1]}))
        out.append(_x("cuda_runtime", "cudaMemcpyAsync", 10, 10, f"{t + 500}.000", "6.000", {"correlation": 1090 + 100 * s}))
        out.append(_x("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 0, 7, f"{t + 520}.000", "20.000",
                      {"device": 0, "stream": 7, "correlation": 1090 + 100 * s, "bytes": 4096}))
    return out


def rich(steps: int = 4) -> list[dict]:
    """The same with everything that can be recorded: matmuls with shapes and types, modules, memory that grows, compiled code."""
    made = events(steps)
    for s in range(steps):
        t = START + 1000 * s
        shapes = {"Input Dims": [[64, 128], [128, 256]], "Input type": ["float", "float"]}
        made += [_x("python_function", "nn.Module: Net_0", 10, 10, f"{t + 5}.000", "600.000", {}), _x("python_function", "nn.Module: Linear_0", 10, 10, f"{t + 600}.000", "4.000", {}),
                 _x("cpu_op", "aten::mm", 10, 10, f"{t + 610}.000", "20.000", shapes), _x("cuda_runtime", "cudaLaunchKernel", 10, 10, f"{t + 612}.000", "2.000", {"correlation": 5000 + s}),
                 _x("kernel", "ampere_sgemm_64x64", 0, 7, f"{t + 620}.000", "30.000", {"device": 0, "stream": 7, "correlation": 5000 + s}),
                 _x("user_annotation", f"Torch-Compiled Region: 0/{s % 2}", 10, 10, f"{t + 640}.000", "20.000", {})]
        made += [{"ph": "i", "name": "[memory]", "ts": f"{t + at}.000", "pid": 10, "tid": 10, "s": "t",
                  "args": {"Total Reserved": 1 << 30, "Total Allocated": (s + 1) * size, "Bytes": size, "Addr": 1, "Device Id": 0, "Device Type": 1}} for at, size in ((20, 1 << 20), (500, 3 << 20))]
    return made


def _x(cat, name, pid, tid, ts, dur, args) -> dict:
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args}


def one(event: dict, indent: int | None = None) -> str:
    """One event's JSON, with its times as bare numbers."""
    text = json.dumps(event, indent=indent)
    for key in ("ts", "dur"):
        if isinstance(event.get(key), str):
            text = text.replace(json.dumps(event[key]), event[key], 1)
    return text


HEAD = '{\n  "schemaVersion": 1,\n  "deviceProperties": [{"id": 0, "name": "NVIDIA A100"}],\n  "distributedInfo": {"backend": "nccl", "rank": 3, "world_size": 8},\n  "traceEvents": [\n'
TAIL = '\n  ],\n  "traceName": "/tmp/x.json", "displayTimeUnit": "ms"\n}'


def classic(some=None) -> bytes:
    """Kineto's layout up to 2.12: several keys in a line."""
    return (HEAD + ",\n".join("  " + one(e) for e in some or events()) + TAIL).encode()


def native(some=None) -> bytes:
    """torch 2.13's: metadata first, one key per line, the comma of the arguments on a line of its own."""
    return (HEAD + ",\n".join(one(e, 2).replace(',\n  "args"', '\n  ,\n  "args"') for e in some or events()) + TAIL).encode()


def python_export(some=None) -> bytes:
    """2.13's Python export: an array, one line, no categories."""
    return ("[" + ", ".join(one({k: v for k, v in e.items() if k != "cat"}) for e in some or events() if e["ph"] == "X") + "]").encode()


def year_2021(some=None) -> bytes:
    """Categories of 2021, thread ids as text, whole microseconds."""
    names = {"cpu_op": "Operator", "cuda_runtime": "Runtime", "kernel": "Kernel", "gpu_memcpy": "Memcpy", "user_annotation": "Operator"}
    out = []
    for e in some or events():
        e = {**e, "cat": names.get(e.get("cat"), "async")}
        if e["ph"] == "X":
            e["ts"], e["dur"] = e["ts"].split(".")[0], e["dur"].split(".")[0]
            e["tid"] = "stream 7" if e["cat"] in ("Kernel", "Memcpy") else str(e["tid"])
            e["args"] = {("external id" if k == "External id" and e["cat"] != "Operator" else k): v for k, v in e["args"].items() if k not in ("stream", "device")}
        out.append(e)
    return ('{"schemaVersion": 1, "traceEvents": [' + ",\n".join(one(e) for e in out) + "]}").encode()


LAYOUTS = {"classic": classic, "native": native, "python_export": python_export, "year_2021": year_2021}


def linked(path: Path, folder: Path) -> Path:
    """A trace, or a directory of ranks, as links in a folder of the test's: what is kept beside a trace is kept there."""
    here = folder / path.name
    if path.is_dir():
        here.mkdir(exist_ok=True)
        for file in path.glob("*.json.gz"):
            linked(file, here)
    elif not here.exists():
        here.symlink_to(path)
    return here


def corpus() -> dict[str, bytes]:
    """Damaged and odd traces by name. A name that starts with "none_" has nothing to read, "odd_" nothing lost."""
    whole = classic()
    lines = whole.split(b"\n")
    at = next(i for i, line in enumerate(lines) if b"bn_fw_tr" in line)
    kernel = lines[at]

    def swap(old: bytes, new: bytes) -> bytes:
        assert old in kernel, old
        return b"\n".join([*lines[:at], kernel.replace(old, new, 1), *lines[at + 1:]])
    packed = gzip.compress(whole)
    deep = b"[" * 100_000 + b"]" * 100_000
    many = {
        "odd_intact": whole, "odd_nan_argument": swap(b'"stream": 7', b'"stream": 7, "occupancy": NaN'), "odd_nan_lower": swap(b'"stream": 7', b'"stream": 7, "x": nan'),
        "odd_inf_argument": swap(b'"stream": 7', b'"stream": 7, "x": inf'), "odd_minus_infinity": swap(b'"stream": 7', b'"stream": 7, "x": -Infinity'),
        "odd_control_character": swap(b"bn_fw", b"bn\x01_fw"), "odd_tab_in_name": swap(b"bn_fw", b"bn\t_fw"), "odd_newline_in_name": swap(b"bn_fw", b"bn\n_fw"),
        "odd_invalid_utf8": swap(b"bn_fw", b"bn\xff\xfe_fw"), "odd_backslash": swap(b"bn_fw", b"C:\\users\\bn_fw"), "odd_surrogate": swap(b"bn_fw", b"bn\\ud800_fw"),
        "odd_short_unicode_escape": swap(b"bn_fw", b"bn\\u12_fw"), "odd_array_form": b"[" + b",".join(one(e).encode() for e in events()) + b"]",
        "odd_array_without_end_space": b"  [\n" + b",\n".join(one(e).encode() for e in events()) + b"\n]\n\n", "odd_bom": b"\xef\xbb\xbf" + whole,
        "odd_cpu_only": classic([e for e in events() if e.get("cat") not in ("kernel", "gpu_memcpy", "cuda_runtime")]),
        "odd_no_step": classic([e for e in events() if "ProfilerStep" not in e["name"]]), "odd_duplicate_key": swap(b'"pid": 0', b'"pid": 0, "pid": 0'),
        "odd_duplicate_ids": whole.replace(b'"correlation": 1001', b'"correlation": 1000'), "odd_gzip": packed, "odd_two_gzip_members": gzip.compress(whole[:500]) + gzip.compress(whole[500:]),
        "odd_gzip_padding": packed + b"\0" * 100, "odd_nested_objects": swap(b'"stream": 7', b'"stream": 7, "list": [{"a": 1}, {"name": {"b": [{"c": 2}, {"d": 3}]}}]'),
        "odd_braces_in_name": swap(b"bn_fw", b"}, {bn_fw}, {"), "odd_brackets_in_name": swap(b"bn_fw", b"}] , bn_fw"), "odd_zero_duration": swap(b'"dur": 50.003', b'"dur": 0'),
        "odd_text_duration": swap(b'"dur": 50.003', b'"dur": "50.003"'), "odd_text_stream": swap(b'"stream": 7', b'"stream": "7"'), "odd_null_args": swap(b'"args": {', b'"args": null, "other": {'),
        "odd_list_args": swap(b'"args": {', b'"args": [1, 2], "other": {'), "odd_exponent": swap(b'"dur": 50.003', b'"dur": 5.0003e1'), "odd_pid_text": swap(b'"pid": 0', b'"pid": "GPU"'),
        "odd_huge_correlation": swap(b'"correlation": 1002', b'"correlation": 99999999999999999999999'), "odd_unknown_phase": whole.replace(b'"ph": "s"', b'"ph": "?"'),
        "odd_no_events": b'{"traceEvents": []}', "odd_no_events_array": b"[]", "odd_meta_after": b'{"traceEvents": [' + b",".join(one(e).encode() for e in events()) + b'], "INFO": ["] } {"]}',
        "odd_metadata_nan": whole.replace(b'"schemaVersion": 1', b'"schemaVersion": NaN'), "odd_crlf": whole.replace(b"\n", b"\r\n"),
        "lost_nan_time": swap(b'"ts": 4458', b'"ts": NaN, "was": 4458'), "lost_negative_duration": swap(b'"dur": 50.003', b'"dur": -50.003'),
        "lost_no_duration": swap(b'"dur"', b'"duration"'), "lost_no_phase": swap(b'"ph": "X", ', b""), "lost_huge_time": swap(b'"ts": 4458', b'"ts": 1e300, "was": 4458'),
        "lost_quote_in_name": swap(b"bn_fw", b'bn" _fw'), "lost_missing_brace": swap(b"}}", b"}"), "lost_half_an_event": b"\n".join([*lines[:at], kernel[:60] + b",", *lines[at + 1:]]),
        "lost_zeros_in_the_middle": b"\n".join([*lines[:at], b"\0" * len(kernel) + b"},", *lines[at + 1:]]), "lost_time_object": swap(b'"dur": 50.003', b'"dur": {}'),
        "lost_deep": swap(b'"stream": 7', b'"stream": 7, "x": ' + deep), "cut_json": whole[:len(whole) // 2], "cut_between_events": b"\n".join(lines[:at]), "cut_gzip": packed[:len(packed) // 2],
        "cut_before_the_end": whole[:whole.rindex(b"]")], "cut_gzip_checksum": packed[:-6], "cut_in_tail": whole[:-8], "broken_gzip": packed[:len(packed) // 2] + b"\xff" * 40 + packed[len(packed) // 2 + 40:],
        "odd_text_after": whole + b"\n{}", "none_empty": b"", "none_spaces": b"   \n", "none_text": b"hello, this is no trace", "none_object": b'{"a": 1}', "none_html": b"<!doctype html><html></html>",
        "none_utf16": whole.decode().encode("utf-16"), "none_zip": b"PK\x03\x04" + whole[:100], "none_gzip_of_nothing": gzip.compress(b""), "none_gzip_header": packed[:12],
        "none_cut_in_head": whole[:60], "none_garbage_events": b'{"traceEvents": [' + b"\xfe\x01\x02" * 500, "none_zero_bytes": b"\0" * 5000, "none_number": b"42", "none_deep": deep,
    }
    return many


def attempt(data: bytes, folder: Path):
    """Reads and analyses one; gives (trace, analysis, None) or (None, None, error message). Any other exception passes through."""
    from perfscope.errors import TraceError
    from perfscope.trace import analyze, read

    path = folder / "trace.json"
    path.write_bytes(data)
    try:
        trace = read(path, cache=False, limit_bytes=1 << 28)
        return trace, analyze(trace), None
    except TraceError as e:
        return None, None, e.message


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few random changes: bytes flipped, cut, doubled, moved, and the tokens that hurt parsers put in."""
    data = bytearray(data)
    hurt = (b'"', b"\\", b"{", b"}", b"[", b"]", b",", b"NaN", b"-", b"\0", b"\xff", b"null", b'"ph"', b"1e999", b"},{", b"}]", b'"ts": ')
    for _ in range(rng.randint(1, 6)):
        if not data:
            break
        i, j = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
        j = min(j, i + rng.randint(1, 400))
        kind = rng.randrange(6)
        if kind == 0:
            data[i] = rng.randrange(256)
        elif kind == 1:
            del data[i:j]
        elif kind == 2:
            data[i:i] = data[i:j]
        elif kind == 3:
            data[i:i] = rng.choice(hurt)
        elif kind == 4:
            data[i:j] = rng.choice(hurt)
        else:
            del data[i:]
    return bytes(data)


def main(seconds: float) -> None:
    rng, seeds = random.Random(1), [f() for f in LAYOUTS.values()] + list(corpus().values())
    end, n, read = time.monotonic() + seconds, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            data = mutated(rng.choice(seeds), rng)
            begin = time.process_time()
            try:
                read += attempt(data, Path(folder))[0] is not None
            except Exception:
                Path(f"fuzz-{n}.json").write_bytes(data)
                print(f"broke on fuzz-{n}.json", flush=True)
                raise
            if time.process_time() - begin > 5:
                print(f"slow: {time.process_time() - begin:.1f} s", flush=True)
            n += 1
    print(f"{n} mutants, {read} read in part or whole, {n - read} refused with a message, none broke")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60)
