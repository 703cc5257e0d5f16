"""Gradients are all-reduced after every micro-batch, though the optimizer steps once for several.

## What it sees
In a trace: k forward passes of DistributedDataParallel for each step of the optimizer, and in every step the same sequence of
all-reduces k times over.

## Why it is slow
Gradient accumulation needs one all-reduce per optimizer step, of the sum. The others send the same amount for nothing.

## Cure
`with ddp.no_sync():` around forward *and* backward of all micro-batches but the last.

## Not for
FSDP and sharded gradients, where no_sync costs the memory of unsharded gradients.

## References
SLOW_PATHS S54; PyTorch documentation of DistributedDataParallel.no_sync.
"""

from dataclasses import replace as changed

from perfscope.probe import Config, Evidence, Finding, Place
from perfscope.trace.analysis import RankAnalysis
from perfscope.trace.ranks import Call
from perfscope.trace.steps import Step

USES = ("trace",)
DEVICES = ("cuda",)
CODE = "with ddp.no_sync(): loss(ddp(x), y).backward()      # all micro-batches but the last"


def detect(evidence):
    t = evidence.trace
    forwards = t.marks.get("DistributedDataParallel.forward", 0)
    updates = max((n for name, n in t.marks.items() if name.startswith("Optimizer.step#")), default=0)
    k = forwards // updates if updates else 0
    if k < 2 or forwards % updates:
        return
    steps: dict[str, list] = {}
    for call in t.collectives:
        if "allreduce" in call.name.lower() and call.step:
            steps.setdefault(call.step, []).append(call)
    rounds = [calls for calls in steps.values() if _repeats([c.elements for c in calls], k)]
    if not rounds or len(rounds) < len(steps):
        return
    spare = sum(sum(c.duration_ns for c in calls[:-(len(calls) // k)]) for calls in rounds)
    step_ns = sum(s.duration_ns for s in t.steps)
    per = len(rounds[0])
    yield Finding("", f"every micro-batch is all-reduced: {per} all-reduces per optimizer step, the same {per // k} of them {k} times over",
                  (Place("all-reduce", f"{forwards} forward passes for {updates} optimizer steps; {spare / 1e6:.2f} ms of all-reduces that are not needed"),),
                  "no_sync() around all micro-batches but the last", share=spare / step_ns if step_ns else None, basis="ceiling",
                  evidence={"micro_batches": k, "all_reduces": per, "spare_ns": spare})


def _repeats(sizes: list, k: int) -> bool:
    """Whether the list is one block, k times over."""
    block, rest = divmod(len(sizes), k)
    return bool(block) and not rest and None not in sizes and sizes == sizes[:block] * k


def examples():
    """Four micro-batches per optimizer step, two buckets: reduced each time, and once."""
    def calls(n):
        return tuple(Call("ProfilerStep#1", "default", i, "allreduce", (1_000_000, 6_250_000)[i % 2], i * 10_000_000, 2_000_000) for i in range(2 * n))
    ill = RankAnalysis(0, 2, "", {"0": "NVIDIA A100"}, device_events=4000, steps=(Step("ProfilerStep#1", 0, 0, 100_000_000),), collectives=calls(4),
                       marks={"DistributedDataParallel.forward": 4, "Optimizer.step#AdamW.step": 1})
    return Evidence(Config(device="cuda"), trace=ill), Evidence(Config(device="cuda"), trace=changed(ill, collectives=calls(1)))
