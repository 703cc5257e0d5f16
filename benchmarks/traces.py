"""What reading and analysing a trace costs: CPU seconds and peak memory of child processes, beside HolisticTraceAnalysis.

    python -m benchmarks.traces make TRACE OUT.json.gz [--megabytes 600] [--kept 2]    a large trace from a real one
    python -m benchmarks.traces run TRACE [--peer PYTHON]                   one table; PYTHON: a venv with traceinsight (HTA)
    python -m benchmarks.traces growth TRACE [--megabytes 150,300,600] [--folder F]     CPU and memory by size of the text

`growth` makes one file after the other from a real trace, reads each (complete analysis, no cache), removes it, and fits a line
through CPU seconds and memory: `--megabytes 6000` does it for one file of 6 GB, 0.6 GB of disk at a time.

The large trace repeats a real one with its times shifted and its ids made fresh; the first two copies keep their
ProfilerSteps (HTA loops over steps in Python, so a trace with hundreds of them would not be a fair comparison).
CPU time, not wall time: the machine may be shared (that still costs 10 to 50 %, most of it in lost caches). Peak memory is the kernel's own figure for the child (ru_maxrss).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from perfscope.trace.cache import places
from perfscope.trace.text import Source

NUMBER = re.compile(rb'("ts": |"External id": |"external id": |"correlation": |"id": |"Sequence number": |ProfilerStep#)(\d+)')
KEPT = 2                    # copies that keep their steps: 2 x 3 of the A100 trace

CHILD = """
import resource, sys, time
{body}
spent = time.process_time()
print(spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, {result})
"""
OURS = """
from perfscope.trace.analysis import analyze_files
a = analyze_files(sys.argv[1], detail={detail!r}, cache={cache})
"""
RESULT = "sum(k.count for k in a.ranks[0].kernels), sum(k.total_ns for k in a.ranks[0].kernels), sum(s.idle_ns for s in a.ranks[0].spans), 'torch' in sys.modules"
PEER = """
from hta.trace_analysis import TraceAnalysis
t = TraceAnalysis(trace_files={{0: sys.argv[1]}})
k = t.get_gpu_kernel_breakdown(visualize=False)
b = t.get_temporal_breakdown(visualize=False)
i = t.get_idle_time_breakdown(ranks=[0], visualize=False)
"""


def make(source: Path, target: Path, megabytes: int, kept: int = KEPT) -> None:
    """Writes the large trace; `kept`: copies that keep their ProfilerSteps."""
    text = gzip.open(source).read()
    head = text.index(b"[", text.index(b'"traceEvents"')) + 1
    tail = text.rindex(b"}", 0, text.rindex(b"]", 0, text.index(b'"traceName"') if b'"traceName"' in text else len(text))) + 1
    parts = NUMBER.split(text[head:tail])
    times = [int(n) for key, n in zip(parts[1::3], parts[2::3]) if key == b'"ts": ']
    shift = max(times) - min(times) + 1_000_000
    ids = max(int(n) for key, n in zip(parts[1::3], parts[2::3]) if key not in (b'"ts": ', b"ProfilerStep#")) + 1
    steps = len({n for key, n in zip(parts[1::3], parts[2::3]) if key == b"ProfilerStep#"})
    with gzip.open(target, "wb", compresslevel=4) as out:       # one copy at a time: any size fits in memory
        out.write(text[:head])
        for copy in range(max(1, round(megabytes * 1e6 / len(text)))):
            new = list(parts)
            for i in range(1, len(new), 3):
                by = {b'"ts": ': shift, b"ProfilerStep#": steps}.get(new[i], ids)
                new[i + 1] = b"%d" % (int(new[i + 1]) + copy * by)
                if copy >= kept and new[i] == b"ProfilerStep#":
                    new[i] = b"TrainingStep#"
            out.write((b"," if copy else b"") + b"".join(new))
        out.write(text[tail:])


def _environment() -> dict:
    """That of the children. Bytecode is kept, as an installed perfscope has it (and the peer does): where PYTHONDONTWRITEBYTECODE
    is set, a checkout is compiled anew by every child."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def child(python: str, code: str, path: Path, env: dict) -> list[str]:
    """CPU seconds, MB and the figures of one child; raises CalledProcessError with its text."""
    done = subprocess.run([python, "-c", code, str(path)], capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{python} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1].split()


def command(path: Path, env: dict) -> list[str]:
    """The same of `perfscope trace analyze`, from the start of Python to its end."""
    code = ("import os, subprocess, sys\n"
            "ran = subprocess.Popen([sys.executable, '-m', 'perfscope', 'trace', 'analyze', sys.argv[1]], stdout=subprocess.DEVNULL)\n"
            "_, status, used = os.wait4(ran.pid, 0)\n"
            "print(used.ru_utime + used.ru_stime if status == 0 else None, used.ru_maxrss / 1024)")
    return child(sys.executable, code, path, env)


def run(path: Path, peer: str | None, repeat: int) -> list[dict]:
    """One row per task: the smallest of its CPU times, all of them, the largest memory. The tasks take turns, `repeat` times; the
    peer's one run comes in the middle, so that a machine that is shared is shared by all."""
    with tempfile.TemporaryDirectory() as home:
        env = {**_environment(), "XDG_CACHE_HOME": home}
        tasks = {"summary": ("summary", False), "complete": ("full", False), "complete, writes the cache": ("full", True),
                 "re-opened from the cache": ("full", True)}
        got: dict[str, list] = {name: [] for name in tasks}

        def ours(name: str) -> None:
            detail, cache = tasks[name]
            got[name].append(child(sys.executable, CHILD.format(body=OURS.format(detail=detail, cache=cache), result=RESULT), path, env))

        for turn in range(repeat):
            ours("summary")
            ours("complete")
            if peer and turn == (repeat - 1) // 2:
                code = CHILD.format(body=PEER.format(), result="len(k[0])")
                got["HolisticTraceAnalysis: kernels, temporal, idle"] = [child(peer, code, path, {**env, "PYTHONPATH": ""})]
        def forget() -> None:
            for suffix in ("columns", "analysis"):
                for old in places(Source(str(path)), "full", suffix):
                    old.unlink(missing_ok=True)

        got["command line"] = []
        for _ in range(repeat):
            forget()
            got["command line"].append(command(path, env))
        forget()
        ours("complete, writes the cache")
        for _ in range(repeat):
            ours("re-opened from the cache")
    return [{"task": name, "cpu_s": min(float(g[0]) for g in some), "all_cpu_s": [round(float(g[0]), 2) for g in some],
             "peak_mb": max(float(g[1]) for g in some), "figures": some[0][2:]} for name, some in got.items()]


def growth(source: Path, megabytes: list[int], folder: Path | None, detail: str) -> list[dict]:
    """One row per size, and with two or more a last one: what each further 100 MB of text cost, and the worst departure from a line."""
    env = _environment()
    rows = []
    with tempfile.TemporaryDirectory(dir=folder, prefix="perfscope-growth-") as scratch:
        for size in megabytes:
            path = Path(scratch) / f"{size}.json.gz"
            make(source, path, size)
            body = OURS.format(detail=detail, cache=False)
            got = child(sys.executable, CHILD.format(body=body, result="a.ranks[0].events, sum(k.count for k in a.ranks[0].kernels)"), path, env)
            rows.append({"megabytes": size, "packed_mb": path.stat().st_size / 1e6, "cpu_s": float(got[0]), "peak_mb": float(got[1]),
                         "events": int(got[2]), "kernels": int(got[3])})
            path.unlink()
    if len(rows) > 1:
        last = {}
        for figure in ("cpu_s", "peak_mb"):
            slope, base = np.polyfit([r["megabytes"] for r in rows], [r[figure] for r in rows], 1)
            last |= {f"{figure}_per_100_mb": 100 * slope, f"{figure}_at_0": base,
                     f"{figure}_worst_residual": max(abs(r[figure] / (base + slope * r["megabytes"]) - 1) for r in rows)}
        rows.append(last)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("make")
    one.add_argument("source", type=Path)
    one.add_argument("target", type=Path)
    one.add_argument("--megabytes", type=int, default=600)
    one.add_argument("--kept", type=int, default=KEPT, help="copies that keep their ProfilerSteps")
    two = verbs.add_parser("run")
    two.add_argument("trace", type=Path)
    two.add_argument("--peer")
    two.add_argument("--repeat", type=int, default=3)
    three = verbs.add_parser("growth")
    three.add_argument("trace", type=Path)
    three.add_argument("--megabytes", type=lambda t: [int(n) for n in t.split(",")], default=[150, 300, 600])
    three.add_argument("--folder", type=Path, help="where the files are made (default: the system's temporary folder)")
    three.add_argument("--detail", choices=("full", "summary"), default="full")
    args = parser.parse_args()
    if args.verb == "make":
        make(args.source, args.target, args.megabytes, args.kept)
        return
    for row in growth(args.trace, args.megabytes, args.folder, args.detail) if args.verb == "growth" else run(args.trace, args.peer, args.repeat):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
