"""zero_grad(set_to_none=False) writes zeros into every gradient at every step.

## What it sees
The optimizer's zero_grad is called with set_to_none=False: one fill per parameter before the forward pass. In a trace with
shapes: an `aten::zero_` for every gradient that was accumulated (one AccumulateGrad per parameter), of its shape.

## Why it is slow
The zeros are written, then read again, because the backward pass adds to them instead of storing its result. It costs two
passes over all gradients and, on a GPU, a kernel or more per step.

## Cure
zero_grad() without arguments: None has been the default since torch 2.0.

## Not for
Code that reads .grad between zero_grad and backward, that keeps views of the gradients, or that captured them in a CUDA graph.

## References
SLOW_PATHS S30; torch.optim.Optimizer.zero_grad in PyTorch's documentation.
"""

from perfscope import patch
from perfscope.probe import Finding, Place, replace

USES = ("config", "trace")
CODE = "optimizer.zero_grad()          # set_to_none=True is the default"
ACCUMULATED = "torch::autograd::AccumulateGrad"
FEW = 8                     # parameters: models with fewer are not told from other fills in a trace
TEXT = "zero_grad fills the gradients with zeros instead of dropping them"


def detect(evidence):
    if not evidence.config.torch:
        yield from _in_trace(evidence)
        return
    if evidence.config.set_to_none:
        return
    zeros = list(evidence.calls("zero_", "_foreach_zero_", phase="zero"))
    count = sum(len(o.inputs) for o in zeros)
    moved = sum(t.bytes for o in zeros for t in o.inputs)
    saw = f"{count} gradients, {moved / 1e6:.1f} MB, are filled with zeros" if zeros else "set_to_none is False"
    yield Finding("", TEXT, (Place("optimizer.zero_grad", saw),), "call zero_grad() without set_to_none=False",
                  evidence={"gradients": count, "bytes": moved})


def _in_trace(evidence):
    """`zero_` of each shape as often as AccumulateGrad has it, and the time of both: without fills nothing is accumulated."""
    rows = evidence.trace.ops if evidence.trace is not None else ()
    gradients, zeros = _by_shape(rows, ACCUMULATED), _by_shape(rows, "aten::zero_")
    steps = len({s.name for s in evidence.trace.steps}) or 1 if evidence.trace is not None else 1
    count = sum(gradients.values())
    if "" in gradients or count < FEW * steps or any(zeros.get(shape, 0) < n for shape, n in gradients.items()):
        return
    gpu = bool(evidence.trace.device_events)
    total = sum(r.device_self_ns if gpu else r.host_self_ns for r in rows)
    both = [r for r in rows if r.name in (ACCUMULATED, "aten::zero_") and r.shapes in gradients]
    part = sum(r.device_total_ns if gpu else r.host_total_ns for r in both)
    yield Finding("", TEXT, (Place("aten::zero_", f"{count // steps} gradients per step are filled with zeros, and added to in {ACCUMULATED}"),),
                  "call zero_grad() without set_to_none=False", share=part / total if total else None, basis="ceiling",
                  evidence={"gradients": count, "steps": steps})


def _by_shape(rows, name) -> dict[str, int]:
    counts: dict[str, int] = {}
    for r in rows:
        if r.name == name:
            counts[r.shapes] = counts.get(r.shapes, 0) + r.count
    return counts


def fix(workload):
    return replace(workload, set_to_none=True)


def edit(source):
    return [patch.keyword(source, call, "set_to_none", "True") for call in source.calls("zero_grad") if any(k.arg == "set_to_none" for k in call.keywords)]


def plant(workload):
    return replace(workload, set_to_none=False)
