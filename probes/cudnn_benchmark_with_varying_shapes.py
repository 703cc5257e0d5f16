"""cuDNN's benchmark mode is on while the shapes change: every new shape is searched for its fastest algorithm.

## What it sees
torch.backends.cudnn.benchmark is True, and batches of different shapes come out of the input pipeline (the first three are
looked at), or a trace of several steps has convolutions whose shapes do not occur in every step.

## Why it is slow
For each shape that cuDNN has not seen, several algorithms run, with workspace that may have to be allocated, before the
convolution itself: a step with a new shape takes a multiple of the others. It pays only if the shape comes back often.

## Cure
torch.backends.cudnn.benchmark = False. Or keep it, and pad the batches to a few sizes.

## Not for
A few shapes that come back all the time, as in progressive resizing: each is searched once. A smaller last batch per epoch is
one more shape, and no reason.

## References
SLOW_PATHS S12; torch.backends.cudnn.benchmark and benchmark_limit in PyTorch's documentation.
"""

from collections import Counter

from perfscope.evidence.precision import tensors_of
from perfscope.probe import CONVOLUTIONS, Config, Evidence, Finding, Place, add, replace, setting

USES = ("config",)
DEVICES = ("cuda",)
CODE = "torch.backends.cudnn.benchmark = False"
SIDES = (16, 14, 12, 10, 8)     # of the planted images, one after the other
IN_TRACE = {"aten::" + n for n in CONVOLUTIONS}


def detect(evidence):
    c = evidence.config
    if c.switches.get("cudnn.benchmark") is not True or c.switches.get("cudnn.enabled") is False:
        return
    places = ()
    if c.loader.get("shapes", 1) > 1:
        places = (Place("input pipeline", f"{c.loader['shapes']} different shapes in {c.loader['batches']} batches"),)
    rare, steps = passing(evidence.trace)
    places += tuple(Place(f"aten::convolution on weight {w}", f"{n} shapes that do not occur in each of {steps} steps") for w, n in rare.items())
    convolves = evidence.ops is None or any(o.name in CONVOLUTIONS for o in evidence.ops)
    if places and convolves:
        yield Finding("", "cuDNN's benchmark mode searches algorithms again for each new shape, and the shapes change", places,
                      "switch cudnn.benchmark off, or pad the batches to a few sizes",
                      evidence={"batch_shapes": c.loader.get("shapes"), "passing_shapes": sum(rare.values()), "cudnn.benchmark": True})


def passing(trace) -> tuple[dict[str, int], int]:
    """(weight shape -> how many shapes of its convolutions' inputs come and go, the number of steps) of a trace; shapes of one
    weight count from two on."""
    steps = len({s.name for s in trace.steps}) if trace is not None else 0
    if steps < 2:
        return {}, steps
    found: Counter = Counter()
    for row in trace.ops:
        tensors = tensors_of(row)
        if row.name == "aten::convolution" and row.count < steps and len(tensors) >= 2:
            found[str(tuple(tensors[1][0]))] += 1
    return {w: n for w, n in found.items() if n > 1}, steps


def fix(workload):
    import torch
    return add(workload, contexts=[setting(torch.backends.cudnn, benchmark=False)])


def plant(workload):
    """Images of one side after the other, cut out of the workload's own."""
    import torch

    def varied(n):
        inputs, target = workload.batch(n)
        i = 0
        while True:
            side = SIDES[i % len(SIDES)]
            yield inputs[..., :side, :side], target
            i += 1
    return add(replace(workload, data=varied), contexts=[setting(torch.backends.cudnn, benchmark=True)])


def examples():
    """A pipeline whose three batches had three shapes, and one whose batches are alike, both in benchmark mode."""
    def seen(shapes):
        return Evidence(Config("cuda", "NVIDIA H100 80GB HBM3", (9, 0), torch="2.13.0", dtype="amp-half", memory_format="channels_last",
                               switches={"cudnn.enabled": True, "cudnn.benchmark": True}, loader={"batches": 3, "shapes": shapes}))
    return seen(3), seen(1)
