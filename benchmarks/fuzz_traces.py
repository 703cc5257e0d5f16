"""A coverage-guided fuzz run of the trace reader and the analysis, with Google's atheris (libFuzzer).

    python -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris msgspec numpy isal
    /tmp/fuzz/bin/python -m benchmarks.fuzz_traces --minutes 10 [--keep FOLDER]

It starts from the corpus of tests/trace_fuzz.py. Each input is read twice, in both details, from a file, and analysed;
TraceError is the only exception allowed. A crash, 20 s of CPU time for one input, a hang (300 s by the clock, which a machine
that stands still also uses up) or 2 GB of memory ends the run with the input in FOLDER. Beyond crashes: both details must agree
on kernels and their time, and read events + lost ones are never fewer than the rows. Last line: inputs, coverage, verdict, as JSON. Needs no torch.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOKENS = ('"ts": ', '"dur": ', '"ph": "X"', '"cat": "kernel"', '"cat": "cpu_op"', '"cat": "cuda_runtime"', '"correlation": ', '"stream": ', '"device": ',
          '"Input Dims": [[', '"Input type": [', '"External id": ', '"Sequence number": ', '"name": "nn.Module: A_0"', '"cat": "python_function"',
          '"name": "[memory]"', '"ph": "i"', '"Total Allocated": ', '"Bytes": ', '"Device Type": ', '"name": "aten::mm"', '"name": "aten::convolution_backward"',
          '"name": "Torch-Compiled Region: 0/1"', '"name": "cudaGraphLaunch"', '"name": "cudaDeviceSynchronize"', '"traceEvents": [', "}, {", "NaN", "1e999", "-1", "\\u12", "ProfilerStep#")
MEGABYTES, SECONDS, HANG = 2048, 20, 300


def check(data: bytes, path: Path) -> None:
    """What must hold for any bytes."""
    from perfscope.errors import TraceError
    from perfscope.trace.analysis import analyze
    from perfscope.trace.reader import read
    path.write_bytes(data)
    begin, seen = time.process_time(), []
    for detail in ("full", "summary"):
        try:
            trace = read(path, detail, cache=False, limit_bytes=1 << 26)
        except TraceError as e:
            assert e.message
            seen.append(None)
            continue
        a = analyze(trace).ranks[0]
        assert all(s.busy_ns + s.idle_ns == s.duration_ns and s.idle_ns >= 0 for s in a.steps)
        assert a.critical is None or sum(a.critical.by_kind.values()) == a.critical.duration_ns
        assert trace.ranks[0].counts["rows"] <= trace.ranks[0].counts["events"]
        seen.append((sum(k.count for k in a.kernels), a.kernels_ns))
    assert None in seen or seen[0] == seen[1], seen
    assert time.process_time() - begin < SECONDS, "too slow"


def child(scratch: str, rest: list[str]) -> None:
    """The fuzzer itself: libFuzzer ends the process."""
    import atheris
    with atheris.instrument_imports(include=["perfscope.trace"]):
        from perfscope.trace import analysis, reader  # noqa: F401
    path = Path(scratch) / "trace.json"
    atheris.Setup([sys.argv[0], *rest], lambda data: check(bytes(data), path))
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"), help="where an input that breaks it is put")
    args = parser.parse_args()
    from tests.trace_fuzz import LAYOUTS, corpus
    with tempfile.TemporaryDirectory() as scratch:
        seeds = Path(scratch) / "corpus"
        seeds.mkdir()
        many = {**{k: f() for k, f in LAYOUTS.items()}, **corpus()}
        for name, data in many.items():
            if len(data) < 1 << 16:
                (seeds / name).write_bytes(data)
        words = Path(scratch) / "tokens"
        words.write_text("".join('"' + t.replace("\\", "\\\\").replace('"', '\\"') + '"\n' for t in TOKENS))
        args.keep.mkdir(parents=True, exist_ok=True)
        code = f"from benchmarks.fuzz_traces import child; child({scratch!r}, {[f'-dict={words}', f'-max_total_time={int(args.minutes * 60)}', f'-timeout={HANG}', f'-rss_limit_mb={MEGABYTES}', '-max_len=20000', '-len_control=0', '-print_final_stats=1', f'-artifact_prefix={args.keep}/', str(seeds)]!r})"
        begin = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        lines = done.stdout.splitlines()
        status = [line for line in lines if re.search(r"cov: \d+ ft: \d+", line)]
        last = re.search(r"cov: (\d+) ft: (\d+) corp: (\d+)", status[-1]) if status else None
        runs = re.search(r"(?:number_of_executed_units: |Done )(\d+)", done.stdout)
        if done.returncode:
            print("\n".join(lines[-60:]))
            for path in args.keep.glob("timeout-*"):        # libFuzzer's clock is the wall's: a machine that stood still looks like a hang
                begin = time.process_time()
                check(path.read_bytes(), Path(scratch) / "again.json")
                print(f"{path.name}: {time.process_time() - begin:.2f} s of CPU time when it is run again")
        print(json.dumps({"corpus": int(last[3]) if last else None, "inputs": int(runs[1]) if runs else None,
                          "coverage": int(last[1]) if last else None, "features": int(last[2]) if last else None, "minutes": args.minutes, "ran_minutes": round((time.monotonic() - begin) / 60, 1),
                          "broke": done.returncode != 0}))
        sys.exit(1 if done.returncode else 0)


if __name__ == "__main__":
    main()
