"""The step asks the driver for GPU memory, again and again, instead of using PyTorch's cache.

## What it sees
After the warm-up, on average at least one cudaMalloc per step, or retries (free everything, then ask again); and calls of
torch.cuda.empty_cache() inside the step. Memory that is reserved and was never needed at once is named with it.

## Why it is slow
cudaMalloc and cudaFree wait for the device; emptying the cache gives everything back that the next step asks for again.

## Cure
Take torch.cuda.empty_cache() out of the loop. Where the step does not call it, the blocks do not fit: expandable segments, one
warm-up step with the largest batch, or padding to a few sizes.

## Not for
The first steps, which fill the cache. A GPU that is shared with another process on purpose.

## References
SLOW_PATHS S48; PyTorch documentation, "CUDA semantics: memory management" (empty_cache, expandable_segments).
"""

from unittest import mock

import torch

from perfscope.probe import Config, Evidence, Finding, Place, add, replace

USES = ("config",)
DEVICES = ("cuda",)
CODE = "# without torch.cuda.empty_cache() in the loop; PYTORCH_ALLOC_CONF=expandable_segments:True where blocks do not fit"
RESERVED = 1.5              # times the most that was allocated at once: SLOW_PATHS S48


def detect(evidence):
    c, seen = evidence.config, evidence.config.observed
    steps, allocations, retries = seen.get("steps", 0), seen.get("device_alloc", 0), seen.get("alloc_retries", 0)
    emptied = seen.get("empty_cache", 0)
    if not steps or (allocations < steps and not retries):
        return
    places = [Place("cudaMalloc", f"{allocations} in {steps} steps after the warm-up, {retries} retries")]
    places += [Place("torch.cuda.empty_cache", f"called {emptied} times in {steps} steps")] if emptied else []
    reserved, peak = seen.get("reserved", 0), c.memory.get("peak", 0)
    if peak and reserved > RESERVED * peak:
        places.append(Place("reserved memory", f"{reserved / 1e9:.2f} GB reserved, at most {peak / 1e9:.2f} GB were needed at once"))
    text = f"the step allocates from the driver: {allocations / steps:.1f} cudaMalloc per step" + (f", {retries} retries" if retries else "")
    yield Finding("", text, tuple(places), "do not empty the cache in the loop" if emptied else
                  "expandable segments, or a first step with the largest batch", extra={} if emptied else {"hint": True},
                  code="" if emptied else "PYTORCH_ALLOC_CONF=expandable_segments:True",
                  evidence={k: seen[k] for k in ("device_alloc", "alloc_retries", "empty_cache", "reserved", "allocated") if k in seen})


def kept():
    """A context in which torch.cuda.empty_cache() does nothing."""
    return mock.patch.object(torch.cuda, "empty_cache", lambda: None)


def fix(workload):
    return add(workload, contexts=[kept])


def plant(workload):
    """Not tried on a GPU yet."""
    def empty(loss, before=workload.after_step):
        if before is not None:
            before(loss)
        torch.cuda.empty_cache()
    return replace(workload, after_step=empty)


def examples():
    """Five steps that empty the cache, and five that do not, of the same workload."""
    def with_(**observed):
        return Evidence(Config(device="cuda", torch="2.13", step_s=0.03, memory={"total": 80 << 30, "free": 60 << 30, "peak": 4 << 30},
                               observed={"steps": 5, "alloc_retries": 0, "allocated": 1 << 30, **observed}))
    return with_(device_alloc=60, empty_cache=5, reserved=2 << 30), with_(device_alloc=0, empty_cache=0, reserved=5 << 30)
