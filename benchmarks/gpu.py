"""Evidence from a GPU machine, in one call of under 8 minutes: tests, breakdowns of resnet9, and noise of the same step.

    make gpu OUT=folder            or    python -m benchmarks.gpu --out folder [--only breakdowns,...] [--series] [--deadline 450]

Stages, in this order: tests (tests/gpu), breakdowns (resnet9 in five dtypes and two layouts), cures (diagnose and fix of resnet9 and
resnet18_cifar in half, amp-half and bfloat16), plants (a short trace of every disease that needs CUDA, and what the probes say about it).
Needs torch with CUDA, pytest, rich and typer, msgspec for the traces; no network, nothing installed. Writes small files: tests.txt,
records.json.gz (every run record by name), summary.txt (their tables), environment.json, failures.txt, plants/*.trace.json.gz, and with
--series series.json.gz: the same step under 6 names x 200 rounds x 3 processes, to hold METHOD's assumptions about noise against.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DTYPES = ("half", "float32", "bfloat16", "amp-half", "amp-bfloat16")
LAYOUTS = ("contiguous", "channels_last")
BUDGET_S = 8                # of measuring, per breakdown
SERIES = {"variants": 6, "rounds": 200, "processes": 3}


def breakdowns() -> list[tuple[str, list[str]]]:
    """(name, options) of every breakdown, the most telling first: graphs off, then graphs on."""
    return [(f"resnet9-{dtype}-{layout}{'-graph' if graph else ''}",
             ["--dtype", dtype, "--memory-format", layout, *(["--cuda-graph"] if graph else [])])
            for graph in (False, True) for dtype in DTYPES for layout in LAYOUTS]


def cures() -> list[tuple[str, list[str]]]:
    """(name, arguments) of every diagnosis and treatment, the article's case first."""
    return [(f"{verb}-{model}-{dtype}", [verb, "--model", model, "--dtype", dtype, "--batch", "512"])
            for model in ("resnet9", "resnet18_cifar") for dtype in ("half", "bfloat16", "amp-half") for verb in ("diagnose", "fix")]


def plant_one(name: str, folder: Path) -> dict:
    """Records a short trace of one planted disease on the GPU, and what every probe says about the planted step."""
    import torch

    from perfscope import contract, evidence, probing
    from perfscope.trace.record import record
    from perfscope.workload import step

    found = probing.probes()
    module = found[name]
    prepared = step.prepare(module.plant(contract.subject_of(module)), device="cuda")
    batches = step.load_batches(prepared, 64)
    seen = evidence.gather(prepared, batches)
    findings, failed, _ = probing.detect(found, seen)
    with evidence.full_step(prepared, batches) as variant, record(folder / name, steps=2, warmup=1, shapes=True) as recorder:
        for _ in range(3):
            variant.step()
            torch.cuda.synchronize()
            recorder()
    return {"probe": name, "fired": sorted({f.probe for f in findings}), "failed": failed, "texts": [f.text for f in findings]}


def call(*argv: str, timeout_s: float) -> tuple[int, str]:
    """(exit code, all output) of a perfscope or pytest call; 124 if it took too long."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    try:
        done = subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, env=environment, text=True, timeout=timeout_s,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired as e:
        return 124, (e.stdout or b"").decode(errors="replace") + "\ntimed out"


def series(process: int) -> dict:
    """One process of the A/A series: the full resnet9 step in half at batch 512, under several names."""
    from perfscope.measure.clock import clock_for, steps_per_sample
    from perfscope.measure.rounds import Timed, measure_rounds
    from perfscope.measure.warmup import warm_up
    from perfscope.record import to_dict
    from perfscope.workload import step
    from perfscope.workload.resolve import resolve

    prepared = step.prepare(resolve("resnet9"), device="auto", dtype="half", keep_original=False)
    batches = step.load_batches(prepared, 512 if prepared.device.type == "cuda" else 4)
    parts = step.present_parts(prepared, batches)
    full, clock = step.build(prepared, batches, parts, parts), clock_for(prepared.device)
    warm_up(full.step, clock=clock, cap_s=5)
    k = steps_per_sample(full.step, clock)
    measured = measure_rounds([Timed(f"a{i}", full.step) for i in range(SERIES["variants"])], clock=clock, k=k, rng_seed=process,
                              budget_s=120, target=1e-9, half_width=lambda r: 1.0, max_rounds=SERIES["rounds"])
    return {"process": process, "k": k, "stop": measured.stop, "rounds": to_dict(measured.rounds)}


def main() -> int:
    """Runs everything until the deadline; what was left out is said. 1 if something failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/gpu")
    parser.add_argument("--series", action="store_true", help="also the A/A series (about two minutes)")
    parser.add_argument("--deadline", type=float, default=450, help="seconds after which nothing new is started")
    parser.add_argument("--only", default="tests,breakdowns,cures,plants", help="stages, by name")
    parser.add_argument("--one-plant", help=argparse.SUPPRESS)
    parser.add_argument("--one-series", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_series is not None:
        print(json.dumps(series(args.one_series)))
        return 0
    if args.one_plant is not None:
        print(json.dumps(plant_one(args.one_plant, Path(args.out))))
        return 0
    out, begin, stages = Path(args.out), time.monotonic(), args.only.split(",")
    out.mkdir(parents=True, exist_ok=True)
    left = lambda: args.deadline - (time.monotonic() - begin)  # noqa: E731
    failures, records, summary = [], {}, []

    def note(name: str, code: int, text: str) -> None:
        print(f"{time.monotonic() - begin:6.1f} s  {name}: exit {code}", flush=True)
        if code not in (0, 4, 5):
            failures.append(f"== {name}: exit {code}\n{text[-4000:]}")

    if "tests" in stages:
        code, text = call("pytest", "tests/gpu", "-q", "-p", "no:cacheprovider", timeout_s=max(30, left()))
        (out / "tests.txt").write_text(text)
        note("tests/gpu", code, text)
    code, text = call("perfscope", "env", "--json", timeout_s=60)
    (out / "environment.json").write_text(text)
    note("env", code, text)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(name, ["breakdown", "--model", "resnet9", "--budget", f"{BUDGET_S}s", *options]) for name, options in breakdowns()
                if "breakdowns" in stages] + [job for job in cures() if "cures" in stages]
        for name, words in jobs:
            if left() < 3 * BUDGET_S:
                failures.append(f"== {name}: not started, the deadline of {args.deadline:g} s came first")
                continue
            code, text = call("perfscope", *words, "--quiet", "--out", f"{folder}/{name}", timeout_s=max(30, left()))
            note(name, code, text)
            summary.append(f"== {name}\n{text}")
            record = Path(folder, name, "run.json")
            if record.exists():
                records[name] = json.loads(record.read_text())
    if "plants" in stages:
        from perfscope import probing
        said = []
        for name, module in probing.probes().items():
            if hasattr(module, "plant") and "cuda" in getattr(module, "DEVICES", ("cpu", "cuda")) and left() > 2 * BUDGET_S:
                code, text = call("benchmarks.gpu", "--one-plant", name, "--out", str(out / "plants"), timeout_s=max(30, min(60, left())))
                note(f"plant {name}", code, text)
                said += [text.splitlines()[-1]] if code == 0 else []
        (out / "plants.jsonl").write_text("\n".join(said))
    with gzip.open(out / "records.json.gz", "wt") as f:
        json.dump(records, f)
    (out / "summary.txt").write_text("\n".join(summary))
    if args.series:
        found = []
        for process in range(SERIES["processes"]):
            code, text = call("benchmarks.gpu", "--one-series", str(process), timeout_s=max(60, left()))
            note(f"series {process}", code, text)
            if code == 0:
                found.append(json.loads(text.splitlines()[-1]))
        with gzip.open(out / "series.json.gz", "wt") as f:
            json.dump(found, f)
    (out / "failures.txt").write_text("\n".join(failures))
    print("\n".join(summary)[-9000:])
    print(f"{len(records)} records, {len(failures)} failures -> {out}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
