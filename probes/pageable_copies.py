"""Batches are copied to the GPU from pageable memory: the host waits, and the copy cannot run beside the kernels.

## What it sees
In a trace: copies "HtoD (Pageable -> Device)" that take at least 1 % of the steps, with bytes, rate and the host's waits around
them. Without a trace: a pipeline whose batches are on the CPU and not page-locked, large enough to take that long at the rate
that such copies reached in real traces.

## Why it is slow
The driver first copies pageable memory into a page-locked buffer of its own; CUDA synchronises the stream before such a copy, so
non_blocking=True does nothing, the host cannot run ahead and the copy engine cannot work while kernels do.

## Cure
pin_memory=True in the DataLoader and non_blocking=True in .to(device). A pipeline without a DataLoader: batch.pin_memory().

## Not for
Machines short of memory: locked pages cannot be swapped out. Batches of a few kilobytes.

## References
SLOW_PATHS S43; CUDA Runtime API, "API synchronization behavior"; PyTorch tutorial "A guide on good usage of non_blocking and pin_memory()".
"""

from dataclasses import replace as changed

from perfscope.probe import Config, Evidence, Finding, Place, replace
from perfscope.sections import percent
from perfscope.trace.analysis import RankAnalysis
from perfscope.trace.steps import Step
from perfscope.trace.tables import Copy, Sync
from perfscope.workload import feed
from perfscope.workload.data import image_pipeline

USES = ("config", "trace")
DEVICES = ("cuda",)
CODE = "DataLoader(..., pin_memory=True); images = images.to(device, non_blocking=True)"
SHARE = 0.01                # METHOD 8: the smallest change that matters
#: Bytes per second of pageable copies: the lower of the two V100 traces that have any worth speaking of (6.1 and 10.1 GB/s). It
#: decides only whether a batch is large enough to be named without a trace; it is no estimate of your machine's.
RATE = 6.1e9


def detect(evidence):
    c = evidence.config
    if evidence.trace is not None:
        yield from _in_trace(evidence.trace)
    elif c.loader.get("device") == "cpu" and not c.loader.get("pinned") and c.step_s:
        size = c.loader.get("batch_bytes", 0)
        if size / RATE >= SHARE * c.step_s:
            yield Finding("", f"batches of {size / 1e6:.1f} MB go to the GPU from pageable memory",
                          (Place("data", f"the pipeline's tensors are not page-locked{_words(c.loader)}"),), _CURE, evidence={"batch_bytes": size})


_CURE = "page-lock the batches (pin_memory=True) and copy with non_blocking=True"


def _words(facts) -> str:
    return f"; DataLoader(pin_memory={facts['pin_memory']}, num_workers={facts['workers']})" if "workers" in facts else ""


def _in_trace(t):
    rows = [c for c in t.copies if c.kind.startswith("HtoD") and "Pageable" in c.kind]
    ns, step_ns = sum(c.total_ns for c in rows), sum(s.duration_ns for s in t.steps)
    if not step_ns or ns < SHARE * step_ns:
        return
    count, size = sum(c.count for c in rows), sum(c.bytes or 0 for c in rows)
    waits = [s for s in t.syncs if s.op == "aten::copy_" and "Synchronize" in s.name]
    amount = f"{size / 1e6:.1f} MB at {size / ns:.1f} GB/s, " if size else ""
    places = [Place(c.kind, f"{c.count} copies, {c.total_ns / 1e6:.2f} ms") for c in rows]
    places += [Place(s.where or s.op, f"{s.count} x {s.name} inside {s.op}, {s.total_ns / 1e6:.2f} ms: the host waits") for s in waits]
    yield Finding("", f"{count} copies to the device from pageable memory: {amount}{ns / 1e6:.2f} ms, {percent(ns / step_ns, 3)} of the steps", tuple(places),
                  _CURE, share=ns / step_ns, basis="ceiling", evidence={"copies": count, "bytes": size or None, "ns": ns})


def fix(workload):
    return replace(workload, data=feed.pinned(workload.data))


def plant(workload):
    """Not tried on a GPU yet."""
    shape = (3, 224, 224)
    return replace(workload, data=image_pipeline(shape, 16, samples=256, pin=False)) if workload.input_shape == shape else replace(
        workload, data=lambda n: iter(lambda: workload.batch(n), None))


def examples():
    """What the trace v100-resnet50-loader-in-process shows, and the same with page-locked batches."""
    step = Step("ProfilerStep#5", 0, 0, 174_830_000, busy_ns=98_000_000)
    ill = RankAnalysis(0, 1, "", {"0": "Tesla V100"}, device_events=9096, steps=(step,),
                       copies=(Copy("HtoD (Pageable -> Device)", 2, 1_915_333, 19_267_840, 10.06),),
                       syncs=(Sync("cudaStreamSynchronize", "aten::copy_", "", 2, 91_000, 60_000),))
    healthy = changed(ill, copies=(Copy("HtoD (Pinned -> Device)", 2, 1_560_000, 19_267_840, 12.35),), syncs=())
    return Evidence(Config(device="cuda"), trace=ill), Evidence(Config(device="cuda"), trace=healthy)
